"""The identity autoencoder, and the conversion between uint8 and float pixels."""

import subprocess
import sys

import torch

from latte_pl.autoencoders import PixelAutoencoder, from_uint8, to_uint8


def test_round_trip_of_pixels_is_exact() -> None:
    video = torch.arange(256, dtype=torch.uint8).repeat(6).reshape(1, 2, 3, 16, 16)
    autoencoder = PixelAutoencoder()
    latents = autoencoder.encode(video)
    assert latents.shape == video.shape
    assert latents.min() == -1
    assert latents.max() == 1
    assert torch.equal(to_uint8(autoencoder.decode(latents)), video)
    assert (autoencoder.channels, autoencoder.factor, autoencoder.scale) == (3, 1, 1.0)
    assert PixelAutoencoder.latent_format() == (3, 1)


def test_posterior_noise_is_negligible() -> None:
    video = torch.rand(2, 3, 3, 6, 10) * 2 - 1
    noisy = PixelAutoencoder().encode(video, torch.randn(video.shape))
    torch.testing.assert_close(noisy, video, atol=1e-5, rtol=0)


def test_decoded_pixels_are_clipped() -> None:
    video = PixelAutoencoder().decode(3 * torch.randn(2, 3, 3, 6, 10, generator=torch.Generator().manual_seed(0)))
    assert video.min() == -1
    assert video.max() == 1


def test_fingerprint_has_not_changed() -> None:
    """Latent caches on disk contain this fingerprint."""
    assert PixelAutoencoder().fingerprint() == "pixel-4bc3b85204eb"


def test_to_uint8_rounds_and_clips() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-2.0, -0.999, 0.003, 5.0])).tolist() == [0, 0, 128, 255]


def test_package_imports_without_diffusers_and_transformers() -> None:
    code = "import sys, latte_pl.autoencoders; print(*sorted({'diffusers', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
