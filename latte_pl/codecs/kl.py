"""KL-regularised autoencoders (Rombach et al. 2022, https://arxiv.org/abs/2112.10752) through diffusers."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from latte_pl.codecs.codec import Codec
from latte_pl.codecs.patch import PatchAutoencoder

EMBEDDED = Path(__file__).parent / "weights" / "shapes_kl_f8"


class KLCodec(Codec):
    """A frozen ``AutoencoderKL`` or embedded ``PatchAutoencoder``; scale and shift come from its configuration.

    Args:
        source: "embedded" (8 pixels a cell, 4 channels, trained on ``MovingShapes``; see weights/README.md), a local
            folder as ``save_pretrained`` writes it, or a hub name such as "stabilityai/sd-vae-ft-ema".
        slice_frames: see ``Codec``.

    Raises:
        FileNotFoundError: the source is neither a folder of weights nor a hub name that is cached or reachable.
    """

    def __init__(self, source: str | Path = "embedded", slice_frames: int = 16) -> None:
        vae = _load(EMBEDDED if source == "embedded" else source)
        super().__init__(
            name=EMBEDDED.name if source == "embedded" else Path(source).name,
            channels=vae.config["latent_channels"],
            factor=vae.factor
            if isinstance(vae, PatchAutoencoder)
            else 2 ** (len(vae.config["block_out_channels"]) - 1),
            scale=vae.config["scaling_factor"],
            shift=vae.config.get("shift_factor") or 0.0,
            slice_frames=slice_frames,
        )
        self.vae = vae.to(memory_format=torch.channels_last)  # a third faster on a CPU in float32
        self.eval().requires_grad_(False)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(frames.to(self.vae.dtype)).latent_dist  # clamps the log-variance to [-30, 20]
        return posterior.mean, posterior.logvar

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype)).sample


def _load(source: str | Path) -> Any:  # diffusers' classes hide their attributes from mypy
    """Load weights as float32 from a folder, else from the hub's cache, else from the hub."""
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}  # or it warns that accelerate is missing
    if (folder := Path(source)).is_dir():
        try:
            name = json.loads((folder / "config.json").read_text()).get("_class_name")
            kind = PatchAutoencoder if name == PatchAutoencoder.__name__ else AutoencoderKL
            return kind.from_pretrained(folder, local_files_only=True, **options)
        except OSError as error:
            raise FileNotFoundError(
                f"the folder {source} holds no autoencoder: give the one with config.json and "
                f"diffusion_pytorch_model.safetensors (often called vae)"
            ) from error
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        for local_files_only in (True, False):
            try:
                return AutoencoderKL.from_pretrained(str(source), local_files_only=local_files_only, **options)
            except (OSError, ValueError) as error:
                cause = error
        raise FileNotFoundError(
            f"the autoencoder {source!r} is no folder, not in the hub's cache and can't be downloaded: run "
            f"'hf download {source} --local-dir FOLDER' where there is a network, and give that FOLDER instead"
        ) from cause
    raise FileNotFoundError(
        f"the autoencoder {str(source)!r} is no folder; give 'embedded', a folder, or a hub name like "
        f"'stabilityai/sd-vae-ft-ema'"
    )
