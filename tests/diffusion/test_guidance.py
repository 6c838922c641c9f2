"""Classifier-free guidance of a network that returns its labels."""

import pytest
import torch

from latte_pl.diffusion import Guidance
from latte_pl.types import Text

X = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 6])


class Net:
    """Return x + label as noise and -label as variance, and record the batches."""

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
    """Return the guided output for one scale, or one per sample."""
    label = LABELS.float()[:, None, None, None, None].expand_as(X)
    scale = torch.as_tensor(scale).float().expand(3)[:, None, None, None, None]
    return torch.cat([X + 7.0 + scale * (label - 7.0), -label], dim=2)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 7.0])
def test_prediction_is_guided_and_variance_is_conditional(scale):
    torch.testing.assert_close(Guidance(Net(), LABELS, scale)(X, torch.tensor([5, 6, 7])), expected(scale))


def test_guidance_costs_one_forward_pass_of_twice_the_batch():
    net, t = Net(), torch.tensor([5, 6, 7])
    Guidance(net, LABELS)(X, t)
    assert net.batches == [(3, [5, 6, 7], [2, 0, 6])]
    net = Net()
    Guidance(net, LABELS, 2.0)(X, t)
    assert net.batches == [(6, [5, 6, 7] * 2, [2, 0, 6, 7, 7, 7])]
    net = Net()
    Guidance(net, None)(X, t)
    assert net.batches == [(3, [5, 6, 7], None)]


def test_guidance_is_limited_to_the_interval():
    net = Net()
    guided = Guidance(net, LABELS, 3.0, (100.0, 500.0))
    torch.testing.assert_close(guided(X, torch.tensor([99, 501, 999])), expected(1.0))
    assert [batch[0] for batch in net.batches] == [3]  # outside of the interval, the batch is not doubled
    torch.testing.assert_close(guided(X, torch.tensor([100, 250, 500])), expected(3.0))
    torch.testing.assert_close(guided(X, torch.tensor([99.5, 100.0, 700.0])), expected([1.0, 3.0, 1.0]))


def test_default_interval_contains_all_timesteps():
    torch.testing.assert_close(Guidance(Net(), LABELS, 3.0)(X, torch.tensor([0.0, 500.0, 1000.0])), expected(3.0))


def test_only_the_given_channels_are_guided():
    guided = Guidance(Net(), LABELS, 3.0, channels=3)(X, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(guided[:, :, :3], expected(3.0)[:, :, :3])
    torch.testing.assert_close(guided[:, :, 3:], expected(1.0)[:, :, 3:])


def test_wrong_arguments_raise_an_error():
    unconditional = Net()
    unconditional.conditioning = "none"
    for net, labels in ((Net(), None), (unconditional, LABELS)):
        with pytest.raises(ValueError, match=r"guidance scale is 4\.0, but there are no classes"):
            Guidance(net, labels, 4.0)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be 0 or more"):
            Guidance(Net(), LABELS, scale)
    with pytest.raises(ValueError, match="the lowest timestep comes first"):
        Guidance(Net(), LABELS, 4.0, (600.0, 300.0))


class TextNet:
    """Return x + the mean of the visible tokens, or x + 7 if all are masked."""

    conditioning = "text"
    in_channels = 4

    def null_text(self, text):
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def __call__(self, x, t, text):
        mean = torch.where(text.mask[..., None], text.embeddings, torch.nan).nanmean(dim=(1, 2)).nan_to_num(7.0)
        return x + mean[:, None, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_uses_the_null_caption(scale):
    text = Text(LABELS[:, None, None].float().expand(3, 4, 2), torch.arange(4).expand(3, 4) < 2)
    guided = Guidance(TextNet(), None, scale, text=text)(X, torch.tensor([5, 6, 7]))
    label = LABELS.float()[:, None, None, None, None]
    torch.testing.assert_close(guided, X + 7.0 + scale * (label - 7.0))
    with pytest.raises(ValueError, match="there are no captions"):
        Guidance(TextNet(), None, 4.0)


def test_guidance_combines_outputs_in_half_precision_in_float32():
    class Half:
        conditioning, in_channels, null_label = "class", 2, 3

        def __call__(self, x, t, labels):
            out = torch.where((labels == 3)[:, None, None, None, None], 1.0, 1.0078125)  # neighbours in bf16
            return out.expand(len(x), 1, 2, 1, 1).to(torch.bfloat16)

    guided = Guidance(Half(), torch.tensor([0]), scale=7.3)(torch.zeros(1, 1, 2, 1, 1), torch.tensor([5]))
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided, torch.full_like(guided, 1.0 + 7.3 * 0.0078125), rtol=1e-6, atol=0)
