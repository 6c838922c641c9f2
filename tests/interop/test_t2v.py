"""TextToVideo against diffusers' model and pipeline, with small random weights."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from fake_text import write_t5
from torch.utils._pytree import tree_map

from latte_pl.autoencoders import PixelAutoencoder, T5Encoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.interop import TextToVideo
from latte_pl.training import LatteModule
from latte_pl.types import Text

FRAMES, IMAGES, TOKENS, WIDTH = 3, 2, 5, 12
SMALL = {"hidden_size": 32, "depth": 2, "num_heads": 4, "input_size": (4, 6), "sample_size": 4, "num_frames": FRAMES}
SMALL |= {"text_dim": WIDTH, "text_length": TOKENS}
TIMESTEPS = torch.tensor([37, 812])


def small(**arguments) -> TextToVideo:
    """Build a model with random weights, none of them zero."""
    net = TextToVideo(**(SMALL | arguments))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.15, generator=generator)
    return net


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents(num_frames=FRAMES, channels=4):
    return draw(2, num_frames, channels, 4, 6, seed=1)


def captions(*groups, lengths=None):
    """Return embeddings and mask of captions with ``lengths`` tokens each."""
    embeddings = draw(*groups, TOKENS, WIDTH, seed=2)
    lengths = torch.full(groups, TOKENS) if lengths is None else torch.tensor(lengths)
    return Text(embeddings, torch.arange(TOKENS) < lengths[..., None])


def theirs(net, x, timesteps, embeddings, **options):
    """Run diffusers' model on its own layout, without a mask."""
    out = net.transformer(x.transpose(1, 2), timesteps, embeddings, return_dict=False, **options)[0]
    return out.transpose(1, 2)


@pytest.mark.parametrize("num_frames", [1, FRAMES])
def test_forward_matches_diffusers(num_frames):
    net, x, text = small(), latents(num_frames), captions(2)
    out = net(x, TIMESTEPS, text=text)
    assert out.shape == (2, num_frames, 8, 4, 6)
    torch.testing.assert_close(out, theirs(net, x, TIMESTEPS, text[0]))
    assert not torch.allclose(out, net(x, TIMESTEPS, text=captions(2, lengths=[2, 4])), atol=1e-3)


def test_masked_tokens_have_no_effect():
    net, x = small(), latents()
    embeddings, mask = captions(2, lengths=[2, 4])
    out = net(x, TIMESTEPS, text=(embeddings, mask))
    for i, length in enumerate((2, 4)):
        alone = theirs(net, x[i : i + 1], TIMESTEPS[i : i + 1], embeddings[i : i + 1, :length])
        torch.testing.assert_close(out[i : i + 1], alone)


def test_caption_without_tokens_is_the_null_caption():
    net, x = small(), latents()
    empty = draw(1, WIDTH, seed=5)
    net.set_null_caption(empty)
    text = captions(2, lengths=[3, 0])
    out = net(x, TIMESTEPS, text=text)
    torch.testing.assert_close(out[1:], theirs(net, x[1:], TIMESTEPS[1:], empty[None]))
    torch.testing.assert_close(out[:1], theirs(net, x[:1], TIMESTEPS[:1], text[0][:1, :3]))
    null = net(x, TIMESTEPS, text=net.null_text(text))
    torch.testing.assert_close(null, theirs(net, x, TIMESTEPS, empty.expand(2, 1, -1)))
    with pytest.raises(ValueError, match=r"has shape \(12,\); it must be one token, \(1, 12\)"):
        net.set_null_caption(empty[0])


def test_joint_images_are_single_frames_with_their_own_captions():
    net, x = small(), latents(FRAMES + IMAGES)
    embeddings, mask = captions(2, 1 + IMAGES, lengths=[[5, 1, 3], [2, 4, 5]])
    out = net(x, TIMESTEPS, text=(embeddings, mask), num_images=IMAGES)
    clip = net(x[:, :FRAMES], TIMESTEPS, text=(embeddings[:, 0], mask[:, 0]))
    torch.testing.assert_close(out[:, :FRAMES], clip)
    for b in range(2):
        for i in range(IMAGES):
            tokens = embeddings[b : b + 1, 1 + i, : mask[b, 1 + i].sum()]
            image = x[b : b + 1, FRAMES + i : FRAMES + i + 1]
            still = theirs(net, image, TIMESTEPS[b : b + 1], tokens, enable_temporal_attentions=False)
            torch.testing.assert_close(out[b : b + 1, FRAMES + i : FRAMES + i + 1], still)


def pipeline(net):
    """Build diffusers' pipeline around the wrapped model. Its autoencoder has 8 pixels per cell and is not used."""
    blocks = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    made = LattePipeline(None, None, AutoencoderKL(**blocks, **kinds), net.transformer, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sampling_matches_the_pipeline_of_diffusers(steps, scale):
    """The pipeline takes DDIM steps with the guided noise and ignores the variance."""
    net, noise, text = small(), latents(), captions(2)
    empty = draw(2, TOKENS, WIDTH, seed=7)
    expected = pipeline(net)(
        num_inference_steps=steps,
        guidance_scale=scale,
        video_length=FRAMES,
        height=32,
        width=48,
        latents=noise.transpose(1, 2).clone(),
        negative_prompt=None,
        prompt_embeds=text[0],
        negative_prompt_embeds=empty,
        output_type="latent",
    ).frames.transpose(1, 2)

    def model(x, t):
        cond = net(x, t, text=text)
        null = net(x, t, text=(empty, text[1]))
        return torch.cat([(null + scale * (cond - null))[:, :, :4], cond[:, :, 4:]], dim=2)

    with torch.no_grad():
        out = GaussianDiffusion().sample(model, noise, sampler="ddim", steps=steps)
    assert (out - noise).abs().max() > 0.1
    # both end at alpha 1; the pipeline computes its coefficients in float32
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_every_weight_has_a_gradient():
    net, x = small(), latents(FRAMES + IMAGES)
    text = captions(2, 1 + IMAGES, lengths=[[5, 1, 3], [0, 4, 5]])
    losses = GaussianDiffusion().loss(
        lambda x, t: net(x, t, text=text, num_images=IMAGES), x, TIMESTEPS, draw(*x.shape, seed=9)
    )
    assert losses["loss"].shape == (2, FRAMES + IMAGES)
    losses["loss"].mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_module_initialises_it_from_a_seed(tmp_path):
    write_t5(tmp_path)
    encoder = T5Encoder(tmp_path, length=TOKENS)
    module = LatteModule(small(in_channels=3), GaussianDiffusion(), PixelAutoencoder(), text_encoder=encoder)
    module.init_weights(seed=4)
    first = copy.deepcopy(module.net.state_dict())
    assert module.net.state_dict().keys() == module.ema.state_dict().keys()
    assert not {id(p) for p in module.net.parameters()} & {id(p) for p in module.ema.parameters()}
    assert len(module.ema.blocks) == 4
    assert {id(p) for b in module.ema.blocks for p in b.parameters()} <= {id(p) for p in module.ema.parameters()}
    x, text = latents(channels=3), captions(2)
    assert not module.net(x, TIMESTEPS, text=text).any()  # the output of a new model is zero
    module.init_weights(seed=4)
    assert all(torch.equal(value, first[name]) for name, value in module.net.state_dict().items())
    module.init_weights(seed=5)
    assert not torch.equal(
        module.net.state_dict()["transformer.pos_embed.proj.weight"], first["transformer.pos_embed.proj.weight"]
    )


@pytest.mark.parametrize("inside", ["", "transformer"])
def test_weights_load_from_a_folder_of_diffusers(inside, tmp_path):
    net, x, text = small(), latents(), captions(2)
    net.transformer.save_pretrained(tmp_path / inside)
    out = net(x, TIMESTEPS, text=text)
    loaded = TextToVideo(**SMALL)
    loaded.load(tmp_path)
    torch.testing.assert_close(loaded(x, TIMESTEPS, text=text), out)
    built = TextToVideo.from_pretrained(tmp_path, input_size=(4, 6))
    torch.testing.assert_close(built(x, TIMESTEPS, text=text), out)
    assert (built.text_dim, built.num_frames, built.learn_sigma) == (WIDTH, FRAMES, True)
    longer = TextToVideo.from_pretrained(tmp_path, input_size=(4, 6), num_frames=7)
    assert longer(latents(7), TIMESTEPS, text=text).shape == (2, 7, 8, 4, 6)


def test_wrong_sources_are_rejected_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; use a folder or a Hub name like"):
        TextToVideo(**SMALL).load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="contains no text-to-video model; it needs config"):
        TextToVideo(**SMALL).load(tmp_path)
    small().transformer.save_pretrained(tmp_path / "t2v")
    with pytest.raises(ValueError, match=r"num_layers 2, but the model has 3") as error:
        TextToVideo(**(SMALL | {"depth": 3})).load(tmp_path / "t2v")
    assert "\n" not in str(error.value)
    (tmp_path / "t2v/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(FileNotFoundError, match="a model of class AutoencoderKL, not LatteTransformer3DModel"):
        TextToVideo(**SMALL).load(tmp_path / "t2v")


def test_bfloat16_and_autocast_are_close_to_float32():
    net, x, text = small(), latents(FRAMES + IMAGES), captions(2, 1 + IMAGES, lengths=[[5, 1, 3], [0, 4, 5]])
    full = net(x, TIMESTEPS, text=text, num_images=IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x, TIMESTEPS, text=text, num_images=IMAGES)
    half = net.bfloat16()(x.bfloat16(), TIMESTEPS, text=text, num_images=IMAGES)
    for out in (mixed, half):
        assert (out.float() - full).norm() < 0.05 * full.norm()


def test_activation_checkpointing_changes_only_memory():
    def step(checkpointing):
        net, kept = small(activation_checkpointing=checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            out = net(latents(), TIMESTEPS, text=captions(2))
        size = sum(kept)
        out.square().mean().backward()
        return [out.detach(), *(p.grad for p in net.parameters())], size

    (plain, kept), (other, other_kept) = step(False), step(True)
    tree_map(torch.testing.assert_close, plain, other)
    assert other_kept < kept / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": latents()[:, :, :3]}, r"\(C, H, W\) = \(4, 4, 6\)"),
        ({"x": latents(2)}, "the clip must have 1 or 3 frames"),
        ({"timesteps": TIMESTEPS[:1]}, "one per clip"),
        ({"text": None}, "null_text"),
        ({"text": (draw(2, TOKENS, 7), captions(2)[1])}, r"\(2, L, 12\)"),
        ({"text": (captions(2)[0], captions(2)[1].float())}, "must be bool"),
        ({"x": latents(4), "num_images": 1}, r"\(2, 2, L, 12\)"),
    ],
)
def test_wrong_inputs_are_rejected_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        small()(**({"x": latents(), "timesteps": TIMESTEPS, "text": captions(2)} | arguments))
    assert "\n" not in str(error.value)


def test_wrong_sizes_are_rejected():
    with pytest.raises(ValueError, match="divisible by patch_size"):
        TextToVideo(**(SMALL | {"input_size": 5}))
    with pytest.raises(ValueError, match="divisible by num_heads"):
        TextToVideo(**(SMALL | {"hidden_size": 36, "num_heads": 8}))


def test_constructor_arguments_are_attributes():
    net = small(activation_checkpointing=True)
    for name, value in (SMALL | {"activation_checkpointing": True, "patch_size": 2, "class_dropout": 0.1}).items():
        assert getattr(net, name) == value


def test_defaults_describe_the_released_model():
    """The expected values are the configuration on the Hub."""
    released = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "caption_channels": 4096}
    released |= {"cross_attention_dim": 1152, "sample_size": 64, "in_channels": 4, "out_channels": 8, "patch_size": 2}
    released |= {"norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False}
    released |= {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_eps": 1e-6, "video_length": 16}
    with torch.device("meta"):
        net = TextToVideo()
        reference = LatteTransformer3DModel(**released)
    assert {name: net.transformer.config[name] for name in released} == released
    shapes = {name: value.shape for name, value in net.transformer.state_dict().items()}
    assert shapes == {name: value.shape for name, value in reference.state_dict().items()}
