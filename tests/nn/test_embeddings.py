"""The timestep embedding against written-out values."""

import math

import torch

from latte_pl.nn.embeddings import TimestepEmbedder


def sinusoids(embedder: TimestepEmbedder, timesteps: torch.Tensor) -> torch.Tensor:
    seen = []
    embedder.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedder(timesteps)
    return seen[0]


def test_timesteps_are_embedded_by_128_cosines_then_128_sines():
    out = sinusoids(TimestepEmbedder(8), torch.tensor([37, 812]))
    assert out.shape == (2, 256)
    for row, t in zip(out, (37, 812)):
        for k in (0, 1, 64, 127):
            angle = t * math.exp(-math.log(10000) * k / 128)
            assert math.isclose(row[k], math.cos(angle), abs_tol=1e-4)
            assert math.isclose(row[128 + k], math.sin(angle), abs_tol=1e-4)


def test_integer_and_float_timesteps_have_equal_embeddings():
    embedder = TimestepEmbedder(8)
    torch.testing.assert_close(embedder(torch.tensor([3, 700])), embedder(torch.tensor([3.0, 700.0])))
    assert not torch.allclose(embedder(torch.tensor([3])), embedder(torch.tensor([3.4])), atol=1e-3)


def test_half_precision_models_compute_angles_in_float32():
    full, half = TimestepEmbedder(8), TimestepEmbedder(8).bfloat16()
    t = torch.tensor([999, 998])
    torch.testing.assert_close(sinusoids(half, t).float(), sinusoids(full, t), rtol=0, atol=4e-3)
