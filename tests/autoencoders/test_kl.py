"""KLAutoencoder against diffusers, and the quality of the bundled autoencoder on held-out clips."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from latte_pl.autoencoders import KLAutoencoder, from_uint8, to_uint8
from latte_pl.autoencoders.kl import BUNDLED
from latte_pl.toy.motion import classify_motion
from latte_pl.toy.shapes import MovingShapes

PSNR = 35.5  # dB on held-out clips of 64x64 pixels; weights/README.md reports 36.4


@pytest.fixture(scope="module")
def autoencoder() -> KLAutoencoder:
    return KLAutoencoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL with random weights and 4 pixels per cell."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        norm_num_groups=4,
        latent_channels=5,
        scaling_factor=0.4,
        shift_factor=0.25,
    )
    path = tmp_path_factory.mktemp("weights") / "tiny"
    vae.save_pretrained(path)
    return path


def held_out(count: int, size: int | tuple[int, int] = 64) -> tuple[torch.Tensor, list[int]]:
    dataset = MovingShapes("val", size)
    return torch.stack([dataset.read(i, 8) for i in range(count)]), [dataset.label(i) for i in range(count)]


@pytest.mark.parametrize(("size", "least"), [(64, PSNR), ((48, 96), PSNR), (32, PSNR - 6)])
def test_bundled_autoencoder_reconstructs_held_out_clips(
    autoencoder: KLAutoencoder, size: int | tuple[int, int], least: float
) -> None:
    video, labels = held_out(32, size)
    latents = autoencoder.encode(video)
    assert latents.shape == (32, 8, 4, video.shape[-2] // 8, video.shape[-1] // 8)
    output = autoencoder.decode(latents)
    psnr = 10 * math.log10(4 / (output - from_uint8(video)).square().mean().item())
    assert psnr > least
    assert [classify_motion(clip) for clip in to_uint8(output)] == labels


def test_bundled_latents_have_unit_variance(autoencoder: KLAutoencoder) -> None:
    latents = autoencoder.encode(held_out(32)[0])
    assert 0.85 < latents.std() < 1.15


def test_bundled_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 2_000_000


def test_fingerprint_of_bundled_autoencoder_has_not_changed(autoencoder: KLAutoencoder) -> None:
    """Latent caches on disk contain this fingerprint."""
    assert autoencoder.fingerprint() == "shapes_kl_f8-e5293580766a"


def test_scale_and_shift_come_from_configuration(folder: Path) -> None:
    autoencoder = KLAutoencoder(str(folder))
    assert (autoencoder.channels, autoencoder.factor, autoencoder.scale, autoencoder.shift) == (5, 4, 0.4, 0.25)
    video = torch.randint(0, 256, (1, 3, 3, 16, 24), dtype=torch.uint8)
    mean, logvar = autoencoder.moments(video)
    assert mean.shape == logvar.shape == (1, 3, 5, 4, 6)
    noise = torch.randn(mean.shape)
    torch.testing.assert_close(autoencoder.latents(mean, logvar), (mean - 0.25) * 0.4)
    torch.testing.assert_close(autoencoder.encode(video, noise), (mean + logvar.exp().sqrt() * noise - 0.25) * 0.4)


def test_constructor_arguments_are_attributes(folder: Path) -> None:
    autoencoder = KLAutoencoder(folder, slice_frames=3)
    assert (autoencoder.source, autoencoder.slice_frames) == (str(folder), 3)
    assert KLAutoencoder().source == "toy"


def test_latent_format_is_known_before_weights_are_loaded(folder: Path, tmp_path: Path) -> None:
    assert KLAutoencoder.latent_format() == KLAutoencoder.latent_format(source="toy", slice_frames=2) == (4, 8)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())  # without weights
    assert KLAutoencoder.latent_format(source=str(tmp_path)) == (5, 4)


def test_latent_format_comes_from_hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert KLAutoencoder.latent_format(source="someone/vae") == (4, 8)  # the fallback
    cached = tmp_path / "models--someone--vae"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text((folder / "config.json").read_text())
    assert KLAutoencoder.latent_format(source="someone/vae") == (5, 4)


def test_weights_load_from_hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cached model, nothing is downloaded."""
    load, calls = AutoencoderKL.from_pretrained, []

    def from_pretrained(source: str, local_files_only: bool, **options: object) -> AutoencoderKL:
        calls.append((source, local_files_only))
        return load(folder, local_files_only=True, **options)

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", from_pretrained)
    autoencoder = KLAutoencoder("someone/vae")
    assert calls == [("someone/vae", True)]
    assert (autoencoder.name, autoencoder.source, autoencoder.channels) == ("vae", "someone/vae", 5)


def test_moments_and_frames_match_diffusers(folder: Path) -> None:
    autoencoder, vae = KLAutoencoder(folder), AutoencoderKL.from_pretrained(folder, local_files_only=True)
    frames = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        decoded = vae.decode(posterior.mean).sample.clamp(-1, 1)
    mean, logvar = autoencoder.moments(frames[None])
    torch.testing.assert_close(mean[0], posterior.mean)
    torch.testing.assert_close(logvar[0], posterior.logvar)
    torch.testing.assert_close(autoencoder.decode(autoencoder.latents(mean, logvar))[0], decoded, atol=1e-5, rtol=1e-4)


def test_log_variance_is_clamped(folder: Path) -> None:
    autoencoder = KLAutoencoder(folder)
    with torch.no_grad():
        autoencoder.vae.quant_conv.bias.fill_(100.0)
    mean, logvar = autoencoder.moments(torch.zeros(1, 2, 3, 16, 24))
    assert logvar.max() == 20
    assert mean.max() > 50


def test_slicing_does_not_change_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.randint(0, 256, (3, 5, 3, 16, 24), dtype=torch.uint8)
    whole, sliced = KLAutoencoder(folder), KLAutoencoder(folder)
    sizes: list[int] = []
    encode = sliced._encode
    monkeypatch.setattr(sliced, "_frames_per_slice", lambda pixels: 4)
    monkeypatch.setattr(sliced, "_encode", lambda frames: sizes.append(len(frames)) or encode(frames))
    torch.testing.assert_close(sliced.encode(video), whole.encode(video), atol=1e-5, rtol=1e-4)
    assert sizes == [4, 4, 4, 3]
    latents = torch.randn(3, 5, 5, 4, 6)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents), atol=1e-5, rtol=1e-4)


def test_slices_shrink_with_frame_size(folder: Path) -> None:
    autoencoder = KLAutoencoder(folder, slice_frames=8)
    assert [autoencoder._frames_per_slice(side * side) for side in (64, 256, 512, 4096)] == [128, 8, 2, 1]
    with pytest.raises(ValueError, match="slice_frames is 0; it must be at least 1"):
        KLAutoencoder(folder, slice_frames=0)


def test_uint8_and_float_videos_agree(autoencoder: KLAutoencoder) -> None:
    video = held_out(1, (16, 32))[0]
    torch.testing.assert_close(autoencoder.encode(video), autoencoder.encode(from_uint8(video)))


def test_frames_are_encoded_independently(autoencoder: KLAutoencoder) -> None:
    video = held_out(2)[0]
    latents = autoencoder.encode(video)
    torch.testing.assert_close(autoencoder.encode(video[:, [3]])[:, 0], latents[:, 3], atol=1e-4, rtol=1e-4)


def test_autoencoder_stays_frozen_and_in_evaluation_mode(autoencoder: KLAutoencoder) -> None:
    torch.nn.ModuleDict({"autoencoder": autoencoder}).train()
    assert not any(part.training for part in autoencoder.modules())
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    latents = autoencoder.encode(torch.zeros(1, 2, 3, 16, 32, requires_grad=True))
    assert not latents.requires_grad
    assert not autoencoder.decode(latents.requires_grad_()).requires_grad


def test_fingerprint_depends_on_weights_and_scale(folder: Path, tmp_path: Path) -> None:
    autoencoder, same = KLAutoencoder(folder), KLAutoencoder(folder)
    assert autoencoder.fingerprint() == same.fingerprint()
    assert autoencoder.fingerprint().startswith("tiny-")
    with torch.no_grad():
        next(same.parameters())[0, 0, 0, 0] += 1e-3
    assert autoencoder.fingerprint() != same.fingerprint()
    rescaled = tmp_path / "tiny"
    rescaled.mkdir()
    (rescaled / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (rescaled / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert autoencoder.fingerprint() != KLAutoencoder(rescaled).fingerprint()


def test_wrong_shapes_are_rejected(autoencoder: KLAutoencoder) -> None:
    with pytest.raises(ValueError, match="frames of 36x64 pixels cannot be divided into cells of 8x8"):
        autoencoder.moments(torch.zeros(1, 2, 3, 36, 64))
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\); it must be \(B, F, 3, H, W\)"):
        autoencoder.moments(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 4, 4\); it must be \(B, F, 4, h, w\)"):
        autoencoder.decode(torch.zeros(1, 2, 8, 4, 4))


def test_missing_source_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a folder; use a folder or a Hub name like .* or 'toy'"):
        KLAutoencoder(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"contains no autoencoder; it needs config\.json") as error:
        KLAutoencoder(tmp_path)
    assert "\n" not in str(error.value)
    calls = []

    def refuse(source: str, local_files_only: bool, **options: object) -> None:
        calls.append(local_files_only)
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"hf download stabilityai/sd-vae-ft-ema --local-dir FOLDER.* \(no network\)$"
    ):
        KLAutoencoder("stabilityai/sd-vae-ft-ema")
    assert calls == [True, False]  # the cache, then the Hub


def test_autocast_changes_neither_latents_nor_videos(autoencoder: KLAutoencoder) -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(256, (2, 3, 3, 32, 48), dtype=torch.uint8, generator=generator)
    latents = torch.randn(2, 3, 4, 4, 6, generator=generator)
    expected = (*autoencoder.moments(video), autoencoder.decode(latents))
    with torch.autocast("cpu", torch.bfloat16):
        found = (*autoencoder.moments(video), autoencoder.decode(latents))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
