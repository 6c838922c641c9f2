import numpy as np
import pytest
from cleanfid.fid import kernel_distance as cleanfid_kernel

from latte_pl.metrics import kernel_distance


def test_agrees_with_clean_fid_on_whole_sets():
    rng = np.random.default_rng(3)
    real, generated = rng.normal(0.5, 1, (60, 16)), rng.normal(size=(60, 16))
    assert kernel_distance(real, generated) == pytest.approx(cleanfid_kernel(real, generated, 1, 60), rel=1e-9)
    assert kernel_distance(real, generated, block=7) == pytest.approx(kernel_distance(real, generated), rel=1e-12)


def test_known_value():
    # one feature, kernel (x y + 1)^3: 1 within the real set, 8 within the generated one, 1 between them
    assert kernel_distance(np.zeros((2, 1)), np.ones((3, 1))) == pytest.approx(1 + 8 - 2 * 1)


def test_estimate_is_unbiased():
    values = [kernel_distance(*np.random.default_rng(n).normal(size=(2, 20, 4))) for n in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_wrong_features_raise():
    with pytest.raises(ValueError, match="use the same extractor"):
        kernel_distance(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(np.ones((1, 3)), np.ones((5, 3)))
