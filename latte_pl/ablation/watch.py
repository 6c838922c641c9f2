"""The callback of a trial: reads its axes back from what was built, stops it when it diverges, and keeps its costs."""

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.metrics.protocol import canonical_json
from latte_pl.metrics.record import write_atomically
from latte_pl.nn import Latte
from latte_pl.nn.attention import SpatialAttention
from latte_pl.nn.latte import SIZES
from latte_pl.nn.patches import TubeletPatches
from latte_pl.nn.perceptron import SwiGLU
from latte_pl.nn.variants import Context, SpatialBlock, SplitAttentionBlock, SplitHeadsBlock, TemporalBlock
from latte_pl.training.cost import count_cost
from latte_pl.training.module import HELD_OUT_SEED, LatteModule
from latte_pl.types import Text


class Watch(Callback):
    """Keeps a trial honest: what is trained is what its row says, and what it costs is written down.

    Writes ``built.json`` (axes, held-out protocol, costs counted) when training starts, ``progress.json`` about once a
    second, and ``cost.json`` (clips a second, peak memory) when it ends.

    Args:
        expected: JSON of the settings that the row states, by dotted name.
        folder: Of the trial.
    """

    def __init__(self, expected: str, folder: str) -> None:
        self.expected: dict[str, Any] = json.loads(expected)
        self.folder = Path(folder)
        self._starts: list[float] = []
        self._written = 0.0
        self._peak = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the axes back.

        Raises:
            ValueError: When the model or the data are not what the row says.
        """
        assert isinstance(pl_module, LatteModule)
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        check(self.expected, pl_module, data)
        axes = {
            name: read(pl_module, data) for name, read in AXES.items()
        }  # on all ranks: sharded weights are gathered
        if not trainer.is_global_zero:
            return
        cost = count_cost(net_of(pl_module), data.num_images)
        built = {
            "axes": axes,
            "held_out": held_out(pl_module, data),
            "parameters": cost.num_parameters,
            "forward_flops": cost.forward_flops,
        }
        write_atomically(self.folder / "built.json", json.dumps(built, indent=1))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when a step starts, and count its memory apart from that of samples."""
        self._starts.append(time.monotonic())
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note the memory that forward and backward took."""
        device = trainer.strategy.root_device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()
        self._peak = max(self._peak, peak)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop a diverged training, and tell how far it is.

        Raises:
            FloatingPointError: When the loss is no number.
        """
        now = time.monotonic()
        loss = float(outputs["loss"]) if trainer.strategy.root_device.type == "cpu" or batch_idx % 50 == 0 else 0.0
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {trainer.global_step}")
        if trainer.is_global_zero and (now - self._written > 1.0 or trainer.global_step == trainer.max_steps):
            self._written = now
            progress = {"step": trainer.global_step, "clips_per_second": self._speed(trainer)}
            write_atomically(self.folder / "progress.json", json.dumps(progress))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the training cost here; one that had nothing left to do has told it before."""
        if not trainer.is_global_zero or not self._starts:
            return
        device = trainer.strategy.root_device
        cuda = device.type == "cuda"
        cost = {
            "clips_per_second": self._speed(trainer) or self._before().get("clips_per_second"),
            "peak_memory": max(self._peak, self._before().get("peak_memory", 0)),
            "device": torch.cuda.get_device_name(device) if cuda else _processor(),
            "threads": torch.get_num_threads(),
        }
        write_atomically(self.folder / "cost.json", json.dumps(cost, indent=1))

    def _before(self) -> dict[str, Any]:
        """Return the costs that an earlier part of the training wrote."""
        path = self.folder / "cost.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _speed(self, trainer: Trainer) -> float | None:
        """Return clips a second: the median from step to step, which validation and samples do not move."""
        gaps = [later - earlier for earlier, later in zip(self._starts[5:], self._starts[6:])]
        if not gaps:
            return None
        clips = trainer.datamodule.global_batch_size / trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        return round(clips / median(gaps), 2)


def _peak_resident() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    """Return the processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def held_out(module: LatteModule, data: VideoDataModule) -> dict[str, Any]:
    """Return all that a held-out loss depends on besides the model: the protocol of that number."""
    diffusion = module.diffusion
    settings = {k: v for k, v in vars(diffusion).items() if isinstance(v, str | int | float)}
    about = {
        "data": type(data).__name__,
        "size": list(data.size),
        "num_frames": data.num_frames,
        "interval": data.val_interval,
        "clips": min(data.val_clips, len(data.dataset("val"))),
        "codec": module.codec.fingerprint(),
        "objective": type(diffusion).__name__,
        # a weight of training alone changes no part, and their sum is what is held out
        "objective_settings": {k: v for k, v in settings.items() if k not in diffusion.training_weights},
        "weights": "ema",
        "seed": HELD_OUT_SEED,
    }
    return about | {"hash": hashlib.sha256(canonical_json(about).encode()).hexdigest()}


# ------------------------------------------------------------------------------------- axes of a built model


def variant(net: Latte) -> str:
    """Return the arrangement that the blocks of a model have."""
    kinds = [type(block) for block in net.blocks]
    for name, kind in (("split_attention", SplitAttentionBlock), ("split_heads", SplitHeadsBlock)):
        if set(kinds) == {kind}:
            return name
    if set(kinds) == {SpatialBlock}:
        return "spatial"
    if kinds == [TemporalBlock if i % 2 else SpatialBlock for i in range(len(kinds))]:
        return "interleaved"
    if kinds == sorted(kinds, key=lambda kind: kind is TemporalBlock):
        return "late_fusion"
    return "unknown"


def temporal_position(net: Latte) -> str:
    """Return how a model knows the order of frames, from what its blocks are given."""
    if net.first_temporal is None:
        return "none"
    return "absolute" if given(net, net.first_temporal).temporal_phases is None else "rope"


def spatial_position(net: Latte) -> str:
    """Return how a model knows the places of patches; its first block has spatial attention in every variant."""
    return "absolute" if given(net, 0).spatial_phases is None else "rope"


def given(net: Latte, block: int) -> Context:
    """Return what a block of a model is given beside the activations, on a small input."""
    seen: list[Context] = []
    hook = net.blocks[block].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    parameter = next(net.parameters())
    inputs: dict[str, Any] = {
        "x": torch.zeros(1, net.num_frames, net.in_channels, *net.input_size, device=parameter.device),
        "timesteps": torch.zeros(1, device=parameter.device),
    }
    if net.conditioning == "text":
        tokens = (1, net.text_length)
        mask = torch.ones(tokens, dtype=torch.bool, device=parameter.device)
        inputs["text"] = Text(torch.zeros(*tokens, net.text_dim, device=parameter.device), mask)
    if net.conditioning == "class":
        inputs["labels"] = torch.zeros(1, dtype=torch.long, device=parameter.device)
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(**inputs)
    finally:
        hook.remove()
        net.train(was_training)
    return seen[0]


def common(values: Iterable[Any]) -> Any:
    """Return the value that all parts of a model share."""
    first, *others = set(values)
    return "mixed" if others else first


def qk_norm(net: Latte) -> Any:
    """Tell whether each self-attention of a model norms queries and keys."""
    attentions = [module for module in net.blocks.modules() if isinstance(module, SpatialAttention)]
    return common(isinstance(norm, nn.RMSNorm) for part in attentions for norm in (part.q_norm, part.k_norm))


def rms_norm(net: Latte) -> Any:
    """Tell whether the norms of blocks and final layer are RMSNorm."""
    norms = [module for name, module in net.named_modules() if name.rpartition(".")[2].startswith("norm")]
    return common(isinstance(norm, nn.RMSNorm) for norm in norms)


def learn_sigma(net: Latte) -> bool:
    """Tell whether a model's output has channels of a variance, from its last layer."""
    noise = net.patch_size**2 * net.in_channels
    if net.frames is not None:
        noise *= net.frames.kernel_size[0]
    return net.final_layer.linear.out_features == 2 * noise


def net_of(module: LatteModule) -> Latte:
    """Return the denoiser of a module.

    Raises:
        ValueError: It is no Latte, whose axes alone can be read back.
    """
    if not isinstance(module.net, Latte):
        raise ValueError(f"a study's rows are of latte_pl.nn.Latte; model.net is a {type(module.net).__name__}")
    return module.net


AXES: dict[str, Callable[[LatteModule, VideoDataModule], Any]] = {
    "variant": lambda module, data: variant(net_of(module)),
    "patch_embed": lambda module, data: (
        "compression" if isinstance(net_of(module).x_embedder, TubeletPatches) else "uniform"
    ),
    "temporal_stride": lambda module, data: (
        net_of(module).x_embedder.proj.kernel_size[0] if isinstance(net_of(module).x_embedder, TubeletPatches) else 1
    ),
    "injection": lambda module, data: "tokens" if net_of(module).blocks[0].adaLN_modulation is None else "adaln",
    "token_placement": lambda module, data: net_of(module).token_placement,
    "temporal_position": lambda module, data: temporal_position(net_of(module)),
    "spatial_position": lambda module, data: spatial_position(net_of(module)),
    "qk_norm": lambda module, data: qk_norm(net_of(module)),
    "swiglu": lambda module, data: common(isinstance(block.mlp, SwiGLU) for block in net_of(module).blocks),
    "rms_norm": lambda module, data: rms_norm(net_of(module)),
    "learn_sigma": lambda module, data: learn_sigma(net_of(module)),
    "conditioning": lambda module, data: net_of(module).conditioning,
    "hidden_size": lambda module, data: net_of(module).pos_embed.shape[-1],
    "depth": lambda module, data: len(net_of(module).blocks),
    "num_heads": lambda module, data: net_of(module).num_heads,
    "num_images": lambda module, data: data.num_images,
    "interval": lambda module, data: data.interval,
    "val_interval": lambda module, data: data.val_interval,
    "num_frames": lambda module, data: data.num_frames,
    "global_batch_size": lambda module, data: data.global_batch_size,
}
"""How each axis is read back: from blocks, layers and what flows through them, not from what was asked for."""
DIFFUSION = ("model.diffusion", "model.diffusion.class_path")


def check(expected: dict[str, Any], module: LatteModule, data: VideoDataModule) -> None:
    """Refuse a model or data that are not what a row says.

    Args:
        expected: Settings by dotted name, such as "model.net.init_args.variant".
        module: As it was built.
        data: As they were opened.

    Raises:
        ValueError: A setting differs, with both values, or there is no way to read it back.
    """
    for key, wanted in expected.items():
        if key == "model.diffusion" and isinstance(wanted, dict):
            arguments = {f"{key}.{name}": value for name, value in wanted.get("init_args", {}).items()}
            check({f"{key}.class_path": wanted["class_path"]} | arguments, module, data)
            continue
        found = read_back(key, module, data)
        if key in DIFFUSION and wanted is not None:  # a class has one name and several paths
            wanted = wanted.rpartition(".")[2]
        # None leaves the choice to what is built; one number may stand for both sides of a square
        if wanted is not None and _plain(wanted) not in (_plain(found), *(set(found) if _square(found) else ())):
            raise ValueError(f"the row sets {key} to {wanted!r}, what was built has {found!r}; the trial is refused")


def read_back(key: str, module: LatteModule, data: VideoDataModule) -> Any:
    """Return a setting's value as it was built.

    Raises:
        ValueError: Nothing that was built shows it.
    """
    root, *names = [part for part in key.split(".") if part != "init_args"]
    if names[-1] in AXES and (root == "data" or names[:1] == ["net"]):
        return AXES[names[-1]](module, data)
    if key in DIFFUSION:
        return type(module.diffusion).__name__
    if names == ["net", "size"]:
        width = net_of(module).pos_embed.shape[-1]
        return next((name for name, (dim, _, _) in SIZES.items() if dim == width), None)
    found: Any = {"model": module, "data": data}.get(root)
    for name in names:
        if not hasattr(found, name):
            raise ValueError(f"the row sets {key}, which nothing that was built shows; leave it to the scale")
        found = getattr(found, name)
    return found


def _square(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
