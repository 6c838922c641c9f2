"""KL-regularised autoencoders (Rombach et al. 2022, https://arxiv.org/abs/2112.10752) through diffusers."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_pl.autoencoders.base import Autoencoder
from latte_pl.autoencoders.hub import load_pretrained, read_config, short_name

BUNDLED = Path(__file__).parent / "weights" / "shapes_kl_f8"
"""Weights of the bundled toy autoencoder."""


class KLAutoencoder(Autoencoder):
    """A frozen ``AutoencoderKL`` of diffusers, or the bundled toy autoencoder.

    Scale and shift of the latents come from its configuration. Weights and computations are in float32.

    Args:
        source: One of

            - "toy": the bundled autoencoder, trained on ``MovingShapes`` (4 channels, 8 pixels per cell; see
              weights/README.md)
            - a local folder that ``save_pretrained`` wrote
            - a Hub name such as "stabilityai/sd-vae-ft-ema", or an address hf://OWNER/REPO/FOLDER[@REVISION]
        slice_frames: Number of 256x256 frames that are processed at once; see `Autoencoder`.

    Raises:
        FileNotFoundError: The source is not a folder of weights, and it is not a Hub name that is cached or can be
            downloaded.
    """

    def __init__(self, source: str | Path = "toy", slice_frames: int = 16) -> None:
        vae = load_pretrained(
            functools.partial(_load, read_config(_resolve(source)) or {}),
            _resolve(source),
            kind="autoencoder",
            files="config.json and diffusion_pytorch_model.safetensors (a pipeline keeps them in its folder vae)",
            example="'stabilityai/sd-vae-ft-ema', or 'toy' for the bundled one",
        )
        channels, factor = _latent_format(vae.config)
        super().__init__(
            name=short_name(_resolve(source)),
            channels=channels,
            factor=factor,
            scale=vae.config["scaling_factor"],
            shift=vae.config.get("shift_factor") or 0.0,
            slice_frames=slice_frames,
        )
        self.source = str(source)
        self.vae = vae.to(memory_format=torch.channels_last)  # a third faster on a CPU in float32
        self.eval().requires_grad_(False)

    @classmethod
    def latent_format(cls, source: str | Path = "toy", **init_args: Any) -> tuple[int, int]:
        """Return ``channels`` and ``factor`` from the configuration in the folder, in the Hub's cache or of an address.

        A Hub name that is not cached yet is taken for an autoencoder like Stable Diffusion's: 4 channels and 8 pixels
        per cell.
        """
        config = read_config(_resolve(source))
        return (4, 8) if config is None else _latent_format(config)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(frames.to(self.vae.dtype)).latent_dist  # clamps the log-variance to [-30, 20]
        return posterior.mean, posterior.logvar

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype)).sample


def _resolve(source: str | Path) -> str | Path:
    return BUNDLED if source == "toy" else source


def _latent_format(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return latent channels and pixels per cell; ``PatchAutoencoder`` always has 8 pixels per cell."""
    resolutions = config.get("block_out_channels")  # AutoencoderKL halves the resolution between its blocks
    return config["latent_channels"], 2 ** (len(resolutions) - 1) if resolutions else 8


# diffusers' classes hide their attributes from mypy
def _load(config: Mapping[str, Any], source: str | Path, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    from latte_pl.autoencoders.patch import PatchAutoencoder

    kind = PatchAutoencoder if config.get("_class_name") == PatchAutoencoder.__name__ else AutoencoderKL
    # without low_cpu_mem_usage=False, diffusers warns that accelerate is missing
    return kind.from_pretrained(source, torch_dtype=torch.float32, low_cpu_mem_usage=False, **options)
