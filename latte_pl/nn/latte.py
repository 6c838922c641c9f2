"""Latte, the latent diffusion transformer for video (Ma et al., arXiv 2401.03048), and its options."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latte_pl import hub
from latte_pl.files import write_text
from latte_pl.nn.blocks import (
    BlockOptions,
    Context,
    FinalLayer,
    SpatialBlock,
    SplitHeadsBlock,
    Variant,
    block_types,
    checkpoint_block,
    expand_per_frame,
    option,
    shared_value,
)
from latte_pl.nn.denoiser import Denoiser
from latte_pl.nn.embeddings import LabelEmbedder, TextEmbedder, TimestepEmbedder
from latte_pl.nn.patches import TubeletFrames, TubeletPatches, UniformPatches, unpatch
from latte_pl.nn.positions import rotary_1d, rotary_2d, sincos_1d, sincos_2d
from latte_pl.rng import torch_generator
from latte_pl.types import Conditioning, Text

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and number of heads of each size, as in DiT."""


# ------------------------------------------------------------------------- readers of options, see `Latte.read_back`


def _read_size(net: "Latte") -> str | None:
    width = net.x_embedder.proj.out_channels
    return next((size for size, (dim, _, _) in SIZES.items() if dim == width), None)


def _read_num_heads(net: "Latte") -> int | str:
    blocks: list[Any] = list(net.blocks)
    return shared_value(block.attn.num_heads * (2 if isinstance(block, SplitHeadsBlock) else 1) for block in blocks)


def _read_input_size(net: "Latte") -> tuple[int, ...] | str:
    height, width = net.input_size  # shapes of layers contain only the number of patches
    return net.input_size if height * width == len(net.pos_embed) * net.x_embedder.patch_size**2 else "mixed"


def _read_variant(net: "Latte") -> str:
    # at depth 2, interleaved and late fusion are the same model: the requested variant comes first
    for variant in (net.config.variant, *LatteConfig.choices()["variant"]):
        types = block_types(variant, len(net.blocks))
        if all(isinstance(block, type_) for block, type_ in zip(net.blocks, types)):
            return variant
    return "unknown"


def _read_learn_sigma(net: "Latte") -> bool:
    embedder = net.x_embedder
    noise = embedder.temporal_stride * embedder.patch_size**2 * embedder.proj.in_channels
    return net.final_layer.linear.out_features == 2 * noise


def _read_conditioning(net: "Latte") -> str:
    if net.text_embedder is not None:
        return "text"
    return "none" if net.y_embedder is None else "class"


def _read_temporal_position(net: "Latte") -> str:
    if all(isinstance(block, SpatialBlock) for block in net.blocks):
        return "none"
    return "absolute" if _context_of(net).temporal_rotary is None else "rope"


def _read_spatial_position(net: "Latte") -> str:
    return "absolute" if _context_of(net).spatial_rotary is None else "rope"


@torch.no_grad()
def _context_of(net: "Latte") -> Context:
    """Return the context that a forward pass passes to the blocks, on zeros."""
    device = next(net.parameters()).device
    inputs: dict[str, Any] = {
        "x": torch.zeros(1, net.num_frames, net.in_channels, *net.input_size, device=device),
        "timesteps": torch.zeros(1, device=device),
    }
    if net.conditioning == "text":
        embeddings = torch.zeros(1, net.text_length, net.text_dim, device=device)
        inputs["text"] = Text(embeddings, torch.ones(1, net.text_length, dtype=torch.bool, device=device))
    if net.conditioning == "class":
        inputs["labels"] = torch.zeros(1, dtype=torch.long, device=device)
    contexts: list[Context] = []
    hook = net.blocks[0].register_forward_pre_hook(lambda block, args: contexts.append(args[1]))
    was_training = net.training
    try:
        net.eval()(**inputs)
    finally:
        hook.remove()
        net.train(was_training)
    return contexts[0]


# ---------------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True, kw_only=True)
class LatteConfig(BlockOptions):
    """Options of `Latte`, resolved and checked when the object is created.

    Options that do not apply are reset: ``temporal_stride`` to 1 with uniform patches, ``num_classes`` to 0 unless
    class-conditional, ``text_dim`` and ``text_length`` to 0 unless text-conditional.

    Args:
        size: Model size, which sets ``hidden_size``, ``depth`` and ``num_heads`` if they are not given. The split
            variants have round(18 / 22 * depth) blocks: a block with two attentions has 22 D^2 parameters instead of
            18 D^2, so all variants of a size have nearly equal parameter counts.
        hidden_size: Width D, divisible by 4 and by ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        patch_size: Patch side p in latent cells.
        input_size: Latent size (H, W), or one number for both; divisible by ``patch_size``.
        in_channels: Latent channels C.
        num_frames: Frames F of a clip. `Latte.forward` accepts any number.
        learn_sigma: Predict noise and variance (2C output channels) instead of noise only.
        variant: Arrangement of spatial and temporal attention (figure 2 of the paper). "spatial" has no temporal
            attention: it is DiT on each frame, the image model from which a video model can start.
        patch_embed: "uniform" embeds patches of each frame, "compression" tubelets of ``temporal_stride`` frames.
        temporal_stride: Tubelet length s in frames; with 1, "compression" equals "uniform". The paper does not state
            it; 2 is the tubelet length of ViViT's small models.
        token_placement: Sequences that get the condition tokens of ``injection="tokens"``, which the paper does not
            state. "spatial": those of each frame, as DiT's in-context conditioning. "both": the temporal ones too, so
            that temporal attention also reads the condition; with class tokens and 16 frames it costs 1/8 more.
        temporal_position: "absolute" adds sin-cos encodings before the first block with temporal attention, "rope"
            rotates queries and keys of the temporal attention.
        spatial_position: "absolute" adds sin-cos encodings to the patches, "rope" rotates queries and keys of the
            spatial attention, half of each head by column and half by row (axial RoPE, Heo et al. 2024).
        conditioning: Condition besides the timestep: "class" embeds labels; "text" adds cross-attention to captions
            after each spatial attention, as Latte's text-to-video model does. Inputs of the other types are ignored.
        num_classes: Number of classes; required with "class".
        text_dim: Width E of the text encoder's embeddings; required with "text".
        text_length: Number of caption tokens L. `Latte.forward` accepts any number.
        class_dropout: Rate at which the caller drops labels or captions in training.
        activation_checkpointing: True recomputes whole blocks in the backward pass; "selective" keeps the outputs of
            matmuls and attention.

    Raises:
        ValueError: An option is invalid, or options do not fit together.
    """

    size: Literal["S", "B", "L", "XL"] | None = option(None, _read_size)
    # None is resolved from the size
    hidden_size: int = option(None, lambda net: net.x_embedder.proj.out_channels)
    depth: int = option(None, lambda net: len(net.blocks))
    num_heads: int = option(None, _read_num_heads)
    patch_size: int = option(2, lambda net: net.x_embedder.patch_size)
    input_size: int | Sequence[int] = option((32, 32), _read_input_size)
    in_channels: int = option(4, lambda net: net.x_embedder.proj.in_channels)
    num_frames: int = option(16, lambda net: len(net.temp_embed) * net.x_embedder.temporal_stride)
    learn_sigma: bool = option(True, _read_learn_sigma)
    variant: Variant = option("interleaved", _read_variant)  # noqa: RUF009
    patch_embed: Literal["uniform", "compression"] = option(
        "uniform", lambda net: "compression" if isinstance(net.x_embedder, TubeletPatches) else "uniform"
    )
    temporal_stride: int = option(2, lambda net: net.x_embedder.temporal_stride)
    token_placement: Literal["spatial", "both"] = "spatial"
    temporal_position: Literal["absolute", "rope"] = option("absolute", _read_temporal_position)
    spatial_position: Literal["absolute", "rope"] = option("absolute", _read_spatial_position)
    conditioning: Conditioning = option("none", _read_conditioning)  # noqa: RUF009
    num_classes: int = option(0, lambda net: net.y_embedder.embedding_table.num_embeddings - 1 if net.y_embedder else 0)
    text_dim: int = option(0, lambda net: net.text_embedder.mlp[0].in_features if net.text_embedder else 0)
    text_length: int = 120
    class_dropout: float = 0.1
    activation_checkpointing: bool | Literal["selective"] = False

    @classmethod
    def choices(cls) -> dict[str, tuple[Any, ...]]:
        """Return the allowed values of each option that has a fixed set of values."""
        allowed = {name: _values(hint) for name, hint in get_type_hints(cls).items()}
        return {name: values for name, values in allowed.items() if values}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a frame along height and width."""
        height, width = cast(tuple[int, int], self.input_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width d of an attention head; "split_heads" has half as many heads, twice as wide."""
        return self.hidden_size // (self.num_heads // 2 if self.variant == "split_heads" else self.num_heads)

    @property
    def out_channels(self) -> int:
        """Output channels: C, or 2C with ``learn_sigma``."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels

    def save(self, folder: Path) -> None:
        """Write the options to a folder, as ``config.json`` of a `Latte`."""
        options = {"_class_name": Latte.__name__} | asdict(self)
        write_text(folder / hub.CONFIG, json.dumps(options, indent=2) + "\n")

    def __post_init__(self) -> None:
        """Check the choices, resolve the options that depend on others, and check the result."""
        for name, choices in self.choices().items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {getattr(self, name)!r}")
        resolved: dict[str, Any] = {}
        if self.size is not None:
            width, depth, num_heads = SIZES[self.size]
            if self.variant.startswith("split"):
                depth = round(18 / 22 * depth)
            preset = {"hidden_size": width, "depth": depth, "num_heads": num_heads}
            resolved |= {name: value for name, value in preset.items() if getattr(self, name) is None}
        size = self.input_size
        resolved["input_size"] = (size, size) if isinstance(size, int) else tuple(size)
        if self.patch_embed != "compression":
            resolved["temporal_stride"] = 1
        if self.conditioning != "class":
            resolved["num_classes"] = 0
        if self.conditioning != "text":
            resolved |= {"text_dim": 0, "text_length": 0}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        """Check that the resolved options fit together.

        Raises:
            ValueError: They do not.
        """
        if None in (self.hidden_size, self.depth, self.num_heads):
            raise ValueError("set size (S, B, L or XL), or hidden_size, depth and num_heads")
        for name in ("hidden_size", "num_heads", "patch_size", "in_channels", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size must be divisible by num_heads and by 4; got hidden_size={self.hidden_size}, "
                f"num_heads={self.num_heads}"
            )
        if self.variant == "split_heads" and self.num_heads % 2:
            raise ValueError(f"num_heads must be even with variant=split_heads; got {self.num_heads}")
        for position, divisor in (("temporal_position", 2), ("spatial_position", 4)):
            if getattr(self, position) == "rope" and self.head_dim % divisor:
                raise ValueError(
                    f"the head width must be divisible by {divisor} with {position}=rope; got {self.head_dim} "
                    f"(hidden_size={self.hidden_size}, num_heads={self.num_heads})"
                )
        min_depth = 2 if self.variant in ("interleaved", "late_fusion") else 1
        if self.depth < min_depth:
            raise ValueError(f"depth must be at least {min_depth} with variant={self.variant}; got {self.depth}")
        sides = cast(tuple[int, ...], self.input_size)
        if len(sides) != 2 or any(side <= 0 or side % self.patch_size for side in sides):
            raise ValueError(
                f"input_size must be (H, W), both divisible by patch_size={self.patch_size}; got {self.input_size}"
            )
        if self.temporal_stride < 1 or self.num_frames % self.temporal_stride:
            raise ValueError(
                f"num_frames must be divisible by temporal_stride; got num_frames={self.num_frames}, "
                f"temporal_stride={self.temporal_stride}"
            )
        if self.conditioning == "class" and self.num_classes < 1:
            raise ValueError("conditioning=class needs num_classes, the number of classes of the dataset")
        if self.conditioning == "text" and min(self.text_dim, self.text_length) < 1:
            raise ValueError("conditioning=text needs text_dim, the width of the text encoder, and text_length")


def _values(hint: Any) -> tuple[Any, ...]:
    """Return all values of a Literal, a bool, None or a union of these; empty for other types."""
    if hint is bool:
        return (False, True)
    if hint is NoneType:
        return (None,)
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        members = [_values(member) for member in get_args(hint)]
        return tuple(value for values in members for value in values) if all(members) else ()
    return ()


# ------------------------------------------------------------------------------------------------------------ model


class Latte(Denoiser):
    """Predict noise (and variance) of video latents with spatial and temporal attention.

    Activations are (B, F, S, D) throughout. Parameters of the interleaved class-conditional model have the names of the
    official code. The model draws no random numbers: the caller drops conditions by passing `null_label` or `null_text`
    at the rate ``class_dropout``.

    Example:
        >>> net = Latte(size="S", conditioning="class", num_classes=101)
        >>> net(torch.randn(2, 16, 4, 32, 32), torch.tensor([10, 900]), torch.tensor([0, 100])).shape
        torch.Size([2, 16, 8, 32, 32])

    Args:
        options: Options of the model, see `LatteConfig`.

    Raises:
        TypeError: There is no such option.
        ValueError: An option is invalid, or options do not fit together.
    """

    config: LatteConfig
    """Resolved options."""
    blocks: nn.ModuleList
    x_embedder: UniformPatches | TubeletPatches
    pos_embed: Tensor
    temp_embed: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config = LatteConfig(**options)
        config, dim = self.config, self.config.hidden_size
        self.in_channels, self.num_frames, self.learn_sigma = config.in_channels, config.num_frames, config.learn_sigma
        self.input_size = cast(tuple[int, int], config.input_size)
        self.conditioning, self.num_classes = config.conditioning, config.num_classes
        self.text_dim, self.text_length = config.text_dim, config.text_length
        self.class_dropout = config.class_dropout

        stride = config.temporal_stride
        if config.patch_embed == "compression":
            self.x_embedder = TubeletPatches(config.in_channels, dim, config.patch_size, stride)
        else:
            self.x_embedder = UniformPatches(config.in_channels, dim, config.patch_size)
        self.register_buffer("pos_embed", torch.empty(config.grid[0] * config.grid[1], dim), persistent=False)
        self.register_buffer("temp_embed", torch.empty(config.num_frames // stride, dim), persistent=False)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(config.num_classes, dim) if config.conditioning == "class" else None
        text = config.conditioning == "text"
        self.text_embedder = TextEmbedder(config.text_dim, dim) if text else None
        types = block_types(config.variant, config.depth)
        self.blocks = nn.ModuleList(block(dim, config.num_heads, config, text) for block in types)
        self.final_layer = FinalLayer(dim, config.patch_size**2 * stride * config.out_channels, config)
        self.frames = TubeletFrames(config.out_channels, stride) if stride > 1 else None
        self.init_weights()

    def init_weights(self, seed: int | None = None) -> None:
        """Initialise all parameters as the official code does.

        Linear and patch layers are Xavier-uniform with zero bias. The timestep and label embedders and the null caption
        token are N(0, 0.02^2). The modulation, the output of cross-attention and the final linear layer are zero: a new
        model outputs zeros, and with "adaln" its blocks are identities.

        Args:
            seed: Draw each parameter from its own generator (seed, "init", name), so that models which differ in one
                part share the values of all others. Parameters must be on the CPU. None uses the global generator.
        """
        if not self.pos_embed.is_meta:
            self.pos_embed.copy_(sincos_2d(*self.config.grid, self.config.hidden_size))
            self.temp_embed.copy_(sincos_1d(len(self.temp_embed), self.config.hidden_size))
        for name, parameter in self.named_parameters():
            generator = None if seed is None else torch_generator(seed, "init", name)
            zero = ("bias", "cross_attn.proj.weight", "final_layer.linear.weight")
            if name.endswith(zero) or "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name.startswith(("t_embedder", "y_embedder", "text_embedder.null")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter.data.flatten(1), generator=generator)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **options: Any) -> Self:
        """Build the model of a folder or a repository of the hub, and load its weights.

        Args:
            source: Folder or OWNER/REPO that `save_pretrained`, `push_to_hub` or ``latte export --push`` wrote.
            revision: Branch, tag or commit of the repository.
            options: Options of `LatteConfig` that replace those of the source, such as ``activation_checkpointing``.

        Raises:
            FileNotFoundError: There is no such folder or repository, or it cannot be downloaded.
            ValueError: It contains another model, or its weights do not fit the options.
        """
        folder = Path(source).expanduser()
        paths = [folder / hub.CONFIG, folder / hub.WEIGHTS]
        if not folder.is_dir():
            text = f"{source}" if hub.is_address(source) else f"hf://{source}"
            place = hub.Address.parse(f"{text}@{revision}" if revision else text)
            paths = [hub.download(hub.Address(place.repo, path.name, place.revision)) for path in paths]
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        if config.pop("_class_name", None) != cls.__name__:
            raise ValueError(f"{source} contains no {cls.__name__}: {hub.CONFIG} names another class")
        net = cls(**config | options)
        try:
            net.load_state_dict(load_file(paths[1]))
        except RuntimeError as error:  # it lists every tensor in a line of its own
            first = " ".join(str(error).split("\n")[:2])
            raise ValueError(f"the weights of {source} do not fit the options: {first}") from error
        return net

    def save_pretrained(self, folder: str | Path) -> None:
        """Write options and weights to a folder, as ``config.json`` and ``model.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / hub.WEIGHTS)
        self.config.save(folder)

    def push_to_hub(self, repo: str, message: str = "Upload weights", private: bool | None = None) -> str:
        """Upload options and weights to a repository of the hub, and return its address.

        `Latte.from_pretrained` reads them. ``latte export --push`` uploads a trained run with a model card, and with
        what `latte predict` needs besides.

        Args:
            repo: OWNER/REPO, which is created if necessary.
            message: Message of the commit.
            private: Whether a new repository is private; None is the default of the owner.

        Raises:
            OSError: The upload fails, for example without a token (``hf auth login``).
            ValueError: The name of the repository is wrong.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(Path(folder), repo, message, private)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        labels: Tensor | None = None,
        text: Text | None = None,
        num_images: int = 0,
    ) -> Tensor:
        """Predict the noise (and variance) of noisy latents.

        Args:
            x: (B, F + N, C, H, W) with any number of frames F; the last N frames are independent images. "compression"
                needs F divisible by ``temporal_stride``; an image is repeated to a tubelet, whose output frames are
                averaged.
            timesteps: (B,), integer or float in [0, 1000], for the clip and its images.
            labels: (B,) int64, or (B, 1 + N) with the clip's first, in [0, num_classes]; the last value is
                `null_label`. Values are checked on the CPU only, because a GPU would have to be synchronised.
            text: Embeddings (B, L, E) and mask (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L) with the clip's caption
                first. Masked tokens are ignored; a caption with all tokens masked is the null caption.
            num_images: Number of images N.

        Returns:
            (B, F + N, C, H, W), or 2C channels with ``learn_sigma``.

        Raises:
            ValueError: Shapes, labels or captions do not match the model.
        """
        self._check_inputs(x, timesteps, labels, num_images)
        patch_size = self.x_embedder.patch_size
        grid = (x.shape[3] // patch_size, x.shape[4] // patch_size)
        num_clip = (x.shape[1] - num_images) // self.x_embedder.temporal_stride  # T
        x = self.x_embedder(x, num_images)  # (B, T + N, S, D)
        # both branches keep the residual stream in the dtype of the parameters under autocast
        x = x + self.pos_embed if self.config.spatial_position == "absolute" else x.to(self.pos_embed.dtype)

        embeddings = self._embed_conditions(timesteps, labels, num_images)
        condition, num_rows, num_columns = None, 0, 0
        if self.config.injection == "adaln":
            condition = sum(embeddings[1:], start=embeddings[0])  # (B, 1 or 1 + N, D)
        else:
            num_columns = len(embeddings)
            num_rows = num_columns if self.config.token_placement == "both" else 0
            x = self._prepend_tokens(x, embeddings, num_clip)  # (B, rows + T + N, columns + S, D)

        rotary = self._rotary_tables(num_clip, grid, num_rows, num_columns)
        tokens = None
        if self.text_embedder is not None:
            tokens = self.text_embedder(self.check_text(text, len(x), num_images))
        context = Context(condition, num_rows + num_clip, *rotary, tokens)
        encoding = None
        if self.config.temporal_position == "absolute":
            encoding = F.pad(self._temporal_encoding(num_clip), (0, 0, num_rows, num_images))[:, None]
        checkpointing = self.config.activation_checkpointing
        for block in self.blocks:
            if encoding is not None and not isinstance(block, SpatialBlock):  # the first block with temporal attention
                x, encoding = x + encoding, None
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint_block(block, checkpointing == "selective", x, context)
            else:
                x = block(x, context)
        x = x[:, num_rows:, num_columns:]  # (B, T + N, S, D)
        x = self.final_layer(x, context)
        x = unpatch(x, *grid, patch_size)  # (B, T + N, s C', H, W)
        if self.frames is not None:
            x = self.frames(x, num_images)
        return x  # (B, F + N, C', H, W)

    def null_text(self, text: Text) -> Text:
        """Return a batch of null captions (all tokens masked) with the shape of ``text``."""
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block in place by `torch.compile`; blocks of a type share code, parameters keep their names.

        Raises:
            ValueError: Selective checkpointing is on.
        """
        if self.config.activation_checkpointing == "selective":
            raise ValueError(
                "activation_checkpointing=selective does not work with compiled blocks, because the compiler decides "
                "what to recompute; set model.compile to false, or model.net.init_args.activation_checkpointing to "
                "false or true"
            )
        super().compile_blocks(backend)

    def read_back(self) -> dict[str, Any]:
        """Read the options back from the model as it is built.

        Options are read from the layers, or from what a forward pass passes to the blocks. Options without such a trace
        are read where the forward pass or its caller reads them.

        Returns:
            Options by name; "mixed" where layers disagree, "unknown" or "none" where no choice matches.
        """
        found = {}
        for field in fields(self.config):
            read = field.metadata.get("read")
            source = self if hasattr(self, field.name) else self.config
            found[field.name] = read(self) if read else getattr(source, field.name)
        return found

    def _embed_conditions(self, timesteps: Tensor, labels: Tensor | None, num_images: int) -> list[Tensor]:
        """Embed timesteps as (B, 1, D) and, if class-conditional, labels as (B, 1 or 1 + N, D)."""
        embeddings = [self.t_embedder(timesteps)[:, None]]
        if self.y_embedder is not None and labels is not None:
            embeddings.append(self.y_embedder(labels.reshape(len(timesteps), 1 + num_images)))
        return embeddings

    def _prepend_tokens(self, x: Tensor, embeddings: list[Tensor], num_clip: int) -> Tensor:
        """Prepend K condition tokens to the tokens of each frame and, with "both", of each temporal sequence."""
        columns = [expand_per_frame(embedding, num_clip).expand(-1, x.shape[1], -1, -1) for embedding in embeddings]
        x = torch.cat([*columns, x], dim=2)  # (B, T + N, K + S, D)
        if self.config.token_placement == "both":
            rows = [embedding[:, :1, None].expand(-1, -1, x.shape[2], -1) for embedding in embeddings]
            x = torch.cat([*rows, x], dim=1)  # (B, K + T + N, K + S, D)
        return x

    def _temporal_encoding(self, num_clip: int) -> Tensor:
        """Return the sin-cos encodings (T, D) of the clip, which may be longer than ``num_frames``."""
        if num_clip <= len(self.temp_embed):
            return self.temp_embed[:num_clip]
        return sincos_1d(num_clip, self.temp_embed.shape[1]).to(self.temp_embed)

    def _rotary_tables(
        self, num_clip: int, grid: tuple[int, int], num_rows: int, num_columns: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the rotary tables (2, rows + T, d / 2) in time and (2, columns + S, d / 2) in space, if RoPE is used.

        Condition tokens are at position 0, where the rotation is the identity.
        """
        dtype, device, head_dim = self.pos_embed.dtype, self.pos_embed.device, self.config.head_dim
        temporal = spatial = None
        if self.config.temporal_position == "rope":
            positions = F.pad(torch.arange(num_clip, device=device), (num_rows, 0))
            temporal = rotary_1d(positions, head_dim, dtype)
        if self.config.spatial_position == "rope":
            patches = torch.arange(grid[0] * grid[1], device=device)
            rows, columns = (F.pad(axis, (num_columns, 0)) for axis in (patches // grid[1], patches % grid[1]))
            spatial = rotary_2d(rows, columns, head_dim, dtype)
        return temporal, spatial

    def _check_inputs(self, x: Tensor, timesteps: Tensor, labels: Tensor | None, num_images: int) -> None:
        """Check the inputs of `forward`, except captions.

        Raises:
            ValueError: They do not match the model.
        """
        expected = (self.in_channels, *self.input_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != expected:
            raise ValueError(f"x must be (B, F, C, H, W) with (C, H, W) = {expected}; got shape {tuple(x.shape)}")
        num_clips, num_frames = len(x), x.shape[1] - num_images
        if num_images < 0 or num_frames < 1:
            raise ValueError(
                f"num_images must be in [0, {x.shape[1] - 1}] for x with {x.shape[1]} frames; got {num_images}"
            )
        stride = self.x_embedder.temporal_stride
        if num_frames % stride:
            raise ValueError(
                f"the number of frames must be divisible by temporal_stride={stride} of the tubelets; got {num_frames}"
            )
        if tuple(timesteps.shape) != (num_clips,):
            raise ValueError(f"timesteps must be ({num_clips},), one per clip; got shape {tuple(timesteps.shape)}")
        if self.conditioning != "class":
            return
        if labels is None:
            raise ValueError("the model is class-conditional: pass labels, with net.null_label for no class")
        shapes = [(num_clips, 1 + num_images)] + [(num_clips,)] * (num_images == 0)
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"labels must be {shapes[-1]}, one for the clip and one per image; got shape {tuple(labels.shape)}"
            )
        # fake tensors (a subclass) have no values
        if (
            type(labels) is Tensor
            and labels.device.type == "cpu"
            and ((labels < 0) | (labels > self.num_classes)).any()
        ):
            raise ValueError(f"labels must be in 0 to {self.num_classes} (the null class); got {labels.tolist()}")
