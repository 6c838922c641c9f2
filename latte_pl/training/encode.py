"""`latte encode`: a data set's latents, once and for all epochs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from latte_pl.codecs import Codec, TextEncoder
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.encoding import encode, size_on_disk


def main(args: Sequence[str], parser_class: type[LightningArgumentParser]) -> None:
    """Encode what ``data`` and the codecs of the configurations describe; other settings are passed over.

    Raises:
        ValueError: When the cache is of other settings, or the configuration is itself one that reads latents.
    """
    parser = parser_class(prog="latte encode", description="Encode every frame of a data set into a latent cache.")
    parser.add_argument(
        "-c", "--config", action="config", help="Configuration; data, model.codec, model.text_encoder are used."
    )
    parser.add_subclass_arguments(VideoDataModule, "data", required=True)
    parser.add_subclass_arguments(Codec, "model.codec", required=True)
    parser.add_subclass_arguments(TextEncoder, "model.text_encoder", required=False)
    parser.add_argument("--output", type=str, required=True, help="Folder of the cache; one begun before goes on.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ... or auto.")
    made = parser.instantiate_classes(parser.parse_args(_relevant(args)))
    data, output, name = made.data, Path(made.output), made.device
    if data.latents is not None:
        raise ValueError(f"data.latents is {data.latents}; leave it out to encode the videos")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        codec = made.model.codec.to(device)
        text = made.model.text_encoder.to(device) if data.captions and made.model.get("text_encoder") else None
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} cannot be used ({str(error).splitlines()[0]})") from error
    if data.captions and text is None:
        raise ValueError("data.captions is true; set model.text_encoder to encode them, or data.captions to false")
    dataset = data.open("all", num_frames=1, interval=1)
    manifest = encode(dataset, codec, output, data.settings, data.flip, device, text=text)
    frames = sum(video.num_frames for video in manifest.videos)
    views = 2 if manifest.settings["mirrored"] else 1
    print(f"{output}: {len(dataset):,} videos, {frames:,} frames, {views} views, {size_on_disk(output) / 1e9:.2f} GB")
    print(
        f"train with --data.latents {output}"
        if manifest.checksums
        else "other processes are still at work on it; the last one finishes the cache"
    )


def _relevant(args: Sequence[str]) -> list[str]:
    """Replace configuration files by the parts of them that matter here, so that whole run configurations work too."""
    out: list[str] = []
    for n, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if n and args[n - 1] in ("-c", "--config"):
            out.append(_part(arg))
        elif name in ("-c", "--config") and value:
            out.append(f"{name}={_part(value)}")
        else:
            out.append(arg)
    return out


def _part(path: str) -> str:
    config: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    part = {"data": config["data"]} if "data" in config else {}
    codecs = {name: value for name, value in config.get("model", {}).items() if name in ("codec", "text_encoder")}
    if codecs:
        part["model"] = codecs
    return json.dumps(part)
