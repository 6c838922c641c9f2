import copy
import math
from types import SimpleNamespace

import pytest
import torch

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion, RectifiedFlow
from latte_pl.nn import Latte
from latte_pl.training import LatteModule, Sampling
from latte_pl.types import Text


def module(diffusion=None, **kwargs):
    net = Latte(
        hidden_size=32,
        depth=2,
        num_heads=2,
        patch_size=2,
        input_size=(4, 6),
        in_channels=3,
        num_frames=3,
        conditioning="class",
        num_classes=5,
        class_dropout=0.3,
        learn_sigma=diffusion is None or diffusion.learn_sigma,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    sampling = kwargs.pop("sampling", Sampling("euler" if isinstance(diffusion, RectifiedFlow) else "ddpm", 4))
    return LatteModule(net, diffusion or GaussianDiffusion(), PixelAutoencoder(), sampling, **kwargs)


def losses(model, clips, u, dropout=0.0, net=None):
    """Return the losses of a batch by name, with the random draws of seed 0 and timesteps given by uniforms."""
    return model.losses(net or model.net, clips, model.draw(clips, 0, torch.as_tensor(u)), dropout)[1]


def batch(clips, num_images=0):
    """Return clips whose pixels and labels are functions of their indices."""
    clips = torch.tensor(clips)
    frames = torch.arange(3 + num_images).view(1, -1, 1, 1, 1)
    places = torch.arange(3 * 4 * 6).view(1, 1, 3, 4, 6)
    video = ((clips.view(-1, 1, 1, 1, 1) * 37 + frames * 11 + places * 5) % 256).to(torch.uint8)
    label = clips % 5
    if num_images:
        label = (clips.unsqueeze(1) + torch.arange(1 + num_images)) % 5
    return {"video": video, "label": label, "clip": clips}


def test_loss_of_a_clip_does_not_depend_on_its_batch():
    model = module()
    u = torch.rand(5, generator=torch.Generator().manual_seed(1))
    whole = losses(model, batch([4, 9, 2, 7, 1]), u, 0.3)
    for n, clip in enumerate([4, 9, 2, 7, 1]):
        one = losses(model, batch([clip]), u[n : n + 1], 0.3)
        torch.testing.assert_close(one["loss"][0], whole["loss"][n])
    assert whole["loss"].shape == (5, 3)


def test_min_snr_weights_change_the_training_loss_but_not_the_held_out_loss():
    clips, u = [0, 1, 2, 3, 4], torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9])
    plain, weighted = (module(GaussianDiffusion(min_snr_gamma=gamma)) for gamma in (None, 5.0))
    trained = [losses(model, batch(clips), u)["loss"] for model in (plain, weighted)]
    assert (trained[1][:2] < trained[0][:2]).all()  # little noise
    assert torch.equal(trained[1][2:], trained[0][2:])
    held_out = [model.held_out_loss(batch(clips))[0] for model in (plain, weighted)]
    assert torch.equal(*held_out)


@pytest.mark.parametrize("diffusion", [GaussianDiffusion(), GaussianDiffusion(learn_sigma=False), RectifiedFlow()])
def test_held_out_loss_without_weights_is_the_training_loss(diffusion):
    clips, model = [0, 1, 2, 3, 4], module(diffusion)
    u = torch.frac(0.5 + torch.tensor(clips).double() * (5**0.5 - 1) / 2).float()
    held_out, weights = model.held_out_loss(batch(clips))
    torch.testing.assert_close(held_out, losses(model, batch(clips), u, net=model.ema)["loss"].mean(dim=1))
    assert weights.tolist() == [1.0] * 5


def test_padding_does_not_count_in_the_held_out_loss():
    model = module()
    _, weights = model.held_out_loss({**batch([3, 4, 5]), "padding": torch.tensor([False, True, False])})
    assert weights.tolist() == [1.0, 0.0, 1.0]


def test_labels_are_dropped_at_their_rate_and_independently():
    model = module()
    clips = batch(list(range(2000)), num_images=2)
    labels = model.labels(clips, model.draw_conditions(clips, seed=0) < 0.3)
    dropped = (labels == model.net.null_label).float()
    assert dropped.mean(0) == pytest.approx([0.3] * 3, abs=0.04)
    assert torch.corrcoef(dropped.T).triu(1).abs().max() < 0.07
    assert torch.equal(labels[dropped == 0], clips["label"][dropped == 0])
    assert (
        model.labels(batch([1, 2]), model.draw_conditions(batch([1, 2]), seed=0) < 0.0) == torch.tensor([1, 2])
    ).all()


def test_cached_moments_have_the_loss_of_the_video():
    model = module()
    clips = batch([3, 8])
    moments = torch.cat(model.autoencoder.moments(clips["video"]), dim=2)
    cached = {"moments": moments, "label": clips["label"], "clip": clips["clip"]}
    u = torch.tensor([0.2, 0.7])
    left, right = (losses(model, b, u)["loss"] for b in (clips, cached))
    assert torch.equal(left, right)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_follows_its_formula(monkeypatch, warmup):
    model = module(ema_decay=0.9, ema_warmup=warmup)
    before = copy.deepcopy(model.ema.state_dict())
    monkeypatch.setattr("lightning.LightningModule.optimizer_step", lambda self: None)
    model._trainer = SimpleNamespace(global_step=3)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(1.0)
    model.optimizer_step()
    decay = min(0.9, 4 / 13) if warmup else 0.9
    for name, value in model.ema.named_parameters():
        torch.testing.assert_close(value, before[name] + (1.0 - decay))


def test_autoencoder_is_neither_saved_nor_optimized():
    model = module()
    autoencoder = dict(model.autoencoder.named_parameters())
    assert not any("autoencoder" in name for name in model.state_dict())
    assert {name.split(".")[0] for name in model.state_dict()} == {"net", "ema"}
    assert not {id(p) for p in autoencoder.values()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("constant", 0, 0.25),
        ("constant", 3, 1.0),
        ("constant", 90, 1.0),
        ("cosine", 1, 0.5),
        ("cosine", 4, 1.0),
        ("cosine", 54, 0.5 * (1 + math.cos(math.pi * 50 / 100))),
        ("cosine", 104, 0.0),
        ("wsd", 1, 0.5),
        ("wsd", 72, 1.0),
        ("wsd", 88, (104 - 88) / (0.3 * 104)),
        ("wsd", 104, 0.0),
    ],
)
def test_learning_rate_follows_its_schedule(schedule, step, rate):
    model = module(lr=2.0, warmup_steps=4, lr_schedule=schedule)
    model._trainer = SimpleNamespace(max_steps=104, precision="32-true")
    (optimizer,), (config,) = model.configure_optimizers()
    assert config["interval"] == "step"
    assert optimizer.param_groups[0]["initial_lr"] * config["scheduler"].lr_lambdas[0](step) == pytest.approx(2 * rate)


@pytest.mark.parametrize("diffusion", [None, RectifiedFlow()])
def test_sample_depends_on_its_index_and_not_on_the_batch(diffusion):
    model = module(diffusion)
    whole = model.sample([0, 1, 2], [4, 0, 3])
    assert whole.dtype == torch.uint8
    assert whole.shape == (3, 3, 3, 4, 6)
    assert whole.float().std() > 1
    apart = torch.cat([model.sample([2], [3]), model.sample([0, 1], [4, 0])])
    torch.testing.assert_close(whole[[2, 0, 1]].int(), apart.int(), atol=1, rtol=0)
    assert not torch.equal(model.sample([0], [4], seed=1), whole[:1])
    assert not torch.equal(model.sample([0], [1]), whole[:1])


def test_sampling_weights_select_the_ema_or_the_raw_weights():
    model = module(sampling=Sampling("ddim", 4, weights="raw"))
    with torch.no_grad():
        model.net.final_layer.linear.bias.add_(0.5)
    raw = model.sample([0], [1])
    model.sampling.weights = "ema"
    assert not torch.equal(raw, model.sample([0], [1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema_decay": 1.0}, r"ema_decay is 1.0"),
        ({"lr": 0.0}, r"lr is 0.0"),
        ({"sampling": Sampling("heun")}, r"'heun'; GaussianDiffusion supports ddpm"),
    ],
)
def test_arguments_out_of_range_raise(change, message):
    with pytest.raises(ValueError, match=message):
        module(**change)


def test_wrong_or_missing_labels_raise():
    with pytest.raises(ValueError, match=r"label 5 is outside the model's classes 0..4"):
        module().sample([0], [5])
    with pytest.raises(ValueError, match="give the class of each sample"):
        module().sample([0])
    clips = {name: value for name, value in batch([1, 2]).items() if name != "label"}
    with pytest.raises(ValueError, match=r'each batch needs "label" \(B,\) int64'):
        module().held_out_loss(clips)


class Words(torch.nn.Module):
    """A text encoder with one token per letter."""

    width, length = 3, 6

    def encode(self, captions):
        if not isinstance(captions[0], str):
            return Text(*(torch.stack(parts, dim=1) for parts in zip(*map(self.encode, captions))))
        rows = [
            torch.tensor([[ord(letter) / 50.0, 1.0, n] for n, letter in enumerate(caption)]) for caption in captions
        ]
        return Text.padded(rows, self.length)


def text_module(**kwargs):
    net = Latte(
        hidden_size=32, depth=2, num_heads=2, input_size=(4, 6), in_channels=3, num_frames=3, conditioning="text",
        text_dim=3, text_length=6, class_dropout=0.3,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(0))
    return LatteModule(
        net, GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 3), text_encoder=Words(), **kwargs
    )


def captioned(clips, num_images=0):
    """Return clips with captions that are functions of their indices."""
    groups = [["adgjmpsvy"[(clip + n) % 9] * 4 for clip in clips] for n in range(1 + num_images)]
    return batch(clips, num_images) | {"caption": groups if num_images else groups[0]}


@pytest.mark.parametrize("num_images", [0, 2])
def test_captions_are_dropped_by_the_draws_of_labels(num_images):
    model, clips = text_module(), captioned(list(range(500)), num_images)
    draws = model.draw_conditions(clips, seed=0)
    text = model.text(clips, draws < 0.3)
    given = Words().encode(clips["caption"])
    assert text.mask.shape == (*clips["label"].shape, 6)
    dropped = ~text.mask.any(dim=-1)
    labels = module().labels(clips, draws < 0.3)
    assert torch.equal(dropped, labels == 5)
    assert torch.equal(text.mask[~dropped], given.mask[~dropped])
    assert torch.equal(text.embeddings, given.embeddings)
    assert model.text(clips, draws < 0.0).mask.any(dim=-1).all()


@pytest.mark.parametrize("num_images", [0, 2])
def test_loss_depends_on_the_caption_and_not_on_the_batch(num_images):
    model, u = text_module(), torch.tensor([0.2, 0.9, 0.5])
    whole = losses(model, captioned([4, 9, 2], num_images), u)
    one = losses(model, captioned([9], num_images), u[1:2])
    torch.testing.assert_close(one["loss"][0], whole["loss"][1])
    other = captioned([4, 9, 2], num_images) | {"caption": captioned([5, 9, 2], num_images)["caption"]}
    changed = losses(model, other, u)
    assert not torch.allclose(changed["loss"][0], whole["loss"][0], atol=1e-4)
    assert torch.equal(changed["loss"][1:], whole["loss"][1:])


def test_cached_embeddings_have_the_loss_of_the_captions():
    model, u = text_module(), torch.tensor([0.2, 0.9])
    clips = captioned([4, 9])
    text = Words().encode(clips["caption"])
    cached = {name: value for name, value in clips.items() if name != "caption"} | {"text": text}
    left, right = (losses(model, b, u, 0.5)["loss"] for b in (clips, cached))
    assert torch.equal(left, right)


def test_caption_parameters_have_gradients():
    model = text_module()
    losses(model, captioned([4, 9, 2, 6]), [0.2, 0.9, 0.5, 0.7])["loss"].mean().backward()
    for name in ("text_embedder.mlp.0.weight", "blocks.0.cross_attn.q.weight", "blocks.0.cross_attn.kv.weight"):
        assert model.net.get_parameter(name).grad.abs().max() > 1e-6, name


def test_guidance_separates_samples_of_different_captions():
    model = text_module()
    pictures = []
    for guidance in (0.0, 1.0, 5.0):
        model.sampling.guidance = guidance
        pictures.append([model.sample([3], prompts=[caption]) for caption in ("left", "right")])
    apart = [(left.float() - right.float()).abs().mean() for left, right in pictures]
    assert apart[0] == 0  # guidance 0 uses the null caption alone
    assert apart[1] > 0
    assert apart[2] > apart[1]


def test_text_model_without_text_encoder_raises():
    net = Latte(hidden_size=32, depth=2, num_heads=2, in_channels=3, conditioning="text", text_dim=3)
    with pytest.raises(ValueError, match=r"set model\.text_encoder$"):
        LatteModule(net, GaussianDiffusion(), PixelAutoencoder())
