import copy
import math
from types import SimpleNamespace

import pytest
import torch

from latte_pl.codecs import PixelCodec
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
    return LatteModule(net, diffusion or GaussianDiffusion(), PixelCodec(), sampling, **kwargs)


def batch(clips, num_images=0):
    """Clips whose pixels and labels are functions of their numbers."""
    clips = torch.tensor(clips)
    frames = torch.arange(3 + num_images).view(1, -1, 1, 1, 1)
    places = torch.arange(3 * 4 * 6).view(1, 1, 3, 4, 6)
    video = ((clips.view(-1, 1, 1, 1, 1) * 37 + frames * 11 + places * 5) % 256).to(torch.uint8)
    label = clips % 5
    if num_images:
        label = (clips.unsqueeze(1) + torch.arange(1 + num_images)) % 5
    return {"video": video, "label": label, "clip": clips}


def test_the_loss_of_a_clip_does_not_depend_on_its_batch():
    model = module()
    u = torch.rand(5, generator=torch.Generator().manual_seed(1))
    t, whole = model.losses(model.net, batch([4, 9, 2, 7, 1]), u, 0, 0.3)
    for n, clip in enumerate([4, 9, 2, 7, 1]):
        t_one, one = model.losses(model.net, batch([clip]), u[n : n + 1], 0, 0.3)
        assert t_one == t[n]
        torch.testing.assert_close(one["loss"][0], whole["loss"][n])
    assert whole["loss"].shape == (5, 3)


def held_out(model, clips):
    """Return the held-out loss of one batch."""
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(val_clips=len(clips), dataset=lambda split: clips))
    model.validation_step(batch(clips), 0)
    return model.val_loss.compute()


def test_a_weight_of_training_changes_the_loss_but_not_the_held_out_one():
    clips, u = [0, 1, 2, 3, 4], torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9])
    plain, weighted = (module(GaussianDiffusion(min_snr_gamma=gamma)) for gamma in (None, 5.0))
    losses = [model.losses(model.net, batch(clips), u, 0, 0.0)[1]["loss"] for model in (plain, weighted)]
    assert (losses[1][:2] < losses[0][:2]).all()  # little noise
    assert torch.equal(losses[1][2:], losses[0][2:])
    assert torch.equal(held_out(weighted, clips), held_out(plain, clips))


@pytest.mark.parametrize("diffusion", [GaussianDiffusion(), GaussianDiffusion(learn_sigma=False), RectifiedFlow()])
def test_the_held_out_loss_of_an_unweighted_objective_is_its_loss(diffusion):
    clips, model = [0, 1, 2, 3, 4], module(diffusion)
    u = torch.frac(0.5 + torch.tensor(clips).double() * (5**0.5 - 1) / 2).float()
    _, losses = model.losses(model.ema, batch(clips), u, 0, 0.0)
    torch.testing.assert_close(held_out(model, clips), losses["loss"].mean())


def test_labels_are_dropped_at_the_rate_and_apart():
    model = module()
    labels = model.labels(batch(list(range(2000)), num_images=2), seed=0, dropout=0.3)
    dropped = (labels == model.net.null_label).float()
    assert dropped.mean(0) == pytest.approx([0.3] * 3, abs=0.04)
    assert torch.corrcoef(dropped.T).triu(1).abs().max() < 0.07
    assert torch.equal(labels[dropped == 0], batch(list(range(2000)), num_images=2)["label"][dropped == 0])
    assert (model.labels(batch([1, 2]), seed=0, dropout=0.0) == torch.tensor([1, 2])).all()


def test_cached_moments_give_the_loss_of_the_video():
    model = module()
    clips = batch([3, 8])
    moments = torch.cat(model.codec.moments(clips["video"]), dim=2)
    cached = {"moments": moments, "label": clips["label"], "clip": clips["clip"]}
    u = torch.tensor([0.2, 0.7])
    left, right = (model.losses(model.net, b, u, 0, 0.0)[1]["loss"] for b in (clips, cached))
    assert torch.equal(left, right)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_formula(monkeypatch, warmup):
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


def test_the_codec_is_in_no_checkpoint_and_no_optimizer():
    model = module()
    codec = dict(model.codec.named_parameters())
    assert not any("codec" in name for name in model.state_dict())
    assert {name.split(".")[0] for name in model.state_dict()} == {"net", "ema"}
    assert not {id(p) for p in codec.values()} & {id(p) for p in model.parameters()}


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
    ],
)
def test_the_rate_rises_and_falls_as_said(schedule, step, rate):
    model = module(lr=2.0, warmup_steps=4, lr_schedule=schedule)
    model._trainer = SimpleNamespace(max_steps=104, precision="32-true")
    (optimizer,), (config,) = model.configure_optimizers()
    assert config["interval"] == "step"
    assert optimizer.param_groups[0]["initial_lr"] * config["scheduler"].lr_lambdas[0](step) == pytest.approx(2 * rate)


@pytest.mark.parametrize("diffusion", [None, RectifiedFlow()])
def test_a_sample_is_its_number_in_any_batch(diffusion):
    model = module(diffusion)
    whole = model.sample([0, 1, 2], [4, 0, 3])
    assert whole.dtype == torch.uint8
    assert whole.shape == (3, 3, 3, 4, 6)
    assert whole.float().std() > 1
    apart = torch.cat([model.sample([2], [3]), model.sample([0, 1], [4, 0])])
    torch.testing.assert_close(whole[[2, 0, 1]].int(), apart.int(), atol=1, rtol=0)
    assert not torch.equal(model.sample([0], [4], seed=1), whole[:1])
    assert not torch.equal(model.sample([0], [1]), whole[:1])


def test_samples_come_from_the_weights_asked_for():
    model = module(sampling=Sampling("ddim", 4, weights="raw"))
    with torch.no_grad():
        model.net.final_layer.linear.bias.add_(0.5)
    raw = model.sample([0], [1])
    model.sampling.weights = "ema"
    assert not torch.equal(raw, model.sample([0], [1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ema_decay": 1.0}, r"ema_decay is 1.0"),
        ({"lr": 0.0}, r"lr is 0.0"),
        ({"sampling": Sampling("heun")}, r"'heun'; GaussianDiffusion knows ddpm"),
    ],
)
def test_arguments_out_of_range_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        module(**change)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"label 5 is outside the model's classes 0..4"):
        module().sample([0], [5])
    with pytest.raises(ValueError, match="say which class"):
        module().sample([0])


class Words(torch.nn.Module):
    """Encodes a caption as one token a letter."""

    width, length = 3, 6

    def encode(self, captions):
        if not isinstance(captions[0], str):
            return Text(*(torch.stack(parts, dim=1) for parts in zip(*map(self.encode, captions))))
        rows = [
            torch.tensor([[ord(letter) / 50.0, 1.0, n] for n, letter in enumerate(caption)]) for caption in captions
        ]
        return Text.padded(rows, self.length)


def reader(**kwargs):
    net = Latte(
        hidden_size=32, depth=2, num_heads=2, input_size=(4, 6), in_channels=3, num_frames=3, conditioning="text",
        text_dim=3, text_length=6, class_dropout=0.3,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(0))
    return LatteModule(net, GaussianDiffusion(), PixelCodec(), Sampling("ddim", 3), text_encoder=Words(), **kwargs)


def captioned(clips, num_images=0):
    """Clips with captions that are functions of their numbers."""
    groups = [["adgjmpsvy"[(clip + n) % 9] * 4 for clip in clips] for n in range(1 + num_images)]
    return batch(clips, num_images) | {"caption": groups if num_images else groups[0]}


@pytest.mark.parametrize("num_images", [0, 2])
def test_captions_are_dropped_with_the_labels_draws(num_images):
    model, clips = reader(), captioned(list(range(500)), num_images)
    text = model.text(clips, seed=0, dropout=0.3)
    given = Words().encode(clips["caption"])
    assert text.mask.shape == (*clips["label"].shape, 6)
    dropped = ~text.mask.any(dim=-1)
    labels = module().labels(clips, seed=0, dropout=0.3)
    assert torch.equal(dropped, labels == 5)
    assert torch.equal(text.mask[~dropped], given.mask[~dropped])
    assert torch.equal(text.embeddings, given.embeddings)
    assert model.text(clips, seed=0, dropout=0.0).mask.any(dim=-1).all()


@pytest.mark.parametrize("num_images", [0, 2])
def test_the_loss_depends_on_the_caption_and_not_on_the_batch(num_images):
    model, u = reader(), torch.tensor([0.2, 0.9, 0.5])
    _, whole = model.losses(model.net, captioned([4, 9, 2], num_images), u, 0, 0.0)
    _, one = model.losses(model.net, captioned([9], num_images), u[1:2], 0, 0.0)
    torch.testing.assert_close(one["loss"][0], whole["loss"][1])
    other = captioned([4, 9, 2], num_images) | {"caption": captioned([5, 9, 2], num_images)["caption"]}
    _, changed = model.losses(model.net, other, u, 0, 0.0)
    assert not torch.allclose(changed["loss"][0], whole["loss"][0], atol=1e-4)
    assert torch.equal(changed["loss"][1:], whole["loss"][1:])


def test_cached_embeddings_give_the_loss_of_the_captions():
    model, u = reader(), torch.tensor([0.2, 0.9])
    clips = captioned([4, 9])
    text = Words().encode(clips["caption"])
    cached = {name: value for name, value in clips.items() if name != "caption"} | {"text": text}
    left, right = (model.losses(model.net, b, u, 0, 0.5)[1]["loss"] for b in (clips, cached))
    assert torch.equal(left, right)


def test_a_step_moves_what_reads_the_caption():
    model = reader()
    _, losses = model.losses(model.net, captioned([4, 9, 2, 6]), torch.tensor([0.2, 0.9, 0.5, 0.7]), 0, 0.0)
    losses["loss"].mean().backward()
    for name in ("text_embedder.mlp.0.weight", "blocks.0.cross_attn.q.weight", "blocks.0.cross_attn.kv.weight"):
        assert model.net.get_parameter(name).grad.abs().max() > 1e-6, name


def test_samples_are_guided_towards_the_caption():
    model = reader()
    pictures = []
    for guidance in (0.0, 1.0, 5.0):
        model.sampling.guidance = guidance
        pictures.append([model.sample([3], prompts=[caption]) for caption in ("left", "right")])
    apart = [(left.float() - right.float()).abs().mean() for left, right in pictures]
    assert apart[0] == 0  # guidance 0 is the null caption's
    assert apart[1] > 0
    assert apart[2] > apart[1]


def test_a_text_model_needs_its_encoder():
    net = Latte(hidden_size=32, depth=2, num_heads=2, in_channels=3, conditioning="text", text_dim=3)
    with pytest.raises(ValueError, match=r"set model\.text_encoder$"):
        LatteModule(net, GaussianDiffusion(), PixelCodec())
