import torch

from latte_pl.codecs import PixelCodec, from_uint8, to_uint8


def test_pixels_come_back_exactly() -> None:
    video = torch.arange(256, dtype=torch.uint8).repeat(6).reshape(1, 2, 3, 16, 16)
    codec = PixelCodec()
    latents = codec.encode(video)
    assert latents.shape == video.shape
    assert latents.min() == -1
    assert latents.max() == 1
    assert torch.equal(to_uint8(codec.decode(latents)), video)
    assert (codec.channels, codec.factor, codec.scale) == (3, 1, 1.0)


def test_noise_does_not_show() -> None:
    video = torch.rand(2, 3, 3, 6, 10) * 2 - 1
    noisy = PixelCodec().encode(video, torch.randn(video.shape))
    torch.testing.assert_close(noisy, video, atol=1e-5, rtol=0)


def test_decoded_pixels_are_in_range() -> None:
    video = PixelCodec().decode(3 * torch.randn(2, 3, 3, 6, 10, generator=torch.Generator().manual_seed(0)))
    assert video.min() == -1
    assert video.max() == 1


def test_fingerprint_is_constant() -> None:
    assert PixelCodec().fingerprint() == PixelCodec().fingerprint()
    assert PixelCodec().fingerprint().startswith("pixel-")


def test_uint8_rounds_to_the_nearest_level_and_clips() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-2.0, -0.999, 0.003, 5.0])).tolist() == [0, 0, 128, 255]
