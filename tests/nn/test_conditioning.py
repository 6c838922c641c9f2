"""Timestep embedding against written-out values; who shares which condition."""

import math

import torch

from latte_pl.nn.conditioning import Modulation, TimestepEmbedder, per_frame


def sinusoids(embedder: TimestepEmbedder, timesteps: torch.Tensor) -> torch.Tensor:
    seen = []
    embedder.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedder(timesteps)
    return seen[0]


def test_timesteps_are_256_sinusoids_cosines_first():
    out = sinusoids(TimestepEmbedder(8), torch.tensor([37, 812]))
    assert out.shape == (2, 256)
    for row, t in zip(out, (37, 812)):
        for k in (0, 1, 64, 127):
            angle = t * math.exp(-math.log(10000) * k / 128)
            assert math.isclose(row[k], math.cos(angle), abs_tol=1e-4)
            assert math.isclose(row[128 + k], math.sin(angle), abs_tol=1e-4)


def test_integer_and_float_timesteps_are_the_same_number():
    embedder = TimestepEmbedder(8)
    torch.testing.assert_close(embedder(torch.tensor([3, 700])), embedder(torch.tensor([3.0, 700.0])))
    assert not torch.allclose(embedder(torch.tensor([3])), embedder(torch.tensor([3.4])), atol=1e-3)


def test_half_precision_models_keep_exact_angles():
    full, half = TimestepEmbedder(8), TimestepEmbedder(8).bfloat16()
    t = torch.tensor([999, 998])
    torch.testing.assert_close(sinusoids(half, t).float(), sinusoids(full, t), rtol=0, atol=4e-3)


def test_frames_share_the_clips_vector_and_images_have_their_own():
    groups = torch.randn(2, 3, 4)
    spread = per_frame(groups, num_clip_frames=5)
    assert spread.shape == (2, 7, 1, 4)
    for frame in range(5):
        assert torch.equal(spread[:, frame, 0], groups[:, 0])
    assert torch.equal(spread[:, 5:, 0], groups[:, 1:])
    assert per_frame(groups[:, :1], num_clip_frames=5).shape == (2, 1, 1, 4)  # not spread at all


def test_modulation_is_computed_once_a_clip():
    modulation, rows = Modulation(4, 6), []
    modulation[1].register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:-1].numel()))
    vectors = modulation.vectors(torch.randn(2, 3, 4), num_clip_frames=16)
    assert rows == [6]
    assert [vector.shape for vector in vectors] == [(2, 18, 1, 4)] * 6
