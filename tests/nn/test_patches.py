"""Patch and tubelet embeddings against the convolutions that they replace."""

import torch

from latte_pl.nn.patches import TubeletFrames, TubeletPatches, UniformPatches, unpatch


def latents(num_frames: int) -> torch.Tensor:
    return torch.randn(2, num_frames, 4, 4, 6, generator=torch.Generator().manual_seed(num_frames))


def test_uniform_patches_are_a_convolution_of_each_frame():
    embed, x = UniformPatches(4, 8, 2), latents(3)
    expected = embed.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B F, S, D)
    tokens = embed(x)
    assert tokens.is_contiguous()
    torch.testing.assert_close(tokens.flatten(0, 1), expected)


def test_tubelets_are_a_convolution_in_time_and_space():
    embed, x = TubeletPatches(4, 8, 2, temporal_stride=3), latents(6)
    expected = embed.proj(x.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # (B, T, S, D)
    torch.testing.assert_close(embed(x), expected)


def test_an_image_is_embedded_as_its_own_tubelet():
    embed, x = TubeletPatches(4, 8, 2, temporal_stride=2), latents(6)
    tokens = embed(x, num_images=2)  # (B, 2 + 2, S, D)
    torch.testing.assert_close(tokens[:, :2], embed(x[:, :4]))
    for i in range(2):
        torch.testing.assert_close(tokens[:, 2 + i : 3 + i], embed(x[:, 4 + i : 5 + i].expand(-1, 2, -1, -1, -1)))


def test_unpatch_inverts_patches_on_a_wide_grid():
    embed, x = UniformPatches(4, 16, 2), latents(3)
    with torch.no_grad():  # feature (p q c) is latent cell (p, q) of channel c
        embed.proj.bias.zero_()
        weight = torch.zeros(2, 2, 4, 4, 2, 2)  # (p, q, c) from (c, p, q)
        for p in range(2):
            for q in range(2):
                weight[p, q, :, :, p, q] = torch.eye(4)
        embed.proj.weight.copy_(weight.flatten(0, 2))
    torch.testing.assert_close(unpatch(embed(x), 2, 3, 2), x)


def test_each_frame_is_decoded_from_its_tubelet():
    """With kernel and stride (s, 1, 1), frame s t + r of the output is one linear map of tubelet t."""
    frames = TubeletFrames(4, temporal_stride=3)
    x = torch.randn(2, 2, 12, 4, 6)
    out = frames(x)
    assert out.shape == (2, 6, 4, 4, 6)
    for t in range(2):
        for r in range(3):
            expected = torch.einsum("bchw,co->bohw", x[:, t], frames.weight[:, :, r, 0, 0]) + frames.bias.view(4, 1, 1)
            torch.testing.assert_close(out[:, 3 * t + r], expected)


def test_frames_of_an_image_tubelet_are_averaged():
    frames = TubeletFrames(4, temporal_stride=2)
    x = torch.randn(2, 5, 8, 4, 6)
    out, as_clip = frames(x, num_images=2), frames(x)
    assert out.shape == (2, 8, 4, 4, 6)
    torch.testing.assert_close(out[:, :6], as_clip[:, :6])
    torch.testing.assert_close(out[:, 7], (as_clip[:, 8] + as_clip[:, 9]) / 2)
