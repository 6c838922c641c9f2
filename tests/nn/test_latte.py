"""The whole model: all combinations of the design axes, and the properties of each axis."""

import copy
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from latte_pl.nn import Latte, LatteConfig
from latte_pl.types import Text

TINY = {"hidden_size": 32, "depth": 4, "num_heads": 4, "input_size": (4, 6), "num_frames": 4, "num_classes": 3}
TINY |= {"text_dim": 6, "text_length": 5}
FRAMES, IMAGES = 4, 2
TIMESTEPS = torch.tensor([37, 812])
LABELS = torch.tensor([[0, 1, 2], [2, 3, 0]])  # clip, image, image; 3 is the null class
TEXT = Text(  # captions of 0 to 5 tokens; the one without tokens is the null caption
    torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1)),
    torch.arange(5) < torch.tensor([[3, 5, 0], [2, 1, 4]])[..., None],
)
CHOICES = LatteConfig.choices()
AXES = ("variant", "patch_embed", "injection", "temporal_position", "conditioning")
PRODUCT = [dict(zip(AXES, values)) for values in itertools.product(*(CHOICES[name] for name in AXES))]
LAYERS = {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True}
WITH_LAYERS = [axes | LAYERS for axes in PRODUCT[::7]]  # contains every value of every axis


def name_of(axes):
    return "-".join(axes[name] for name in AXES) + "-layers" * ("qk_norm" in axes)


def randomise(net: Latte, std: float = 0.1) -> Latte:
    """Draw all parameters, so that no layer is zero or an identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
    return net


def tiny(**options) -> Latte:
    return randomise(Latte(**(TINY | {"conditioning": "class"} | options)))


def latents(num_frames: int = FRAMES, size: tuple[int, int] = (4, 6)) -> torch.Tensor:
    return torch.randn(2, num_frames, 4, *size, generator=torch.Generator().manual_seed(num_frames))


@pytest.mark.parametrize("axes", PRODUCT + WITH_LAYERS, ids=name_of)
@pytest.mark.parametrize("num_images", [0, IMAGES])
def test_every_combination_uses_its_inputs_and_parameters(axes, num_images):
    net = Latte(**TINY, **axes)
    x = latents(FRAMES + num_images)
    labels = LABELS if num_images else LABELS[:, 0]
    text = TEXT if num_images else Text(TEXT.embeddings[:, 2], TEXT.mask[:, 2])
    out = net(x, TIMESTEPS, labels, text, num_images)
    assert out.shape == (2, FRAMES + num_images, 8, 4, 6)
    assert not out.any()  # the final layer is zero

    # small scales of the norms would hide the effect of a label
    out = randomise(net, 0.2 if "qk_norm" in axes else 0.1)(x, TIMESTEPS, labels, text, num_images)
    assert out.isfinite().all()
    out.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []

    with torch.no_grad():
        assert not torch.allclose(net(x, TIMESTEPS + 100, labels, text, num_images), out, atol=1e-4)
        changed = not torch.allclose(net(x, TIMESTEPS, (labels + 1) % 3, text, num_images), out, atol=1e-4)
        assert changed == (axes["conditioning"] == "class")
        other = text._replace(embeddings=text.embeddings + 1)
        changed = not torch.allclose(net(x, TIMESTEPS, labels, other, num_images), out, atol=1e-4)
        assert changed == (axes["conditioning"] == "text")
        if num_images:  # the clip does not depend on images, an image not on the clip or another image
            other = x + torch.cat([torch.zeros(4), torch.ones(2)]).view(-1, 1, 1, 1)
            torch.testing.assert_close(net(other, TIMESTEPS, labels, text, num_images)[:, :FRAMES], out[:, :FRAMES])
            other = x + torch.tensor([1, 1, 1, 1, 0, 1]).view(-1, 1, 1, 1)
            relabelled = torch.cat([(labels[:, :1] + 1) % 3, labels[:, 1:2], (labels[:, 2:] + 1) % 3], dim=1)
            recaptioned = Text(text.embeddings + torch.tensor([1, 0, 1])[:, None, None], text.mask)
            alone = net(other, TIMESTEPS, relabelled, recaptioned, num_images)
            torch.testing.assert_close(alone[:, FRAMES], out[:, FRAMES])
            assert not torch.allclose(alone[:, FRAMES + 1], out[:, FRAMES + 1], atol=1e-4)


@pytest.mark.parametrize("injection", CHOICES["injection"])
@pytest.mark.parametrize("patch_embed", CHOICES["patch_embed"])
@pytest.mark.parametrize("layers", [{}, LAYERS], ids=["plain", "layers"])
def test_joint_forward_equals_separate_forwards_of_clip_and_images(injection, patch_embed, layers):
    net = tiny(injection=injection, patch_embed=patch_embed, token_placement="both", **layers)
    x = latents(FRAMES + IMAGES)
    together = net(x, TIMESTEPS, LABELS, num_images=IMAGES)
    torch.testing.assert_close(together[:, :FRAMES], net(x[:, :FRAMES], TIMESTEPS, LABELS[:, 0]))
    for i in range(IMAGES):
        keep = [*range(FRAMES), FRAMES + i]
        alone = net(x[:, keep], TIMESTEPS, LABELS[:, [0, 1 + i]], num_images=1)
        torch.testing.assert_close(together[:, FRAMES + i], alone[:, FRAMES])


@pytest.mark.parametrize("axes", PRODUCT[::5], ids=name_of)
def test_outputs_do_not_depend_on_the_batch(axes):
    net = randomise(Latte(**TINY, **axes))
    x = latents()
    text = Text(TEXT.embeddings[:, 0], TEXT.mask[:, 0])
    out = net(x, TIMESTEPS, LABELS[:, 0], text)
    alone = net(x[1:], TIMESTEPS[1:], LABELS[1:, 0], Text(text.embeddings[1:], text.mask[1:]))
    torch.testing.assert_close(out[1:], alone)


@pytest.mark.parametrize("variant", CHOICES["variant"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
def test_forward_accepts_any_number_of_frames(variant, num_frames):
    net = tiny(variant=variant)
    x = latents(num_frames)
    out = net(x, TIMESTEPS, LABELS[:, 0])
    assert out.shape == (2, num_frames, 8, 4, 6)
    longer = tiny(variant=variant, num_frames=16)  # the encodings do not depend on num_frames
    torch.testing.assert_close(longer(x, TIMESTEPS, LABELS[:, 0]), out)


@pytest.mark.parametrize("variant", CHOICES["variant"])
def test_model_is_permutation_equivariant_without_temporal_positions(variant):
    net, order = tiny(variant=variant), torch.tensor([2, 0, 3, 1])
    x = latents()

    def difference():
        out = net(x, TIMESTEPS, LABELS[:, 0])
        return (net(x[:, order], TIMESTEPS, LABELS[:, 0]) - out[:, order]).abs().max()

    assert (difference() > 1e-3) == (variant != "spatial")  # encodings distinguish the frames
    net.temp_embed.zero_()
    assert difference() < 1e-5


@pytest.mark.parametrize("injection", CHOICES["injection"])
def test_compression_with_stride_one_equals_uniform_patches(injection):
    uniform = tiny(injection=injection)
    compression = tiny(injection=injection, patch_embed="compression", temporal_stride=1)
    state = {name: value.view_as(compression.state_dict()[name]) for name, value in uniform.state_dict().items()}
    compression.load_state_dict(state)
    x = latents(FRAMES + IMAGES)
    assert torch.equal(
        uniform(x, TIMESTEPS, LABELS, num_images=IMAGES), compression(x, TIMESTEPS, LABELS, num_images=IMAGES)
    )


def test_temporal_layers_read_condition_tokens_only_with_placement_both():
    """Spatial attention is switched off, so patches can read the condition only in temporal layers."""
    x, labels = latents(), LABELS[:, 0]
    for placement, reads in (("spatial", False), ("both", True)):
        net = tiny(injection="tokens", token_placement=placement)
        with torch.no_grad():
            for block in net.blocks[::2]:
                block.attn.proj.weight.zero_()
        changed = not torch.allclose(net(x, TIMESTEPS, labels), net(x, TIMESTEPS, (labels + 1) % 3), atol=1e-5)
        assert changed == reads


@pytest.mark.parametrize(
    ("size", "count"), [("S", 32_480_672), ("B", 129_547_040), ("L", 456_815_648), ("XL", 673_681_568)]
)
def test_sizes_have_the_parameters_of_the_official_models(size, count):
    with torch.device("meta"):
        for variant in ("interleaved", "late_fusion"):
            assert sum(p.numel() for p in Latte(size=size, variant=variant).parameters()) == count


def test_spatial_variant_has_exactly_the_parameters_of_dit():
    """DiT-XL/2 with 1000 classes: 675 M parameters (Peebles & Xie 2023, table 1), without the position table."""
    with torch.device("meta"):
        net = Latte(size="XL", variant="spatial", conditioning="class", num_classes=1000)
    assert sum(p.numel() for p in net.parameters()) == 674_834_720
    assert net.state_dict().keys() == tiny(variant="interleaved", depth=28).state_dict().keys()


def test_frames_of_the_spatial_variant_do_not_interact():
    net = tiny(variant="spatial")
    x = latents()
    out = net(x, TIMESTEPS, LABELS[:, 0])
    for f in range(FRAMES):
        torch.testing.assert_close(net(x[:, f : f + 1], TIMESTEPS, LABELS[:, 0])[:, 0], out[:, f])


@pytest.mark.parametrize(("variant", "expected"), [("split_attention", 676.33e6), ("split_heads", 676.44e6)])
def test_split_variants_have_the_parameter_counts_of_the_paper(variant, expected):
    with torch.device("meta"):
        net = Latte(size="XL", variant=variant)
    assert net.config.depth == 23
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(expected, rel=1e-3)


def test_seeded_models_have_equal_values_of_shared_parameters():
    first, second = (Latte(**TINY, conditioning="class", variant=v) for v in ("interleaved", "split_attention"))
    for net in (first, second):
        net.init_weights(seed=5)
    states = first.state_dict(), second.state_dict()
    shared = [name for name in states[0] if name in states[1]]
    assert len(shared) > 40
    assert all(torch.equal(states[0][name], states[1][name]) for name in shared)
    assert not torch.equal(states[0]["blocks.0.attn.qkv.weight"], states[0]["blocks.2.attn.qkv.weight"])
    first.init_weights(seed=6)
    assert not torch.equal(first.blocks[0].attn.qkv.weight, second.blocks[0].attn.qkv.weight)


def test_initial_scales_are_those_of_the_official_code():
    net = Latte(**(TINY | {"hidden_size": 128}), conditioning="class")
    weight = net.blocks[0].attn.qkv.weight  # Xavier of the packed matrix
    assert weight.abs().max().item() == pytest.approx((6 / (128 + 384)) ** 0.5, rel=1e-2)
    assert net.x_embedder.proj.weight.abs().max().item() == pytest.approx((6 / (16 + 128)) ** 0.5, rel=1e-2)
    for embedder in (net.t_embedder.mlp[0], net.t_embedder.mlp[2], net.y_embedder.embedding_table):
        assert embedder.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("variant", CHOICES["variant"])
@pytest.mark.parametrize("layers", [{}, LAYERS], ids=["plain", "layers"])
@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_checkpointing_saves_memory_and_keeps_gradients(variant, layers, checkpointing):
    x, labels = latents(FRAMES + IMAGES), LABELS

    def step(checkpointing):
        net, saved = tiny(variant=variant, activation_checkpointing=checkpointing, **layers), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            out = net(x, TIMESTEPS, labels, num_images=IMAGES)
        kept = sum(saved)
        out.square().mean().backward()
        return out, [p.grad for p in net.parameters()], kept

    (out, grads, kept), (other_out, other_grads, other_kept) = step(False), step(checkpointing)
    assert torch.equal(out, other_out)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads))
    assert other_kept < kept / 3  # "selective" stores its tensors elsewhere; see tests/profiling/test_cost.py


@pytest.mark.parametrize("layers", [{}, LAYERS], ids=["plain", "layers"])
def test_compiled_blocks_compute_the_same_and_keep_their_parameter_names(layers):
    eager = tiny(temporal_position="rope", **layers)
    compiled = copy.deepcopy(eager)
    compiled.compile_blocks(backend="aot_eager")
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    x = latents(FRAMES + IMAGES)
    outs = [net(x, TIMESTEPS, LABELS, num_images=IMAGES) for net in (eager, compiled)]
    for out in outs:
        out.square().mean().backward()
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(eager.blocks[1].attn.qkv.weight.grad, compiled.blocks[1].attn.qkv.weight.grad)
    assert copy.deepcopy(compiled).state_dict().keys() == eager.state_dict().keys()


@pytest.mark.parametrize("axes", PRODUCT[::9] + WITH_LAYERS[::2], ids=name_of)
def test_autocast_and_half_precision_agree_with_float32(axes):
    net = randomise(Latte(**TINY, **axes))
    x, labels = latents(FRAMES + IMAGES), LABELS
    full = net(x, TIMESTEPS, labels, TEXT, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x, TIMESTEPS, labels, TEXT, IMAGES)
    half = net.bfloat16()(x.bfloat16(), TIMESTEPS, labels, TEXT, IMAGES)
    for out in (mixed, half):
        assert (out.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": latents(size=(6, 4))}, r"\(C, H, W\) = \(4, 4, 6\)"),
        ({"x": latents()[:, :, :3]}, r"\(C, H, W\)"),
        ({"x": latents()[0]}, "x must be"),
        ({"timesteps": TIMESTEPS[:1]}, "one per clip"),
        ({"labels": None}, "null_label"),
        ({"labels": torch.tensor([0, 4])}, "labels must be in 0 to 3"),
        ({"labels": torch.tensor([-1, 0])}, "labels must be in 0 to 3"),
        ({"num_images": 1}, r"labels must be \(2, 2\)"),
        ({"num_images": 4}, r"num_images must be in \[0, 3\]"),
        ({"x": latents(3)}, "divisible by temporal_stride=2"),
    ],
)
def test_wrong_inputs_raise_a_one_line_error(arguments, message):
    net = tiny(patch_embed="compression" if "temporal" in message else "uniform")
    with pytest.raises(ValueError, match=message) as error:
        net(**({"x": latents(), "timesteps": TIMESTEPS, "labels": LABELS[:, 0]} | arguments))
    assert "\n" not in str(error.value)


def test_null_label_is_a_separate_class():
    net = tiny()
    assert net.null_label == 3
    outs = [net(latents(), TIMESTEPS, torch.full((2,), label)) for label in range(4)]
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in itertools.combinations(outs, 2))


def test_selective_checkpointing_cannot_be_combined_with_compiled_blocks():
    with pytest.raises(ValueError, match="does not work with compiled blocks"):
        tiny(activation_checkpointing="selective").compile_blocks()


class Upcasts(TorchDispatchMode):
    """Counts the float32 copies of bf16 tensors of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and tuple(out.shape) == self.shape:
            self.count += (args[0].dtype, out.dtype) == (torch.bfloat16, torch.float32)
        return out


def test_residual_additions_copy_no_activations_under_cuda_autocast():
    # fake tensors have a device, but no values: this needs no GPU
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        net = Latte(**TINY, conditioning="class")
        x, timesteps, labels = torch.randn(2, FRAMES, 4, 4, 6), torch.zeros(2), torch.zeros(2, dtype=torch.long)
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with Upcasts((2, FRAMES, 6, 32)) as upcasts:  # patches of 2 x 2, width 32
                out = net(x, timesteps, labels)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert out.device.type == "cuda"
    assert upcasts.count == 0
