"""Classifier-free guidance over a net that answers with its labels."""

import pytest
import torch

from latte_pl.diffusion import Guidance
from latte_pl.types import Text

X = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 6])


class Net:
    """Gives x + label in the noise and -label in the variance channels; notes the batches it sees."""

    conditioning = "class"
    null_label = 7
    in_channels = 4

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, labels):
        self.batches.append((len(x), t.tolist(), None if labels is None else labels.tolist()))
        if labels is None:
            return torch.cat([x, x], dim=2)
        value = labels.to(x)[:, None, None, None, None].expand_as(x)
        return torch.cat([x + value, -value], dim=2)


def expected(scale):
    """Outputs of guidance with a scale for each sample."""
    label = LABELS.float()[:, None, None, None, None].expand_as(X)
    scale = torch.as_tensor(scale).float().expand(3)[:, None, None, None, None]
    return torch.cat([X + 7.0 + scale * (label - 7.0), -label], dim=2)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 7.0])
def test_only_the_prediction_is_guided(scale):
    torch.testing.assert_close(Guidance(Net(), LABELS, scale)(X, torch.tensor([5, 6, 7])), expected(scale))


def test_cost_in_batches():
    net, t = Net(), torch.tensor([5, 6, 7])
    Guidance(net, LABELS)(X, t)
    assert net.batches == [(3, [5, 6, 7], [2, 0, 6])]
    net = Net()
    Guidance(net, LABELS, 2.0)(X, t)
    assert net.batches == [(6, [5, 6, 7] * 2, [2, 0, 6, 7, 7, 7])]
    net = Net()
    Guidance(net, None)(X, t)
    assert net.batches == [(3, [5, 6, 7], None)]


def test_interval_of_timesteps():
    net = Net()
    guided = Guidance(net, LABELS, 3.0, (100.0, 500.0))
    torch.testing.assert_close(guided(X, torch.tensor([99, 501, 999])), expected(1.0))
    assert [batch[0] for batch in net.batches] == [3]  # outside it costs a single batch
    torch.testing.assert_close(guided(X, torch.tensor([100, 250, 500])), expected(3.0))
    torch.testing.assert_close(guided(X, torch.tensor([99.5, 100.0, 700.0])), expected([1.0, 3.0, 1.0]))


def test_the_whole_range_is_the_default():
    torch.testing.assert_close(Guidance(Net(), LABELS, 3.0)(X, torch.tensor([0.0, 500.0, 1000.0])), expected(3.0))


def test_number_of_guided_channels():
    guided = Guidance(Net(), LABELS, 3.0, channels=3)(X, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(guided[:, :, :3], expected(3.0)[:, :, :3])
    torch.testing.assert_close(guided[:, :, 3:], expected(1.0)[:, :, 3:])


def test_bad_requests_are_refused():
    unconditional = Net()
    unconditional.conditioning = "none"
    for net, labels in ((Net(), None), (unconditional, LABELS)):
        with pytest.raises(ValueError, match=r"guidance scale is 4\.0, but there are no classes to guide to"):
            Guidance(net, labels, 4.0)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be 0 or more"):
            Guidance(Net(), LABELS, scale)
    with pytest.raises(ValueError, match="the lowest timestep comes first"):
        Guidance(Net(), LABELS, 4.0, (600.0, 300.0))


class Reader:
    """Gives x + the mean of the tokens that are seen, 7 without any."""

    conditioning = "text"
    in_channels = 4

    def null_text(self, text):
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def __call__(self, x, t, text):
        seen = torch.where(text.mask[..., None], text.embeddings, torch.nan).nanmean(dim=(1, 2)).nan_to_num(7.0)
        return x + seen[:, None, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_captions_are_guided_away_from_the_null_caption(scale):
    text = Text(LABELS[:, None, None].float().expand(3, 4, 2), torch.arange(4).expand(3, 4) < 2)
    guided = Guidance(Reader(), None, scale, text=text)(X, torch.tensor([5, 6, 7]))
    label = LABELS.float()[:, None, None, None, None]
    torch.testing.assert_close(guided, X + 7.0 + scale * (label - 7.0))
    with pytest.raises(ValueError, match="there are no captions to guide to"):
        Guidance(Reader(), None, 4.0)
