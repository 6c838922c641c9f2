"""The commands as a user types them: results, files, and one line for every mistake."""

import io
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from runs import curve, differences, run_distributed, write_config
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latte_pl import cli
from latte_pl.cli.config import resolve
from latte_pl.training import load
from latte_pl.training.weights import find, outline


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of six steps, "six"."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=6", "--name=six"])
    return folder / "runs/six"


def error_of(capsys, *args):
    """Run a command that has to fail, and return its error message."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_run_writes_curves_samples_and_its_configuration(trained):
    assert [step for step, _ in curve(trained, "train/loss")] == [3, 6]
    assert dict(curve(trained, "train/clips_seen")) == {3: 12, 6: 24}
    assert [step for step, _ in curve(trained, "val/loss")] == [5]
    with Image.open(trained / "samples/step=0000006.gif") as image:
        assert image.n_frames == 4
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["depth"] == 2


def test_given_logger_replaces_tensorboard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    more = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--samples.num_samples=1"]
    cli.main(["fit", "-c", write_config(tmp_path), "--name=csv", *logger, *more])
    (table,) = (tmp_path / "logs").rglob("metrics.csv")
    assert {"step", "train/loss", "train/clips_seen"} <= set(table.read_text().splitlines()[0].split(","))
    assert not list((tmp_path / "runs/csv").glob("events*"))
    assert (tmp_path / "runs/csv/samples/step=0000002.gif").is_file()


def test_samples_are_animations_in_tensorboard(trained):
    events = EventAccumulator(str(trained)).Reload()
    with Image.open(io.BytesIO(events.Images("samples")[0].encoded_image_string)) as image:
        assert image.format == "GIF"
        assert image.n_frames == 4
    assert {"custom_scalars__config__", "samples/labels/text_summary"} <= set(events.Tags()["tensors"])


def test_saved_configuration_reproduces_the_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", "-c", str(trained / "config.yaml"), "--name=again"])
    assert list(differences(load(trained).state_dict(), load("runs/again").state_dict())) == []


def test_command_of_a_finished_run_changes_nothing(trained, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    checkpoint = trained / "checkpoints/step=0000006.ckpt"
    before = checkpoint.read_bytes()
    cli.main(["fit", "-c", "tiny.yaml", "--trainer.max_steps=6", "--name=six"])
    assert checkpoint.read_bytes() == before


def copy_of_earlier_version(folder, name, **changes):
    """Copy a run, and remove or add settings in its configuration, as in a checkpoint of an earlier version."""
    shutil.copytree(folder, folder.parent / name)
    path = find(folder.parent / name)
    checkpoint = torch.load(path, weights_only=True)
    model = checkpoint["config"]["model"]
    for key in ("clip_from_step", "lr_schedule"):
        del model[key]
    del model["net"]["init_args"]["class_dropout"]
    model |= changes
    torch.save(checkpoint, path)


def test_run_of_an_earlier_version_resumes_with_default_values(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    copy_of_earlier_version(trained, "old")
    args = ["fit", "-c", "tiny.yaml", "--name=old"]
    for change, message in {
        "clip_from_step=3": "model.clip_from_step=0, this command has model.clip_from_step=3",
        "net.class_dropout=0.5": "class_dropout=0.1, this command has model.net.init_args.class_dropout=0.5",
        "lr=0.5": "model.lr=0.01, this command has model.lr=0.5",
    }.items():
        assert message in error_of(capsys, *args, f"--model.{change}")
    cli.main([*args, "--trainer.max_steps=7"])
    assert find("runs/old").name == "step=0000007.ckpt"


def test_removed_setting_of_an_earlier_version_is_a_change(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    copy_of_earlier_version(trained, "odd", temperature=3)
    assert "runs/odd holds a run with model." in error_of(capsys, "fit", "-c", "tiny.yaml", "--name=odd")


@pytest.mark.parametrize("start", ["", "checkpoints/step=0000006.ckpt"])
def test_new_run_starts_from_another_run(trained, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = trained / start
    config = ["-c", str(trained.parent.parent / "tiny.yaml"), "--model.lr_schedule=cosine"]
    cli.main(["fit", *config, "--ckpt_path", str(start), "--name=on", "--trainer.max_steps=8"])
    assert [path.name for path in (tmp_path / "runs/on/checkpoints").iterdir()] == ["step=0000008.ckpt"]


def test_predict_draws_the_given_classes(trained, tmp_path, capsys):
    args = ["--ckpt_path", str(trained), "--output", str(tmp_path / "out"), "--trainer.accelerator=cpu"]
    cli.main(["predict", *args, "--num_samples=3", "--labels=[up, 2]", "--batch_size=2"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["contact_sheet.gif", "contact_sheet.png", "previews", "samples.json", "videos"]
    for place, ending in (("previews", "gif"), ("videos", "mp4")):
        files = sorted(path.name for path in (tmp_path / "out" / place).iterdir())
        assert files == [f"000{n}_up.{ending}" for n in range(3)]
    assert "move as labelled" in capsys.readouterr().out


def test_predict_on_two_devices_draws_the_samples_of_one(trained, tmp_path):
    """Five samples are a batch of four and a batch of one, or a single batch, so that a process has none."""
    args = ["predict", f"--ckpt_path={trained}", "--num_samples=5", "--trainer.accelerator=cpu"]
    for name, batch_size, more in (
        ("one", 4, []),
        ("two", 4, ["--trainer.strategy=ddp"]),
        ("single", 8, ["--trainer.strategy=ddp"]),
    ):
        command = [*args, f"--output={tmp_path / name}", f"--batch_size={batch_size}", *more]
        if more:
            run_distributed(command, tmp_path)
        else:
            cli.main(command)
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in ("one", "two", "single")]
    assert sheets[0] == sheets[1]
    assert len(list((tmp_path / "single").rglob("*.mp4"))) == 5


def test_explicit_values_win_over_the_checkpoint(trained, tmp_path):
    pictures = {}
    for guidance in (1.0, 2.0, 8.0):
        out = tmp_path / str(guidance)
        args = ["predict", "--ckpt_path", str(trained), "--output", str(out), "--trainer.accelerator=cpu"]
        cli.main([*args, "--num_samples=2", f"--model.sampling.guidance={guidance}"])
        pictures[guidance] = (out / "contact_sheet.png").read_bytes()
    assert all(pictures[a] != pictures[b] for a, b in pairwise(pictures))
    out = tmp_path / "default"
    cli.main(["predict", "--ckpt_path", str(trained), "--output", str(out), "--num_samples=2"])
    assert (out / "contact_sheet.png").read_bytes() == pictures[2.0]


def test_resume_with_another_accumulation_uses_the_same_clips(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["fit", "-c", str(trained.parent.parent / "tiny.yaml"), "--name=two"]
    cli.main([*config, "--trainer.max_steps=3"])
    cli.main([*config, "--trainer.max_steps=6", "--trainer.accumulate_grad_batches=2"])
    two = load("runs/two").state_dict()
    for name, value in load(trained).state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)


def test_truncated_checkpoint_is_skipped(trained, tmp_path):
    folder = tmp_path / "run/checkpoints"
    shutil.copytree(trained / "checkpoints", folder)
    whole = (folder / "step=0000006.ckpt").read_bytes()
    (folder / "step=0000007.ckpt").write_bytes(whole[: len(whole) // 2])
    assert find(tmp_path / "run").name == "step=0000006.ckpt"


@pytest.mark.parametrize(("value", "changes"), [(0.0, True), (1e-12, False)])
def test_clipping_starts_at_its_step(trained, value, changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["fit", "-c", str(trained.parent.parent / "tiny.yaml"), f"--trainer.gradient_clip_val={value}"]
    moments = []
    for first in (0, 1):
        cli.main([*config, "--trainer.max_steps=1", f"--model.clip_from_step={first}", f"--name=from{first}"])
        checkpoint = torch.load(f"runs/from{first}/checkpoints/step=0000001.ckpt", weights_only=True)
        states = checkpoint["optimizer_states"][0]["state"].values()
        moments.append(max(float(state["exp_avg"].abs().max()) for state in states))
    assert (moments[0] > 1e-6) is changes
    assert moments[1] > 1e-6


def test_exported_weights_are_the_ema_with_its_configuration(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    cli.main(["export", str(trained), str(path), "--dtype=float16"])
    with safe_open(path, framework="pt") as file:
        assert all(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118
    whole, small = load(trained), load(path)
    for name, value in whole.ema.state_dict().items():
        torch.testing.assert_close(small.ema.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    labels = [n % 8 for n in range(2)]
    assert whole.sample([0, 1], labels).shape == small.sample([0, 1], labels).shape == (2, 4, 3, 16, 24)


def test_validate_prints_the_held_out_loss(trained, tmp_path, capsys):
    cli.main(["validate", "--ckpt_path", str(trained), "--trainer.accelerator=cpu"])
    shown = float(re.search(r"val/loss ([\d.]+) of the EMA weights at step 6", capsys.readouterr().out)[1])
    (_, logged), *_ = curve(trained, "val/loss")  # of step 5
    assert shown == pytest.approx(logged, rel=0.05)
    assert shown != pytest.approx(logged, rel=1e-6)


def test_info_prints_parameters_and_memory(trained, capsys):
    config = str(trained.parent.parent / "tiny.yaml")
    cli.main(["info", "-c", config])
    table = capsys.readouterr().out
    rows = dict(re.findall(r"^(\D+?) +([\d,]+) ", table, re.MULTILINE))
    parameters = sum(parameter.numel() for parameter in outline(resolve(["-c", config])).parameters())
    assert int(rows["forward"].replace(",", "")) == parameters
    assert {"spatial attention", "temporal attention", "MLP"} <= rows.keys()
    assert re.search(r"^activations +[\d,.]+ MiB$", table, re.MULTILINE)


def test_info_counts_the_emas_of_snapshots(trained, capsys):
    def memory(*more):
        cli.main(["info", "-c", str(trained.parent.parent / "tiny.yaml"), *more])
        rows = re.findall(r"^(\D+?) +([\d,.]+) MiB$", capsys.readouterr().out, re.MULTILINE)
        return {name: float(value.replace(",", "")) for name, value in rows}

    plain, averaged = memory(), memory("--model.ema_snapshot_every=100")
    (name,) = averaged.keys() - plain.keys()
    assert averaged.pop(name) == pytest.approx(2 * plain["weights"], abs=0.11)
    assert averaged.pop("total") == pytest.approx(plain.pop("total") + 2 * plain["weights"], abs=0.11)
    assert averaged == plain


FIT = ["fit", "-c", "tiny.yaml"]
MISTAKES = {
    "cosine without a last step": (
        [*FIT, "--model.lr_schedule=cosine", "--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"],
        r"set trainer.max_steps",
    ),
    "other number of frames than the data": ([*FIT, "--model.net.num_frames=3"], r"num_frames to 4"),
    "other size than the data": ([*FIT, "--model.net.input_size=[16, 16]"], r"input_size.*\[16, 24\]"),
    "other channels than the autoencoder": ([*FIT, "--model.net.in_channels=4"], r"in_channels to 3"),
    "other classes than the data": ([*FIT, "--model.net.num_classes=5"], r"num_classes to 8"),
    "guidance without classes": ([*FIT, "--model.net.conditioning=none"], r"guidance to 1"),
    "half precision": ([*FIT, "--trainer.precision=bf16-true"], r"bf16-mixed"),
    "resume of exported weights": ([*FIT, "--ckpt_path=w.safetensors"], r"contains only weights; resuming needs"),
    "resume with another batch": (
        [*FIT, "--ckpt_path=runs/six", "--name=on", "--data.global_batch_size=8"],
        r"global_batch_size 4, this run has 8",
    ),
    "resume without EMA snapshots": (
        [*FIT, "--ckpt_path=runs/six", "--name=on", "--model.ema_snapshot_every=2"],
        r"ema_snapshot_every 0, this run has 2; both or neither",
    ),
    "other model under the same name": (
        [*FIT, "--name=six", "--model.net.depth=3"],
        r"depth=2, this command has .*depth=3; choose another --name",
    ),
    "negative snapshot interval": ([*FIT, "--model.ema_snapshot_every=-1"], r"ema_snapshot_every is -1"),
    "name outside of the runs": ([*FIT, "--name=../up"], r"inside runs"),
    "output that cannot be written": (["export", "runs/six", "wrong.yaml/w.safetensors"], r"wrong.yaml"),
    "wrong key": ([*FIT, "--model.net.hiden_size=3"], r"hiden_size"),
    "wrong key in a file": ([*FIT, "-c", "wrong.yaml"], r"colour"),
    "wrong value of the data": (
        [*FIT, "--data.num_frames=x"],
        r"^latte: error: Parser key \"data\": .*num_frames.*Got value: x.{0,30}$",
    ),
    "wrong command": (["fut"], r"no command 'fut'; .*fit"),
    "unknown argument": ([*FIT, "--epochs=3"], r"epochs"),
    "unknown variant": ([*FIT, "--model.net.variant=late"], r"late_fusion.*late"),
    "missing configuration": ([*FIT, "-c", "data/ucf11.yaml"], r"no configuration data/ucf11.yaml.*data/shapes.yaml"),
    "frames that cannot be divided": (
        [*FIT, "--model.net.patch_embed=compression", "--model.net.temporal_stride=3"],
        r"4.*3|3.*4",
    ),
    "heads that do not divide the width": ([*FIT, "--model.net.num_heads=5"], r"32.*5|5.*32"),
    "batch that cannot be divided": (
        [*FIT, "--trainer.accumulate_grad_batches=3"],
        r"global_batch_size 4 .*multiple of 3",
    ),
    "variance that flow does not predict": (
        [*FIT, "--model.diffusion=latte_pl.diffusion.RectifiedFlow"],
        r"learn_sigma to false",
    ),
    "unknown sampler": ([*FIT, "--model.sampling.sampler=euler"], r"ddpm, ddim"),
    "steps that no stride makes": (
        [*FIT, "--model.sampling.sampler=ddim", "--model.sampling.steps=60"],
        r"model.sampling.steps is 60.* 59 or 63",
    ),
    "eta of another sampler": (
        [*FIT, "--model.sampling.sampler=ddpm", "--model.sampling.eta=0.5"],
        r"model.sampling.eta is 0.5",
    ),
    "negative guidance": ([*FIT, "--model.sampling.guidance=-1"], r"guidance is -1.*at least"),
    "reversed interval": (
        [*FIT, "--model.sampling.guidance_interval=[800, 200]"],
        r"\[800, 200\]; .*must start with its lower end",
    ),
    "interval in fractions": (
        [*FIT, "--model.sampling.guidance_interval=[0.2, 0.8]"],
        r"timesteps lie between 0 and 1000, not 0 and 1$",
    ),
    "negative number of held-out clips": (
        [*FIT, "--data.val_clips=-1"],
        r"data.val_clips is -1; it must be at least 1$",
    ),
    "empty batch": ([*FIT, "--data.global_batch_size=0"], r"global_batch_size is 0; it must be at least 1$"),
    "incomplete exported file": (
        ["predict", "--ckpt_path=half.safetensors"],
        r"half.safetensors is no complete safetensors file",
    ),
    "incomplete source model": (
        [*FIT, "--name=half", "--model.pretrained.source=half.safetensors"],
        r"half.safetensors is no complete safetensors file",
    ),
    "memory of no clips": (["info", "-c", "tiny.yaml", "--batch_size=0"], r"batch_size is 0"),
    "negative learning rate": ([*FIT, "--model.lr=-1"], r"model.lr is -1"),
    "clip that is longer than its video": ([*FIT, "--data.interval=9"], r"28"),
    "no checkpoint": (["predict", "-c", "tiny.yaml"], r"latte predict needs --ckpt_path"),
    "missing checkpoint": (["predict", "--ckpt_path=nowhere.ckpt"], r"no checkpoint at nowhere.ckpt"),
    "file that is no checkpoint": (["predict", "--ckpt_path=wrong.ckpt"], r"wrong.ckpt is .*no complete checkpoint"),
    "unknown label": (["predict", "--ckpt_path=runs/six", "--labels=[9]"], r"label '9' is unknown; use left"),
    "no samples": (["predict", "--ckpt_path=runs/six", "--num_samples=0"], r"num_samples is 0"),
    "weights of another shape": (
        ["predict", "--ckpt_path=runs/six", "--model.net.depth=3"],
        r"blocks.2.*missing in the file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_line(mistake, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    Path("wrong.yaml").write_text("model: {colour: red}\n")
    if not Path("w.safetensors").exists():
        cli.main(["export", "runs/six", "w.safetensors"])
    Path("half.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:5000])
    Path("wrong.ckpt").write_text("nothing")
    args, message = MISTAKES[mistake]
    line = error_of(capsys, *args)
    assert line.startswith("latte: error: ")
    assert re.search(message, line), line
