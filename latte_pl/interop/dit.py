"""Start a video model from the weights of an image model (DiT) or of another model of this package.

DiT (Peebles & Xie 2023; facebookresearch/DiT) is `latte_pl.nn.Latte(variant="spatial")` on one frame. Parameters have
the same names and layouts. The position table is a parameter in DiT and a buffer outside the state dict here.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from latte_pl import hub
from latte_pl.interop.torch_file import load_torch_file
from latte_pl.nn import Latte, LatteConfig
from latte_pl.nn.blocks import SpatialBlock, TemporalBlock
from latte_pl.nn.latte import SIZES
from latte_pl.nn.positions import sincos_2d
from latte_pl.training import weights

Labels = Literal["new", "keep", "drop"]
Temporal = Literal["copy", "identity"]

PATCH_WEIGHT = "x_embedder.proj.weight"
LABEL_TABLE = "y_embedder.embedding_table.weight"
REQUIRED = (
    PATCH_WEIGHT,
    "t_embedder.mlp.2.bias",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
    "final_layer.adaLN_modulation.1.weight",
)
VIDEO_OPTIONS = ("depth", "num_heads", "patch_embed", "temporal_stride", "temporal_position", "variant")
"""Options of a video model that its image model does not have, or has in another way."""
CONVERTED_OPTIONS = (
    *("size", "input_size", "num_frames", "learn_sigma", "conditioning", "num_classes", "text_dim", "text_length"),
    *("token_placement", "class_dropout", "activation_checkpointing"),
)
"""Options that `load_dit` converts or checks itself, or that no parameter depends on.

All other options must be equal in both models.
"""


class Row(NamedTuple):
    """One row of the table: what happened to the parameters of one part of a model.

    Attributes:
        part: Name of the part.
        status: "copied" from parameters of the DiT that are used once, "repeated" from parameters that are used several
            times, "new" (as initialised), or "dropped" (parameters of the DiT that are not used).
        num_parameters: Number of parameters.
        note: Where they come from, or why they are dropped.
    """

    part: str
    status: Literal["copied", "repeated", "new", "dropped"]
    num_parameters: int
    note: str


@dataclass
class Transfer:
    """Which parameters a model took from a DiT. Its string is a table.

    Args:
        rows: Parts of the model, then parts of the DiT that were dropped.
    """

    rows: list[Row]

    def count(self, *statuses: str) -> int:
        """Return the number of parameters with one of these statuses."""
        return sum(row.num_parameters for row in self.rows if row.status in statuses)

    def __str__(self) -> str:
        width = max(len(row.part) for row in self.rows)
        lines = [f"{'part':<{width}}  {'':<8}  {'parameters':>12}"]
        lines += [
            f"{row.part:<{width}}  {row.status:<8}  {row.num_parameters:>12,}  {row.note}".rstrip() for row in self.rows
        ]
        taken, new = self.count("copied", "repeated"), self.count("new")
        return "\n".join([*lines, f"{taken:,} of {taken + new:,} parameters come from the source"])


class SourceModel(NamedTuple):
    """An image model, or a video model with the same arrangement of blocks as the model that starts from it.

    Attributes:
        state: State dict.
        options: Options of `latte_pl.nn.Latte`. ``num_heads`` is None if it is unknown, because weights do not show it.
    """

    state: dict[str, Tensor]
    options: dict[str, Any]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("blocks."))


@torch.no_grad()
def load_dit(
    net: Latte, source: str | Path | Mapping[str, Any], labels: Labels = "new", temporal: Temporal = "copy"
) -> Transfer:
    """Load the weights of a DiT into a model in place (ImageNet pretraining of the Latte paper).

    Which block of the model starts from which block of the DiT depends on the numbers of blocks:

    - Equally many blocks: block i starts from block i, as in the paper. With "late_fusion", the second half of the DiT
      becomes temporal blocks.
    - An interleaved or late-fusion model with as many *spatial* blocks as the DiT has blocks: the spatial blocks start
      from the DiT's blocks in order, and so do the temporal blocks.
    - A split variant with fewer blocks: evenly spaced blocks of the DiT, including the first and the last.

    "split_heads" has the head width of the DiT if its ``num_heads`` is twice that of the DiT. With equal ``num_heads``,
    pairs of heads are merged, so the attention layers do not compute the same function as in the DiT.

    With "compression", the patch kernel is repeated for each of the s frames of a tubelet and divided by s (average
    inflation of ViViT), and the final layer is repeated s times. A tubelet of equal frames then gives the output of the
    DiT for each frame. If ``learn_sigma`` differs, the variance channels are dropped, or are zero at the start.

    Args:
        net: The model, freshly initialised. New parameters keep their values.
        source: One of

            - an official ``.pt`` file, or a state dict in a ``.safetensors`` file
            - the content of such a file: a state dict, or a dictionary with one under "ema" (preferred) or "model"
            - an address of the hub (hf://OWNER/REPO/FILE) of one of these files
            - a run's folder, a checkpoint, exported weights or shipped weights of this package, of which the EMA is
              used. The model has the variant "spatial", or the variant of ``net`` to start a video model with
              another condition; then temporal layers are copied, too.
        labels: "new" keeps the initial label table, for other classes. "keep" copies it. "drop" is for models without
            classes: the null class (last row of the table) is added to the timestep embedding, because the condition of
            a DiT is always the sum of timestep and label. Layers that read captions are zero at the start.
        temporal: "copy" initialises temporal layers from the spatial layers of the DiT. "identity" makes them
            identities: gates of temporal blocks and output projections of the temporal attention of split blocks are
            zero.

    Returns:
        The numbers of parameters that were copied, repeated, dropped and are new.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source is not a DiT or does not fit the model; both values are named.
    """
    image = read_dit(source, net)
    _check(net, image, labels, temporal)
    blocks, stride = block_map(net, image.depth), net.config.temporal_stride
    origins = {name: _origin(name, net, blocks, labels, temporal, image) for name in net.state_dict()}
    if missing := sorted({origin for origin in origins.values() if origin} - image.state.keys()):
        raise ValueError(f"the source is not a complete checkpoint of DiT; missing {', '.join(missing)}")
    entries: dict[tuple[str, Any], list[tuple[int, str]]] = defaultdict(list)  # (part, status): (parameters, origin)
    values: dict[str, Tensor] = {}
    used: set[str] = set()

    def add(name: str, status: str, count: int, origin: str = "") -> None:
        if count:
            entries[part_of(name, net), status].append((count, origin))

    for name, own in net.state_dict().items():
        origin = origins[name]
        if origin is None:
            values[name] = _initial_value(name, own, net)
            add(name, "new", own.numel())
            continue
        value, count = image.state[origin].to(own), own.numel()
        status = "repeated" if origin in used else "copied"
        used.add(origin)
        if name == PATCH_WEIGHT and value.ndim < own.ndim:
            value = value.unsqueeze(2).expand_as(own) / own.shape[2]
            status = "repeated" if stride > 1 else "copied"
        elif name == "t_embedder.mlp.2.bias" and labels == "drop" and LABEL_TABLE in image.state:
            value = value + image.state[LABEL_TABLE][-1].to(own)
        elif name.startswith("final_layer.linear") and "frames.weight" not in image.state:
            value, shared = convert_final_layer(value, net)
            count, status = shared * stride, "repeated" if stride > 1 else "copied"
            add(name, "new", own.numel() - count)
            add(name, "dropped", image.state[origin].numel() - shared)
        add(name, status, count, origin)
        if value.shape != own.shape:
            raise ValueError(f"{name} has shape {tuple(own.shape)} in the model and {tuple(value.shape)} in the source")
        values[name] = value
    net.load_state_dict(values)
    rows = [Row(part, status, *_summary(found, part, net, image)) for (part, status), found in entries.items()]
    rows.sort(key=lambda row: row.status == "dropped")
    return Transfer(rows + _dropped_rows(image, used, labels))


def read_dit(source: str | Path | Mapping[str, Any], net: Latte) -> SourceModel:
    """Read the weights of a DiT, or of a model of this package that ``net`` can start from. No code is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source is not a DiT.
    """
    content: Any = source
    if not isinstance(source, Mapping):
        path = hub.find(source)
        if path.suffix == ".pt" and path.is_file():
            content = load_torch_file(path)
        elif path.suffix == ".safetensors" and path.is_file() and "config" not in weights.metadata(path):
            content = load_file(path)
        else:
            return _read_own(path, net)
    part = next((part for part in ("ema", "model") if part in content), None)
    state = dict(content[part] if part else content)
    if missing := [name for name in REQUIRED if name not in state]:
        raise ValueError(f"the source is not a checkpoint of DiT; missing {', '.join(missing)}")
    width, in_channels, *_, patch_size = state[PATCH_WEIGHT].shape
    heads = {width: num_heads for width, _, num_heads in SIZES.values()}
    options = {field.name: field.default for field in fields(LatteConfig)} | {
        "variant": "spatial",
        "hidden_size": width,
        "num_heads": heads.get(width),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / width,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
    }
    return SourceModel(state, options)


def block_map(net: Latte, depth: int) -> list[int]:
    """Return the index of the DiT's block from which each block of a model starts; see `load_dit`.

    Args:
        net: The model.
        depth: Number of blocks of the DiT.

    Raises:
        ValueError: The numbers of blocks do not fit.
    """
    own, variant = len(net.blocks), net.config.variant
    if own == depth:
        return list(range(own))
    spatial = [isinstance(block, SpatialBlock) for block in net.blocks]
    if sum(spatial) == depth:
        return [spatial[:i].count(kind) for i, kind in enumerate(spatial)]
    if variant.startswith("split") and own < depth:
        return [round(i * (depth - 1) / max(own - 1, 1)) for i in range(own)]
    fitting = {"spatial": f"{depth}", "split_attention": f"at most {depth}", "split_heads": f"at most {depth}"}
    raise ValueError(
        f"the DiT has {depth} blocks and the {variant} model has {own}; set depth to "
        f"{fitting.get(variant, f'{depth}, or to {2 * depth} with {depth} spatial blocks')}"
    )


def convert_final_layer(value: Tensor, net: Latte) -> tuple[Tensor, int]:
    """Convert weight or bias of DiT's final linear layer to the output channels and the tubelets of a model.

    Args:
        value: (p p C', ...), with C' output channels of the DiT.
        net: The model, with s frames per tubelet and C" output channels.

    Returns:
        The tensor (p p s C", ...), zero for channels that the DiT does not have, and the number of elements of
        ``value`` that are in it.
    """
    num_cells = net.config.patch_size**2
    theirs = value.unflatten(0, (num_cells, -1))  # (p p, C', ...)
    own = theirs.new_zeros(num_cells, net.config.temporal_stride, net.config.out_channels, *theirs.shape[2:])
    channels = min(net.config.out_channels, theirs.shape[1])  # noise first, then variance
    own[:, :, :channels] = theirs[:, None, :channels]
    return own.flatten(0, 2), theirs[:, :channels].numel()


def part_of(name: str, net: Latte) -> str:
    """Return the part of the model, as the table names it, to which a parameter belongs."""
    module, *inner = name.split(".")
    if module != "blocks":
        parts = {
            "x_embedder": "patch embedding",
            "t_embedder": "timestep embedding",
            "y_embedder": "label table",
            "text_embedder": "caption projection",
            "final_layer": "final layer",
            "frames": "frame decoder",
        }
        return parts.get(module, module)
    if "cross_attn" in inner:
        return "cross-attention"
    if "attn_temporal" in inner:
        return "temporal attention"
    block = net.blocks[int(inner[0])]
    if isinstance(block, SpatialBlock):
        return "spatial blocks"
    if isinstance(block, TemporalBlock):
        return "temporal blocks"
    return "spatial attention" if "attn" in inner else "MLP and modulation"


def _origin(
    name: str, net: Latte, blocks: list[int], labels: Labels, temporal: Temporal, image: SourceModel
) -> str | None:
    """Return the parameter of the DiT from which a parameter of the model starts, or None for a new one."""
    part = part_of(name, net)
    if part == "label table" and labels != "keep":
        return None
    if temporal == "identity" and part in ("temporal blocks", "temporal attention"):
        return None
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        name = f"blocks.{blocks[int(index)]}.{rest}"
        if name not in image.state:
            name = name.replace("attn_temporal", "attn")
    # a DiT has none of these; a model of this package may have them
    if part in ("frame decoder", "caption projection", "cross-attention") and name not in image.state:
        return None
    return name


def _initial_value(name: str, own: Tensor, net: Latte) -> Tensor:
    """Return the value of a parameter that does not come from the DiT."""
    if name == "frames.weight":  # (s C', C', s, 1, 1): frame k takes the channels k C' to (k + 1) C'
        frames = torch.eye(net.config.temporal_stride)[:, None, None]  # (s, 1, 1, s)
        channels = torch.eye(net.config.out_channels)[None, :, :, None]  # (1, C', C', 1)
        return (frames * channels).flatten(0, 1)[..., None, None].to(own)
    zero = "adaLN_modulation" in name or "attn_temporal.proj" in name or name == "frames.bias"
    return torch.zeros_like(own) if zero else own


def _check(net: Latte, image: SourceModel, labels: Labels, temporal: Temporal) -> None:
    """Check that model, source and arguments fit together.

    Raises:
        ValueError: They do not; both values are named.
    """
    for argument, value, choices in (("labels", labels, Labels), ("temporal", temporal, Temporal)):
        if value not in get_args(choices):
            raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(get_args(choices))}")
    config, state, options = net.config, image.state, image.options
    if config.injection == "tokens":
        raise ValueError("a DiT needs the gates of its modulation, which the model has only with injection=adaln")
    ignored = set(CONVERTED_OPTIONS)
    if options["variant"] == "spatial":
        ignored |= set(VIDEO_OPTIONS)
        if options["num_heads"] is not None and config.variant != "split_heads":
            ignored.remove("num_heads")
    for name in (field.name for field in fields(LatteConfig) if field.name not in ignored):
        if options[name] != getattr(config, name):
            raise ValueError(
                f"{name} is {options[name]} in the source and {getattr(config, name)} in the model; they must be equal"
            )
    if (labels == "drop") != (config.conditioning != "class"):
        needed = "drop" if config.conditioning != "class" else "new or keep"
        raise ValueError(f"labels is {labels}; with conditioning={config.conditioning} it must be {needed}")
    num_rows = len(state.get(LABEL_TABLE, ()))
    if labels == "keep" and num_rows != config.num_classes + 1:
        raise ValueError(
            f"the label table has {num_rows} rows in the source and {config.num_classes + 1} in the model (num_classes "
            "and the null class); set labels to new"
        )
    if "pos_embed" in state:
        table = state["pos_embed"][0].float()
        num_patches, side = len(table), math.isqrt(len(table))
        grid = config.grid if math.prod(config.grid) == num_patches else (side, num_patches // side)
        expected = sincos_2d(*grid, config.hidden_size)
        # the tolerance accepts tables in half precision
        if table.shape != expected.shape or not torch.allclose(table, expected, atol=1e-3):
            raise ValueError("pos_embed of the source is not the sin-cos table of the official code")


def _summary(entries: list[tuple[int, str]], part: str, net: Latte, image: SourceModel) -> tuple[int, str]:
    """Return number of parameters and note of a row."""
    indices = sorted({int(origin.split(".")[1]) for _, origin in entries if origin.startswith("blocks.")})
    notes = [f"of block{'s' * (len(indices) > 1)} {', '.join(map(str, indices))}"] if indices else []
    theirs, own = image.options["num_heads"], net.config.num_heads // 2
    merged = net.config.variant == "split_heads" != image.options["variant"] and own != (theirs or own)
    if indices and part.endswith("attention") and merged:
        notes.append(f"its {theirs} heads are merged to {own}, which changes its function")
    return sum(count for count, _ in entries), "; ".join(notes)


def _dropped_rows(image: SourceModel, used: set[str], labels: Labels) -> list[Row]:
    """Return the rows of the source's parameters that the model does not use."""
    unused = {name: value.numel() for name, value in image.state.items() if name not in used}
    rows = []
    if blocks := {name: count for name, count in unused.items() if name.startswith("blocks.")}:
        indices = sorted({int(name.split(".")[1]) for name in blocks})
        rows.append(Row("source's blocks", "dropped", sum(blocks.values()), ", ".join(map(str, indices))))
    notes = {
        LABEL_TABLE: "its null class is added to the timestep embedding" if labels == "drop" else "",
        "pos_embed": "the model computes the same table",
    }
    for name in sorted(unused.keys() - blocks.keys()):
        part = re.sub(r"\.weight$", "", name)
        rows.append(Row(f"source's {part}", "dropped", unused[name], notes.get(name, "")))
    return rows


def _read_own(path: Path, net: Latte) -> SourceModel:
    """Read the EMA of a model of this package: an image model, or a video model with the variant of ``net``.

    Raises:
        ValueError: It is another model.
    """
    found = weights.read(path)
    description = found.config["model"]["net"]
    if not description["class_path"].endswith(f".{Latte.__name__}"):
        raise ValueError(f"{path} contains a {description['class_path']}; load_dit needs a latte_pl.nn.Latte")
    config = LatteConfig(**description["init_args"])
    fits = config.patch_embed == "uniform" if config.variant == "spatial" else config.variant == net.config.variant
    if not fits:
        raise ValueError(
            f"{path} contains a model with variant={config.variant} and patch_embed={config.patch_embed}; it must be "
            f"an image model (variant=spatial, patch_embed=uniform) or have variant={net.config.variant}"
        )
    return SourceModel(found.ema, {field.name: getattr(config, field.name) for field in fields(LatteConfig)})
