import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from latte_pl.codecs import KLCodec, from_uint8, to_uint8
from latte_pl.codecs.kl import EMBEDDED
from latte_pl.data.motion import classify_motion
from latte_pl.data.shapes import MovingShapes

PSNR = 35.5  # of held-out clips at 64x64, in dB; see weights/README.md for what was measured


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    return KLCodec()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL with random weights, 4 pixels a cell."""
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
def test_embedded_codec_keeps_held_out_clips(codec: KLCodec, size: int | tuple[int, int], least: float) -> None:
    video, labels = held_out(32, size)
    latents = codec.encode(video)
    assert latents.shape == (32, 8, 4, video.shape[-2] // 8, video.shape[-1] // 8)
    output = codec.decode(latents)
    psnr = 10 * math.log10(4 / (output - from_uint8(video)).square().mean().item())
    assert psnr > least
    right = sum(classify_motion(clip) == label for clip, label in zip(to_uint8(output), labels, strict=True))
    assert right == 32


def test_embedded_latents_have_unit_deviation(codec: KLCodec) -> None:
    latents = codec.encode(held_out(32)[0])
    assert 0.85 < latents.std() < 1.15


def test_embedded_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 2_000_000


def test_scale_and_shift_are_those_of_the_configuration(folder: Path) -> None:
    codec = KLCodec(str(folder))
    assert (codec.channels, codec.factor, codec.scale, codec.shift) == (5, 4, 0.4, 0.25)
    video = torch.randint(0, 256, (1, 3, 3, 16, 24), dtype=torch.uint8)
    mean, logvar = codec.moments(video)
    assert mean.shape == logvar.shape == (1, 3, 5, 4, 6)
    noise = torch.randn(mean.shape)
    torch.testing.assert_close(codec.latents(mean, logvar), (mean - 0.25) * 0.4)
    torch.testing.assert_close(codec.encode(video, noise), (mean + logvar.exp().sqrt() * noise - 0.25) * 0.4)


def test_folder_gives_the_same_as_diffusers(folder: Path) -> None:
    codec, vae = KLCodec(folder), AutoencoderKL.from_pretrained(folder, local_files_only=True)
    frames = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        decoded = vae.decode(posterior.mean).sample.clamp(-1, 1)
    mean, logvar = codec.moments(frames[None])
    torch.testing.assert_close(mean[0], posterior.mean)
    torch.testing.assert_close(logvar[0], posterior.logvar)
    torch.testing.assert_close(codec.decode(codec.latents(mean, logvar))[0], decoded, atol=1e-5, rtol=1e-4)


def test_log_variance_is_clamped(folder: Path) -> None:
    codec = KLCodec(folder)
    with torch.no_grad():
        codec.vae.quant_conv.bias.fill_(100.0)
    mean, logvar = codec.moments(torch.zeros(1, 2, 3, 16, 24))
    assert logvar.max() == 20
    assert mean.max() > 50


def test_slices_do_not_change_the_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.randint(0, 256, (3, 5, 3, 16, 24), dtype=torch.uint8)
    whole, sliced = KLCodec(folder), KLCodec(folder)
    sizes: list[int] = []
    encode = sliced._encode
    monkeypatch.setattr(sliced, "_slice", lambda pixels: 4)
    monkeypatch.setattr(sliced, "_encode", lambda frames: sizes.append(len(frames)) or encode(frames))
    torch.testing.assert_close(sliced.encode(video), whole.encode(video), atol=1e-5, rtol=1e-4)
    assert sizes == [4, 4, 4, 3]
    latents = torch.randn(3, 5, 5, 4, 6)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents), atol=1e-5, rtol=1e-4)


def test_slices_shrink_with_the_picture(folder: Path) -> None:
    codec = KLCodec(folder, slice_frames=8)
    assert [codec._slice(side * side) for side in (64, 256, 512, 4096)] == [128, 8, 2, 1]
    with pytest.raises(ValueError, match="slice_frames must be at least 1"):
        KLCodec(folder, slice_frames=0)


def test_uint8_and_float_videos_agree(codec: KLCodec) -> None:
    video = held_out(1, (16, 32))[0]
    torch.testing.assert_close(codec.encode(video), codec.encode(from_uint8(video)))


def test_frames_are_coded_one_by_one(codec: KLCodec) -> None:
    video = held_out(2)[0]
    latents = codec.encode(video)
    torch.testing.assert_close(codec.encode(video[:, [3]])[:, 0], latents[:, 3], atol=1e-4, rtol=1e-4)


def test_codec_stays_frozen_and_in_evaluation_mode(codec: KLCodec) -> None:
    torch.nn.ModuleDict({"codec": codec}).train()
    assert not any(part.training for part in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    latents = codec.encode(torch.zeros(1, 2, 3, 16, 32, requires_grad=True))
    assert not latents.requires_grad
    assert not codec.decode(latents.requires_grad_()).requires_grad


def test_fingerprint_follows_weights_and_scale(folder: Path, tmp_path: Path) -> None:
    codec, same = KLCodec(folder), KLCodec(folder)
    assert codec.fingerprint() == same.fingerprint()
    assert codec.fingerprint().startswith("tiny-")
    with torch.no_grad():
        next(same.parameters())[0, 0, 0, 0] += 1e-3
    assert codec.fingerprint() != same.fingerprint()
    rescaled = tmp_path / "tiny"
    rescaled.mkdir()
    (rescaled / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (rescaled / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert codec.fingerprint() != KLCodec(rescaled).fingerprint()


def test_wrong_sizes_and_shapes_are_refused(codec: KLCodec) -> None:
    with pytest.raises(ValueError, match="36x64 pixels don't divide into cells of 8x8"):
        codec.moments(torch.zeros(1, 2, 3, 36, 64))
    with pytest.raises(ValueError, match=r"a video is \(B, F, 3, H, W\)"):
        codec.moments(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"latents are \(B, F, 4, h, w\)"):
        codec.decode(torch.zeros(1, 2, 8, 4, 4))


def test_missing_sources_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no folder; give 'embedded'"):
        KLCodec(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"holds no autoencoder: give the one with config\.json"):
        KLCodec(tmp_path)
    calls = []

    def refuse(source: str, local_files_only: bool, **options: object) -> None:
        calls.append(local_files_only)
        raise OSError("no network")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", refuse)
    with pytest.raises(FileNotFoundError, match="hf download stabilityai/sd-vae-ft-ema --local-dir FOLDER"):
        KLCodec("stabilityai/sd-vae-ft-ema")
    assert calls == [True, False]  # the cache first
