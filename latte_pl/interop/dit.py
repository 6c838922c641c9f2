"""DiT checkpoints as the start of a video model: an image model's weights in a Latte of any variant.

DiT (Peebles & Xie 2023; facebookresearch/DiT) is `latte_pl.nn.Latte(variant="spatial")` on one frame: parameters have
the same names and layouts there, and the position table, a parameter there, is a buffer outside the state dict here.
"""

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from latte_pl.nn import Latte
from latte_pl.nn.latte import SIZES
from latte_pl.nn.positions import sincos_2d
from latte_pl.nn.variants import SpatialBlock, TemporalBlock
from latte_pl.training import weights

Labels = Literal["new", "keep", "drop"]
Temporal = Literal["copy", "identity"]

NEEDED = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.2.bias",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
    "final_layer.adaLN_modulation.1.weight",
)
LABEL_TABLE = "y_embedder.embedding_table.weight"
# layers that later transformers have in the place of DiT's, as DiT has them
RECIPE = {"spatial_position": "absolute", "qk_norm": False, "swiglu": False, "rms_norm": False}


class Row(NamedTuple):
    """One line of the table: a part of the model, what became of it, how many parameters, and where from."""

    part: str
    fate: Literal["copied", "repeated", "new", "dropped"]
    num_parameters: int
    note: str


@dataclass
class Transfer:
    """What a model took from a DiT; its text is a table.

    Args:
        rows: Parts of the model (copied: from a place of its own in the DiT; repeated: also found elsewhere in the
            model; new: as initialised), then parts of the DiT that were dropped.
    """

    rows: list[Row]

    def count(self, *fates: str) -> int:
        """Return the number of parameters with one of these fates."""
        return sum(row.num_parameters for row in self.rows if row.fate in fates)

    def __str__(self) -> str:
        width = max(len(row.part) for row in self.rows)
        lines = [f"{'part':<{width}}  {'':<8}  {'parameters':>12}"]
        lines += [
            f"{row.part:<{width}}  {row.fate:<8}  {row.num_parameters:>12,}  {row.note}".rstrip() for row in self.rows
        ]
        taken, new = self.count("copied", "repeated"), self.count("new")
        return "\n".join([*lines, f"{taken:,} of {taken + new:,} parameters start from it"])


class ImageModel(NamedTuple):
    """A DiT's weights, its number of heads where that is known (the weights don't tell), and which layers it has.

    A video model of the same arrangement may stand in its place, with temporal layers of its own.
    """

    state: dict[str, Tensor]
    num_heads: int | None
    recipe: dict[str, Any]
    variant: str = "spatial"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("blocks."))


@torch.no_grad()
def load_dit(
    net: Latte, source: str | Path | Mapping[str, Any], labels: Labels = "new", temporal: Temporal = "copy"
) -> Transfer:
    """Load a DiT into a model in place (ImageNet pretraining of the Latte paper).

    Block i of the model takes block i of the DiT, as in the paper, where both have equally many: the parameters stay at
    their depth, and with "late_fusion" the DiT's second half becomes temporal. An interleaved or late-fusion model with
    as many *spatial* blocks as the DiT has blocks takes them in order, and each again for the temporal block of that
    rank. The split variants, which have fewer blocks at a size, take evenly spaced ones, the first and the last among
    them: those next to the embedding and to the final layer, which are copied too. Their heads are as wide as DiT's in
    "split_attention", and in "split_heads" with twice the DiT's ``num_heads``; at equal ``num_heads`` the latter merges
    heads in pairs and is a start, not the DiT's function.

    With "compression" the patch kernel is repeated s times and divided by s (ViViT's average inflation), the final
    layer is repeated for each of the s frames, and the transposed convolution hands each frame its own channels: a
    tubelet of equal frames is then the DiT's image. Where ``learn_sigma`` differs, the variance channels are dropped,
    or start at zero.

    Args:
        net: the model, freshly initialised: what is new keeps its values.
        source: an official ``.pt`` file, a state dict in a ``.safetensors`` file, its content (a state dict, or one
            under "ema", taken first, or "model"); or a run's folder, checkpoint, release file or shipped weights of a
            model of this repository, of which the average is taken, and whose ``spatial_position``, ``qk_norm``,
            ``swiglu`` and ``rms_norm`` are those of the model. Its variant is "spatial", or the model's own: a video
            model, whose temporal layers are copied as they are, to start one of another condition.
        labels: "new" draws the label table anew, for other classes; "keep" copies it; "drop" is for a model without
            classes (captions are read by layers that start at zero), whose timestep embedding gets the null class (the
            table's last row) added: in DiT every condition is timestep plus label.
        temporal: "copy" loads temporal layers from the DiT's blocks, "identity" lets them start as identities: gates
            of temporal blocks, and output layers of the temporal attention of split blocks, are zero.

    Returns:
        What was copied, repeated, dropped and is new.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the source is no DiT, or does not fit the model; both values are named.
    """
    image = read_dit(source, net)
    _check(net, image, labels, temporal)
    blocks, stride = block_map(net, image.depth), net.temporal_stride
    ledger: dict[tuple[str, Any], list[tuple[int, str]]] = defaultdict(list)
    origins = {name: _origin(name, net, blocks, labels, temporal, image) for name in net.state_dict()}
    for name in filter(_reads_text, origins):  # a DiT has none of these, an image model of captions has
        origins[name] = origins[name] if origins[name] in image.state else None
    if missing := sorted({origin for origin in origins.values() if origin} - image.state.keys()):
        raise ValueError(f"not a whole checkpoint of DiT: missing {', '.join(missing)}")
    values: dict[str, Tensor] = {}
    taken: set[str] = set()

    def note(name: str, fate: str, count: int, origin: str = "") -> None:
        if count:
            ledger[part_of(name, net), fate].append((count, origin))

    for name, own in net.state_dict().items():
        origin = origins[name]
        if origin is None:
            values[name] = _new(name, own, net)
            note(name, "new", own.numel())
            continue
        value = image.state[origin].to(own)
        fate = "repeated" if origin in taken else "copied"
        taken.add(origin)
        if name == "x_embedder.proj.weight" and value.ndim < own.ndim:
            value = value.unsqueeze(2).expand_as(own) / own.shape[2]
            fate = "repeated" if stride > 1 else "copied"
        elif name == "t_embedder.mlp.2.bias" and labels == "drop" and LABEL_TABLE in image.state:
            value = value + image.state[LABEL_TABLE][-1].to(own)
        count = own.numel()
        if name.startswith("final_layer.linear") and "frames.weight" not in image.state:
            value, shared = decoder(value, net)
            count, fate = shared * stride, "repeated" if stride > 1 else "copied"
            note(name, "new", own.numel() - count)
            note(name, "dropped", image.state[origin].numel() - shared)
        note(name, fate, count, origin)
        if value.shape != own.shape:
            raise ValueError(f"{name} is {tuple(own.shape)} in the model and {tuple(value.shape)} in the DiT")
        values[name] = value
    net.load_state_dict(values)
    rows = [Row(part, fate, *_sum(entries, part, net, image)) for (part, fate), entries in ledger.items()]
    rows.sort(key=lambda row: row.fate == "dropped")
    return Transfer(rows + _dropped(image, taken, labels))


def read_dit(source: str | Path | Mapping[str, Any], net: Latte) -> ImageModel:
    """Read the weights of a DiT, or of a model of this repository that ``net`` can start from; nothing is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a DiT.
    """
    content: Any = source
    if not isinstance(source, Mapping):
        path = Path(source)
        if path.suffix == ".pt" and path.is_file():
            content = _torch(path)
        elif path.suffix == ".safetensors" and path.is_file() and "config" not in weights.metadata(path):
            content = load_file(path)
        else:
            return _own(path, net)
    part = next((part for part in ("ema", "model") if part in content), None)
    state = dict(content[part] if part else content)
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise ValueError(f"not a checkpoint of DiT: missing {', '.join(missing)}")
    heads = {width: num_heads for width, _, num_heads in SIZES.values()}
    recipe = RECIPE | {"qk_norm": "blocks.0.attn.q_norm.weight" in state}
    return ImageModel(state, heads.get(len(state["x_embedder.proj.weight"])), recipe)


def block_map(net: Latte, depth: int) -> list[int]:
    """Name the DiT block that each block of a model takes, see `load_dit`.

    Args:
        net: the model.
        depth: blocks of the DiT.

    Raises:
        ValueError: no map is sensible.
    """
    own = len(net.blocks)
    if own == depth:
        return list(range(own))
    spatial = [isinstance(block, SpatialBlock) for block in net.blocks]
    if sum(spatial) == depth:
        return [spatial[:i].count(kind) for i, kind in enumerate(spatial)]
    if net.variant.startswith("split") and own < depth:
        return [round(i * (depth - 1) / max(own - 1, 1)) for i in range(own)]
    fitting = {"spatial": f"{depth}", "split_attention": f"{depth} or fewer", "split_heads": f"{depth} or fewer"}
    raise ValueError(
        f"the DiT has {depth} blocks and the {net.variant} model {own}: it fits a depth of "
        f"{fitting.get(net.variant, f'{depth}, or {2 * depth} with {depth} spatial blocks')}"
    )


def decoder(value: Tensor, net: Latte) -> tuple[Tensor, int]:
    """Lay DiT's final linear layer (p p C', ...) out for a model of other channels or s frames a tubelet.

    Returns:
        The layer (p p s C', ...), zero where the DiT has none, and how many of the DiT's numbers are in it.
    """
    places = net.patch_size**2
    theirs = value.unflatten(0, (places, -1))  # (p p, C', ...)
    own = theirs.new_zeros(places, net.temporal_stride, net.out_channels, *theirs.shape[2:])
    channels = min(net.out_channels, theirs.shape[1])  # noise first, then variance
    own[:, :, :channels] = theirs[:, None, :channels]
    return own.flatten(0, 2), theirs[:, :channels].numel()


def part_of(name: str, net: Latte) -> str:
    """Return the part of the model, as the table names it, that a parameter belongs to."""
    if ".cross_attn." in name:
        return "cross-attention"
    if name.startswith("blocks."):
        if "attn_temporal" in name:
            return "temporal attention"
        block = net.blocks[int(name.split(".")[1])]
        if isinstance(block, SpatialBlock):
            return "spatial blocks"
        if isinstance(block, TemporalBlock):
            return "temporal blocks"
        return "spatial attention" if ".attn." in name else "MLP and modulation"
    parts = {
        "x_embedder": "patch embedding",
        "t_embedder": "timestep embedding",
        "y_embedder": "label table",
        "text_embedder": "caption projection",
        "final_layer": "final layer",
        "frames": "frame decoder",
    }
    return parts[name.split(".")[0]]


def _reads_text(name: str) -> bool:
    return name.startswith("text_embedder") or ".cross_attn." in name


def _origin(
    name: str, net: Latte, blocks: list[int], labels: Labels, temporal: Temporal, image: ImageModel
) -> str | None:
    """Return the DiT's parameter that one of the model comes from; None for a new one."""
    if name.startswith("y_embedder") and labels != "keep":
        return None
    if name.startswith("frames"):
        return name if name in image.state else None
    if not name.startswith("blocks."):
        return name
    _, number, rest = name.split(".", 2)
    if temporal == "identity" and part_of(name, net).startswith("temporal"):
        return None
    own = f"blocks.{blocks[int(number)]}.{rest}"
    return own if own in image.state else own.replace("attn_temporal", "attn")


def _new(name: str, own: Tensor, net: Latte) -> Tensor:
    """Return the value of a parameter that no DiT has."""
    if name == "frames.weight":  # (s C', C', s, 1, 1): frame k takes the channels k C' to (k + 1) C'
        frames = torch.eye(net.temporal_stride)[:, None, None]  # (s, 1, 1, s)
        channels = torch.eye(net.out_channels)[None, :, :, None]  # (1, C', C', 1)
        return (frames * channels).flatten(0, 1)[..., None, None].to(own)
    closes = "adaLN_modulation" in name or "attn_temporal.proj" in name or name == "frames.bias"
    return torch.zeros_like(own) if closes else own


def _check(net: Latte, image: ImageModel, labels: Labels, temporal: Temporal) -> None:
    """Refuse a pair that does not fit."""
    for argument, value, choices in (("labels", labels, Labels), ("temporal", temporal, Temporal)):
        if value not in get_args(choices):
            raise ValueError(f"{argument} must be one of {', '.join(get_args(choices))}, got {value!r}")
    if net.injection == "tokens":
        raise ValueError('a DiT acts through the gates of its modulation, which injection="tokens" lacks: take "adaln"')
    state = image.state
    width, channels, *_, patch = state["x_embedder.proj.weight"].shape
    pairs = [
        ("hidden_size", width, net.hidden_size),
        ("in_channels", channels, net.in_channels),
        ("patch_size", patch, net.patch_size),
        *((name, image.recipe[name], getattr(net, name)) for name in RECIPE),
    ]
    if not net.swiglu:
        pairs.append(("mlp_ratio", len(state["blocks.0.mlp.fc1.weight"]) / width, net.mlp_ratio))
    if image.variant != "spatial":
        pairs.append(("depth", image.depth, net.depth))
    if image.num_heads is not None and (net.variant != "split_heads" or image.variant == "split_heads"):
        pairs.append(("num_heads", image.num_heads, net.num_heads))
    for name, theirs, own in pairs:
        if theirs != own:
            raise ValueError(f"the DiT has {name} {theirs} and the model {own}: they must be equal")
    if (labels == "drop") != (net.conditioning != "class"):
        wanted = 'labels="drop"' if net.conditioning != "class" else 'labels "new" or "keep"'
        raise ValueError(f"labels is {labels!r} and the model's conditioning {net.conditioning!r}: take {wanted}")
    if labels == "keep" and len(state.get(LABEL_TABLE, ())) != net.num_classes + 1:
        rows = len(state.get(LABEL_TABLE, ()))
        raise ValueError(
            f"the source's label table has {rows} rows and the model's {net.num_classes + 1} (num_classes and the null "
            'class): take labels="new"'
        )
    if "pos_embed" in state:
        table = state["pos_embed"][0].float()
        places, side = len(table), math.isqrt(len(table))
        grid = net.grid if net.grid[0] * net.grid[1] == places else (side, places // side)
        code = sincos_2d(*grid, width)
        if table.shape != code.shape or not torch.allclose(table, code, atol=1e-3):  # half precision passes
            raise ValueError("pos_embed of the DiT is not the sin-cos table of the official code")


def _sum(entries: list[tuple[int, str]], part: str, net: Latte, image: ImageModel) -> tuple[int, str]:
    """Return the number of parameters of a row, and what to say of it."""
    numbers = sorted({int(origin.split(".")[1]) for _, origin in entries if origin.startswith("blocks.")})
    words = [f"of block{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"] if numbers else []
    heads = net.num_heads // 2
    merged = net.variant == "split_heads" != image.variant and heads != (image.num_heads or heads)
    if numbers and part.endswith("attention") and merged:
        words.append(f"its {image.num_heads} heads merged in {heads}, which changes its function")
    return sum(count for count, _ in entries), "; ".join(words)


def _dropped(image: ImageModel, taken: set[str], labels: Labels) -> list[Row]:
    """List what of the DiT the model has no place for."""
    rest = {name: value.numel() for name, value in image.state.items() if name not in taken}
    rows = []
    if blocks := {name: count for name, count in rest.items() if name.startswith("blocks.")}:
        numbers = sorted({int(name.split(".")[1]) for name in blocks})
        rows.append(Row("source's blocks", "dropped", sum(blocks.values()), ", ".join(map(str, numbers))))
    notes = {
        LABEL_TABLE: "its null class is added to the timestep embedding" if labels == "drop" else "",
        "pos_embed": "the model computes the same code",
    }
    for name in sorted(rest.keys() - blocks.keys()):
        part = re.sub(r"\.weight$", "", name)
        rows.append(Row(f"source's {part}", "dropped", rest[name], notes.get(name, "")))
    return rows


def _torch(path: Path) -> Any:
    """Load a file of torch without executing anything in it."""
    try:
        # DiT's training script saves its arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise ValueError(f"{path} cannot be read as weights alone ({type(error).__name__})") from error


def _own(path: Path, net: Latte) -> ImageModel:
    """Read the averaged weights of a model of this repository: an image model, or a video model like ``net``."""
    read = weights.read(path)
    arguments = read.config["model"]["net"]["init_args"]
    variant, video = arguments.get("variant"), ("variant", "injection", "patch_embed", "temporal_position")
    wanted = {"injection": "adaln", "patch_embed": "uniform"} if variant == "spatial" else {}
    for name, value in (wanted or {name: getattr(net, name) for name in video}).items():
        if arguments.get(name) != value:
            kind = "an image model has" if wanted else "the model has"
            raise ValueError(
                f"{path} holds a model with {name} {arguments.get(name)}, {kind} {value}; start from one of variant "
                "spatial, or of the same arrangement"
            )
    size = arguments.get("size")
    recipe = {name: arguments.get(name, value) for name, value in RECIPE.items()}
    return ImageModel(read.ema, arguments.get("num_heads") or SIZES[size][2], recipe, variant)
