"""`LatteModule` under a stock `lightning.Trainer`, from plain Python."""

import copy
import csv
import gc

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from runs import differences, write_config
from torch import nn
from torch.utils.data import DataLoader

from latte_pl import cli
from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.data.requests import RequestBatches, sample_requests
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.evaluation import ProtocolEvaluation, VideoWriter
from latte_pl.metrics import Record
from latte_pl.nn import Latte
from latte_pl.nn.denoiser import Denoiser
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling, load

SIZE, FRAMES, CLASSES = (16, 24), 4, 8
PROTOCOL = """
metrics: [toy_video_distance]
split: val
num_frames: 4
view: first
num_real: 5
real_seed: 0
extractor: shapes_r3d
num_generated: 5
generated_interval: 1
weights: ema
seed: 3
folds: 2
"""


def build_net(conditioning="class", seed=0):
    net = Latte(
        hidden_size=16,
        depth=2,
        num_heads=2,
        patch_size=8,
        input_size=SIZE,
        in_channels=3,
        num_frames=FRAMES,
        conditioning=conditioning,
        num_classes=CLASSES,
    )
    net.init_weights(seed)
    return net


def build_module(net=None, **options):
    options = {"lr": 1e-2, "ema_decay": 0.9, **options}
    return LatteModule(net or build_net(), GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 2), **options)


def build_data(**options):
    return Shapes(size=SIZE, num_frames=FRAMES, interval=3, **{"global_batch_size": 4, "val_clips": 5, **options})


def clips(count, keys=("video", "label"), batch_size=4):
    """Return a user's DataLoader of clips that are functions of their indices."""
    generator = torch.Generator().manual_seed(0)
    videos = torch.randint(256, (count, FRAMES, 3, *SIZE), dtype=torch.uint8, generator=generator)
    moments = torch.cat(PixelAutoencoder().moments(videos), dim=2)
    items = [{"video": videos[n], "moments": moments[n], "label": torch.tensor(n % CLASSES)} for n in range(count)]
    return DataLoader([{key: item[key] for key in keys} for item in items], batch_size=batch_size)


def trainer(folder, **options):
    options = {"logger": False, "enable_checkpointing": bool(options.get("callbacks")), **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def rows(folder):
    """Return the values that a CSVLogger wrote, as (step, value) by name."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        table = list(csv.DictReader(file))
    names = [name for name in table[0] if name not in ("step", "epoch")]
    return {name: [(int(row["step"]), float(row[name])) for row in table if row[name]] for name in names}


class Indices(Callback):
    """Collect the indices of the clips of each training batch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch["clip"].tolist())


# ------------------------------------------------------------------------------- fit, validate, test, predict


def test_shapes_datamodule_trains_validates_tests_and_predicts(tmp_path):
    (tmp_path / "few.yaml").write_text(PROTOCOL)
    module, data = build_module(), build_data()
    evaluation = ProtocolEvaluation(str(tmp_path / "few.yaml"))
    stock = trainer(
        tmp_path,
        max_steps=4,
        val_check_interval=2,
        log_every_n_steps=2,
        logger=CSVLogger(tmp_path),
        callbacks=[evaluation, VideoWriter(tmp_path / "samples")],
    )
    stock.fit(module, datamodule=data)
    losses = ("train/loss", "train/mse", "train/vb", "val/loss")
    logged = rows(tmp_path)
    for name in losses:
        assert [step for step, _ in logged[name]] == [2, 4], name
        assert logged[name][-1][1] == pytest.approx(float(stock.callback_metrics[name]), rel=1e-5), name

    assert stock.validate(module, datamodule=data, verbose=False) == [
        {"val/loss": pytest.approx(logged["val/loss"][-1][1])}
    ]

    (tested,) = stock.test(module, datamodule=data, verbose=False)
    score = evaluation.record.scores["toy_video_distance"].value
    assert tested == {"test/toy_video_distance": pytest.approx(score, rel=1e-6)}
    assert Record.read(evaluation.path) == evaluation.record
    assert evaluation.path.parent == tmp_path / "test"

    data.set_requests(sample_requests(3, labels=[0, 4]), batch_size=2)
    predicted = torch.cat(stock.predict(module, datamodule=data))
    assert torch.equal(predicted, module.sample([0, 1, 2], [0, 4, 0]))
    assert sorted(path.name for path in (tmp_path / "samples").rglob("*.mp4")) == [f"{n:04d}.mp4" for n in range(3)]
    assert (tmp_path / "samples/contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("conditioning", "keys"),
    [("class", ("video", "label")), ("none", ("video",)), ("class", ("moments", "label"))],
)
def test_own_loader_trains_validates_tests_and_predicts(tmp_path, conditioning, keys):
    module = build_module(build_net(conditioning))
    stock = trainer(
        tmp_path,
        max_epochs=2,
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        callbacks=[VideoWriter(tmp_path / "samples")],
    )
    stock.fit(module, clips(8, keys), clips(6, keys))
    logged = rows(tmp_path)
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in logged["val/loss"]] == [2, 4]
    assert float(stock.callback_metrics["train/loss"]) == pytest.approx(logged["train/loss"][-1][1], rel=1e-5)
    (validated,) = stock.validate(module, clips(6, keys), verbose=False)
    assert validated["val/loss"] == pytest.approx(logged["val/loss"][-1][1], rel=1e-5)
    (tested,) = stock.test(module, clips(6, keys), verbose=False)
    assert tested["test/loss"] == validated["val/loss"]
    labels = [1, 5] if conditioning == "class" else None
    (videos,) = stock.predict(module, RequestBatches(sample_requests(2, labels)).loader())
    assert torch.equal(videos, module.sample([0, 1], labels))
    assert (tmp_path / "samples/contact_sheet.png").is_file()


def test_held_out_loss_does_not_depend_on_the_batch_size(tmp_path):
    module, losses = build_module(), []
    for batch_size in (7, 3):
        (result,) = trainer(tmp_path).validate(module, clips(7, batch_size=batch_size), verbose=False)
        losses.append(result["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_memory_stays_flat_over_500_steps(tmp_path):
    counts = []

    class Count(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step in (100, 300, 500):
                gc.collect()
                objects = gc.get_objects()
                counts.append((sum(isinstance(item, torch.Tensor) for item in objects), len(objects)))
                assert len(pl_module._window) <= 1

    net = Latte(hidden_size=8, depth=2, num_heads=1, patch_size=8, input_size=8, in_channels=3, num_frames=1)
    videos = DataLoader([{"video": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)} for _ in range(100)], batch_size=2)
    trainer(tmp_path, max_steps=500, callbacks=[Count()], log_every_n_steps=20).fit(build_module(net), videos)
    (tensors, objects), *later = counts
    assert len(later) == 2
    for more_tensors, more_objects in later:
        assert more_tensors <= tensors
        assert more_objects <= objects + 20


def test_epochs_of_the_endless_stream_continue_it(tmp_path):
    seen = Indices()
    stock = trainer(tmp_path, max_epochs=2, limit_train_batches=2, callbacks=[seen], limit_val_batches=0)
    stock.fit(build_module(), datamodule=build_data())
    assert seen.batches == [list(range(n, n + 4)) for n in (0, 4, 8, 12)]


def test_each_batch_of_an_own_loader_has_its_own_draws(tmp_path, monkeypatch):
    """The last batch of an epoch is smaller, and clips of different steps never share an index."""
    seen, original = [], LatteModule.losses
    monkeypatch.setattr(
        LatteModule,
        "losses",
        lambda self, net, batch, *rest: (seen.extend(batch["clip"].tolist()), original(self, net, batch, *rest))[1],
    )
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(build_module(), clips(10))
    assert len(seen) == len(set(seen)) == 20


def test_seed_names_the_random_draws(tmp_path):
    net, losses = build_net(), []
    for seed in (0, 0, 1):
        module = build_module(copy.deepcopy(net), seed=seed)
        stock = trainer(tmp_path, max_steps=1, log_every_n_steps=1)
        stock.fit(module, clips(4))
        losses.append(float(stock.callback_metrics["train/loss"]))
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-4


# ---------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint_files(tmp_path_factory):
    """Checkpoints of Python and of the command line, without and with snapshots of EMAs, and the trained modules."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for every in (0, 1):
        module = build_module(ema_snapshot_every=every)
        root = folder / f"python{every}"
        saving = ModelCheckpoint(root, save_last=True)
        trainer(root, max_epochs=1, callbacks=[saving]).fit(module, clips(4))
        found["python", every] = root / "last.ckpt", module
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for every in (0, 1):
            more = [f"--model.ema_snapshot_every={every}", "--samples.num_samples=1"]
            cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=1", f"--name=cli{every}", *more])
            path = folder / f"runs/cli{every}/checkpoints/step=0000001.ckpt"
            found["latte fit", every] = path, load(path)
    return found


@pytest.mark.parametrize("origin", ["python", "latte fit"])
@pytest.mark.parametrize("every", [0, 1])
def test_load_from_checkpoint_restores_the_module(checkpoint_files, origin, every):
    path, module = checkpoint_files[origin, every]
    loaded = LatteModule.load_from_checkpoint(path)
    assert torch.equal(loaded.sample([0, 1], [2, 3]), module.sample([0, 1], [2, 3]))
    # `load` builds no copies that only training needs
    trained = {name: value for name, value in module.state_dict().items() if not name.startswith("averages.")}
    stored = loaded.state_dict()
    assert any(name.startswith("averages.") for name in stored) == bool(every)
    assert list(differences(trained, {name: stored[name] for name in trained})) == []
    assert (loaded.lr, loaded.ema_decay, loaded.ema_snapshot_every) == (0.01, 0.9, every)
    assert loaded.net.config == module.net.config


def test_load_from_checkpoint_accepts_other_settings(checkpoint_files):
    path, module = checkpoint_files["python", 0]
    loaded = LatteModule.load_from_checkpoint(path, sampling=Sampling("ddim", 3), lr=0.5)
    assert (loaded.sampling.steps, loaded.lr) == (3, 0.5)
    assert not torch.equal(loaded.sample([0], [2]), module.sample([0], [2]))


def test_commands_use_a_checkpoint_of_python(checkpoint_files, tmp_path):
    path, module = checkpoint_files["python", 1]
    assert torch.equal(load(path).sample([5], [1]), module.sample([5], [1]))
    data = {"class_path": "latte_pl.toy.Shapes", "init_args": {"size": list(SIZE), "num_frames": FRAMES}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    cli.main(
        [
            "predict",
            f"--ckpt_path={path}",
            f"--config={tmp_path / 'data.yaml'}",
            f"--output={tmp_path / 'out'}",
            "--num_samples=1",
        ]
    )
    assert (tmp_path / "out/contact_sheet.png").is_file()


class Pointwise(Denoiser):
    """A denoiser of the user that does not keep its constructor argument."""

    in_channels, input_size, num_frames, learn_sigma = 3, SIZE, FRAMES, False
    conditioning, num_classes, text_dim, text_length, class_dropout = "none", 0, 0, 0, 0.0

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, 3)])

    def null_text(self, text):
        raise NotImplementedError

    def init_weights(self, seed=None):
        pass

    def forward(self, x, timesteps, labels=None, text=None, num_images=0):
        first, second = self.blocks
        return second(first(x.movedim(2, -1)).tanh()).movedim(-1, 2)


def test_custom_denoiser_trains_and_is_passed_to_load_from_checkpoint(tmp_path):
    module = LatteModule(Pointwise(5), GaussianDiffusion(learn_sigma=False), PixelAutoencoder(), Sampling("ddim", 2))
    before = copy.deepcopy(module.net.state_dict())
    stock = trainer(tmp_path, max_epochs=1)
    stock.fit(module, clips(4, ("video",)))
    assert list(differences(before, module.net.state_dict())) != []
    stock.save_checkpoint(tmp_path / "custom.ckpt")
    with pytest.raises(ValueError, match=r"does not describe net; pass net= to load_from_checkpoint"):
        LatteModule.load_from_checkpoint(tmp_path / "custom.ckpt")
    loaded = LatteModule.load_from_checkpoint(tmp_path / "custom.ckpt", net=Pointwise(5))
    assert torch.equal(loaded.sample([0]), module.sample([0]))


# --------------------------------------------------------------------------------------------- resume


def resume(folder, data, checkpoint, accumulate, length):
    """Train without interruption, and again from one of the stock checkpoints; return both states."""
    states = []
    for path in (None, checkpoint):
        saving = ModelCheckpoint(folder / "saved", save_top_k=-1, filename="{step}", **data.pop("saving", {}))
        module = build_module(build_net(seed=0 if path is None else 1), warmup_steps=3)
        stock = trainer(folder, callbacks=[saving], accumulate_grad_batches=accumulate, log_every_n_steps=1, **length)
        stock.fit(module, **data["make"](), ckpt_path=path and folder / "saved" / path)
        states.append(
            {
                "weights": module.state_dict(),
                "optimizer": stock.optimizers[0].state_dict(),
                "step": stock.global_step,
                "loss": stock.callback_metrics["train/loss"],
            }
        )
    return states


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_with_the_datamodule_is_bit_exact(tmp_path, accumulate):
    data = {"make": lambda: {"datamodule": build_data()}, "saving": {"every_n_train_steps": 2}}
    whole, resumed = resume(tmp_path, data, "step=2.ckpt", accumulate, {"max_steps": 5, "val_check_interval": 2})
    assert list(differences(whole, resumed)) == []


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_steps": 6, "max_epochs": -1}])
def test_resume_with_an_own_loader_is_bit_exact_at_epochs(tmp_path, accumulate, length):
    data = {"make": lambda: {"train_dataloaders": clips(10), "val_dataloaders": clips(4)}}
    checkpoint = f"step={3 if accumulate == 1 else 2}.ckpt"  # the last batch of an epoch ends a step
    whole, resumed = resume(tmp_path, data, checkpoint, accumulate, length)
    assert list(differences(whole, resumed)) == []


class GradientNorms(Callback):
    """Keeps the norm of the gradient of each step, after clipping."""

    def __init__(self):
        self.norms = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [parameter.grad for parameter in pl_module.net.parameters() if parameter.grad is not None]
        self.norms += [float(torch.nn.utils.get_total_norm(gradients))] if gradients else []


def test_gradients_are_clipped_from_a_step_on():
    norms = GradientNorms()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=6, gradient_clip_val=0.01, callbacks=[norms], **options)
    trainer.fit(build_module(clip_from_step=3), clips(24))
    assert len(norms.norms) >= 5
    assert all(norm > 0.02 for norm in norms.norms[:3])
    assert norms.norms[3:] == pytest.approx([0.01] * len(norms.norms[3:]), rel=1e-3)
