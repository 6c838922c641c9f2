"""What a user sees: every shipped configuration is a model, and every mistake is one line."""

import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import latte_pl
from latte_pl import cli
from latte_pl.training import load
from latte_pl.training.weights import find

sys.path.insert(0, str(Path(__file__).parent / "training"))
from runs import curve, write_config

CONFIGS = Path(latte_pl.__file__).parent / "configs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of six steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=6", "--name=six"])
    return folder / "runs/six"


def refused(capsys, *args):
    """Run a command that has to fail, and return its one line."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_a_run_leaves_curves_samples_and_its_configuration(trained):
    assert [step for step, _ in curve(trained, "train/loss")] == [3, 6]
    assert dict(curve(trained, "train/clips_seen")) == {3: 12, 6: 24}
    assert [step for step, _ in curve(trained, "val/loss")] == [5]
    with Image.open(trained / "samples/step=0000006.gif") as image:
        assert image.n_frames == 4
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["depth"] == 2


def test_samples_move_in_tensorboard(trained):
    import io

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    with Image.open(io.BytesIO(events.Images("samples")[0].encoded_image_string)) as image:
        assert image.format == "GIF"
        assert image.n_frames == 4


def test_the_saved_configuration_runs_again_and_gives_the_same_weights(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", "-c", str(trained / "config.yaml"), "--name=again"])
    for name, value in load(trained).state_dict().items():
        assert torch.equal(load("runs/again").state_dict()[name], value), name


def test_the_same_command_after_the_end_changes_nothing(trained, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    checkpoint = trained / "checkpoints/step=0000006.ckpt"
    before = checkpoint.read_bytes()
    cli.main(["fit", "-c", "tiny.yaml", "--trainer.max_steps=6", "--name=six"])
    assert checkpoint.read_bytes() == before


def older(folder, name, **changes):
    """Copy a run and take settings out of its configuration that the code of then did not know, or rename them."""
    shutil.copytree(folder, folder.parent / name)
    path = find(folder.parent / name)
    checkpoint = torch.load(path, weights_only=True)
    model = checkpoint["config"]["model"]
    for key in ("clip_from_step", "lr_schedule"):
        del model[key]
    del model["net"]["init_args"]["class_dropout"]
    model |= changes
    torch.save(checkpoint, path)


def test_a_run_goes_on_under_code_that_knows_more_settings(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    older(trained, "old")
    args = ["fit", "-c", "tiny.yaml", "--name=old"]
    for change, said in {
        "clip_from_step=3": "model.clip_from_step = 0, this one has 3",
        "net.class_dropout=0.5": "model.net.init_args.class_dropout = 0.1, this one has 0.5",
        "lr=0.5": "model.lr = 0.01, this one has 0.5",
    }.items():
        assert said in refused(capsys, *args, f"--model.{change}")
    cli.main([*args, "--trainer.max_steps=7"])
    assert find("runs/old").name == "step=0000007.ckpt"


def test_a_setting_that_is_no_more_is_a_change(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    older(trained, "odd", temperature=3)
    assert "runs/odd holds a run with model." in refused(capsys, "fit", "-c", "tiny.yaml", "--name=odd")


@pytest.mark.parametrize("start", ["", "checkpoints/step=0000006.ckpt"])
def test_a_run_can_start_from_another(trained, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = trained / start
    config = ["-c", str(trained.parent.parent / "tiny.yaml"), "--model.lr_schedule=cosine"]
    cli.main(["fit", *config, "--ckpt_path", str(start), "--name=on", "--trainer.max_steps=8"])
    assert [path.name for path in (tmp_path / "runs/on/checkpoints").iterdir()] == ["step=0000008.ckpt"]


def test_predict_writes_files_of_the_classes_asked_for(trained, tmp_path, capsys):
    args = ["--ckpt_path", str(trained), "--output", str(tmp_path / "out"), "--trainer.accelerator=cpu"]
    cli.main(["predict", *args, "--num_samples=3", "--labels=[up, 2]", "--batch_size=2"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        *(f"000{n}_{label}.{ending}" for n, label in enumerate(("up", "up", "up")) for ending in ("gif", "mp4")),
        "contact_sheet.gif",
        "contact_sheet.png",
    ]
    assert "move as labelled" in capsys.readouterr().out


def test_explicit_values_win_over_those_of_the_checkpoint(trained, tmp_path):
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


def test_another_accumulation_goes_on_with_the_same_clips(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["fit", "-c", str(trained.parent.parent / "tiny.yaml"), "--name=two"]
    cli.main([*config, "--trainer.max_steps=3"])
    cli.main([*config, "--trainer.max_steps=6", "--trainer.accumulate_grad_batches=2"])
    two = load("runs/two").state_dict()
    for name, value in load(trained).state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)


def test_a_truncated_checkpoint_is_passed_over(trained, tmp_path):
    folder = tmp_path / "run/checkpoints"
    shutil.copytree(trained / "checkpoints", folder)
    whole = (folder / "step=0000006.ckpt").read_bytes()
    (folder / "step=0000007.ckpt").write_bytes(whole[: len(whole) // 2])
    assert find(tmp_path / "run").name == "step=0000006.ckpt"


@pytest.mark.parametrize(("value", "moves"), [(0.0, True), (1e-12, False)])
def test_clipping_acts_from_its_step_on(trained, value, moves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["fit", "-c", str(trained.parent.parent / "tiny.yaml"), f"--trainer.gradient_clip_val={value}"]
    moments = []
    for first in (0, 1):
        cli.main([*config, "--trainer.max_steps=1", f"--model.clip_from_step={first}", f"--name=from{first}"])
        checkpoint = torch.load(f"runs/from{first}/checkpoints/step=0000001.ckpt", weights_only=True)
        states = checkpoint["optimizer_states"][0]["state"].values()
        moments.append(max(float(state["exp_avg"].abs().max()) for state in states))
    assert (moments[0] > 1e-6) is moves
    assert moments[1] > 1e-6


def test_exported_weights_are_the_average_and_carry_their_configuration(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    cli.main(["export", str(trained), str(path), "--dtype=float16"])
    with safe_open(path, framework="pt") as file:
        assert all(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118
    whole, small = load(trained), load(path)
    for name, value in whole.ema.state_dict().items():
        torch.testing.assert_close(small.ema.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    labels = [n % 8 for n in range(2)]
    assert whole.sample([0, 1], labels).shape == small.sample([0, 1], labels).shape == (2, 4, 3, 16, 24)


def test_validate_prints_the_loss_that_training_logged(trained, tmp_path, capsys):
    cli.main(["validate", "--ckpt_path", str(trained), "--trainer.accelerator=cpu"])
    shown = float(re.search(r"val/loss ([\d.]+) of the averaged weights at step 6", capsys.readouterr().out)[1])
    (_, logged), *_ = curve(trained, "val/loss")  # of step 5
    assert shown == pytest.approx(logged, rel=0.05)
    assert shown != pytest.approx(logged, rel=1e-6)


def test_info_counts_without_memory(capsys):
    cli.main(["info", "-c", "model/xl.yaml", "-c", "data/shapes.yaml", "--model.net.conditioning=none"])
    table = capsys.readouterr().out
    assert re.search(r"temporal attention\s+74,\d{3},\d{3}", table)
    assert "activations" in table
    assert "other averages" not in table


def test_info_counts_the_averages_that_a_training_keeps(capsys):
    def memory(*more):
        cli.main(["info", "-c", "model/s.yaml", "-c", "data/shapes.yaml", *more])
        rows = re.findall(r"^  (\D+?) +([\d,.]+) MiB$", capsys.readouterr().out, re.MULTILINE)
        return {name: float(value.replace(",", "")) for name, value in rows}

    plain, averaged = memory(), memory("--model.average_every=100")
    assert averaged.pop("other averages") == pytest.approx(2 * plain["weights"], abs=0.1)
    assert averaged.pop("in all") == pytest.approx(plain.pop("in all") + 2 * plain["weights"], abs=0.1)
    assert averaged == plain


MISTAKES = {
    "cosine without an end": (
        [
            "fit",
            "-c",
            "tiny.yaml",
            "--model.lr_schedule=cosine",
            "--trainer.max_steps=-1",
            "--trainer.max_time=00:00:00:01",
        ],
        r"set trainer.max_steps",
    ),
    "another number of frames than the data's": (["fit", "-c", "tiny.yaml", "--data.num_frames=3"], r"num_frames to 3"),
    "guidance without classes": (["fit", "-c", "tiny.yaml", "--model.net.conditioning=none"], r"guidance to 1"),
    "half precision throughout": (["fit", "-c", "tiny.yaml", "--trainer.precision=bf16-true"], r"bf16-mixed"),
    "weights alone to go on from": (["fit", "-c", "tiny.yaml", "--ckpt_path=w.safetensors"], r"no optimizer"),
    "another batch to go on with": (
        ["fit", "-c", "tiny.yaml", "--ckpt_path=runs/six", "--name=on", "--data.global_batch_size=8"],
        r"global_batch_size 4, this run has 8",
    ),
    "a start without averages": (
        ["fit", "-c", "tiny.yaml", "--ckpt_path=runs/six", "--name=on", "--model.average_every=2"],
        r"average_every 0, this run 2; both or none",
    ),
    "a negative interval": (["fit", "-c", "tiny.yaml", "--model.average_every=-1"], r"average_every is -1"),
    "a name outside": (["fit", "-c", "tiny.yaml", "--name=../up"], r"inside runs"),
    "a place that cannot be written": (["export", "runs/six", "wrong.yaml/w.safetensors"], r"wrong.yaml"),
    "a wrong key": (["fit", "-c", "tiny.yaml", "--model.net.hiden_size=3"], r"hiden_size"),
    "a wrong key in a file": (["fit", "-c", "tiny.yaml", "-c", "wrong.yaml"], r"colour"),
    "an unknown variant": (["fit", "-c", "tiny.yaml", "--model.net.variant=late"], r"late_fusion.*late"),
    "no such configuration": (["fit", "-c", "data/ucf11.yaml"], r"no configuration data/ucf11.yaml.*data/shapes.yaml"),
    "frames that do not divide": (
        ["fit", "-c", "tiny.yaml", "--model.net.patch_embed=compression", "--model.net.temporal_stride=3"],
        r"(4 frames|frames).*3",
    ),
    "heads that do not divide": (["fit", "-c", "tiny.yaml", "--model.net.num_heads=5"], r"32.*5"),
    "a batch that does not divide": (
        ["fit", "-c", "tiny.yaml", "--trainer.accumulate_grad_batches=3"],
        r"global_batch_size 4 .*multiple of 3",
    ),
    "another size than the data's": (["fit", "-c", "tiny.yaml", "--data.size=[16, 16]"], r"input_size.*\[16, 16\]"),
    "too few classes": (["fit", "-c", "tiny.yaml", "--model.net.num_classes=5"], r"num_classes to 8"),
    "a variance that flow lacks": (
        ["fit", "-c", "tiny.yaml", "--model.diffusion=latte_pl.diffusion.RectifiedFlow"],
        r"learn_sigma to false",
    ),
    "an unknown sampler": (["fit", "-c", "tiny.yaml", "--model.sampling.sampler=euler"], r"ddpm, ddim"),
    "steps that no stride makes": (
        ["fit", "-c", "tiny.yaml", "--model.sampling.sampler=ddim", "--model.sampling.steps=60"],
        r"model.sampling.steps is 60.*take 59 or 63",
    ),
    "noise that the sampler does not use": (
        ["fit", "-c", "tiny.yaml", "--model.sampling.sampler=ddpm", "--model.sampling.eta=0.5"],
        r"model.sampling.eta is 0.5, which sampler",
    ),
    "guidance below nothing": (["fit", "-c", "tiny.yaml", "--model.sampling.guidance=-1"], r"guidance is -1.*at least"),
    "an interval upside down": (
        ["fit", "-c", "tiny.yaml", "--model.sampling.guidance_interval=[800, 200]"],
        r"\[800, 200\]; .*lowest timestep comes first",
    ),
    "an interval in shares": (
        ["fit", "-c", "tiny.yaml", "--model.sampling.guidance_interval=[0.2, 0.8]"],
        r"timesteps go from 0 to 1000, not to 1$",
    ),
    "no held-out clips": (["fit", "-c", "tiny.yaml", "--data.val_clips=-1"], r"error: data.val_clips is -1; [\w ]+$"),
    "no batch": (["fit", "-c", "tiny.yaml", "--data.global_batch_size=0"], r"global_batch_size is 0; [\w ]+ 1$"),
    "half a release file": (
        ["predict", "--ckpt_path=half.safetensors"],
        r"half.safetensors is not a whole safetensors",
    ),
    "half an image model": (
        ["fit", "-c", "tiny.yaml", "--name=half", "--model.pretrained.source=half.safetensors"],
        r"half.safetensors is not a whole safetensors",
    ),
    "a memory of no clips": (["info", "-c", "tiny.yaml", "--batch_size=0"], r"batch_size is 0"),
    "a negative rate": (["fit", "-c", "tiny.yaml", "--model.lr=-1"], r"model.lr is -1"),
    "a clip longer than its video": (["fit", "-c", "tiny.yaml", "--data.interval=9"], r"28 source frames"),
    "no checkpoint given": (["predict", "-c", "tiny.yaml"], r"--ckpt_path"),
    "no such checkpoint": (["predict", "--ckpt_path=nowhere.ckpt"], r"no checkpoint at nowhere.ckpt"),
    "a checkpoint that is none": (["predict", "--ckpt_path=wrong.yaml"], r"wrong.yaml is not a whole checkpoint"),
    "a label outside the classes": (
        ["predict", "--ckpt_path=runs/six", "--labels=[9]"],
        r"label '9' is not one of left",
    ),
    "weights of another shape": (
        ["predict", "--ckpt_path=runs/six", "--model.net.depth=3"],
        r"blocks.2.*missing in the file",
    ),
    "another model under the same name": (
        ["fit", "-c", "tiny.yaml", "--name=six", "--model.net.depth=3"],
        r"depth = 2, this one has 3; choose another --name",
    ),
    "an unknown command": (["fut"], r"fut.*fit"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_line(mistake, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    Path("wrong.yaml").write_text("model: {colour: red}\n")
    if not Path("w.safetensors").exists():
        cli.main(["export", "runs/six", "w.safetensors"])
    Path("half.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:5000])
    args, said = MISTAKES[mistake]
    line = refused(capsys, *args)
    assert line.startswith("latte: error: ")
    assert re.search(said, line), line


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_model_overlay_composes_with_the_embedded_data(path, capsys):
    cli.main(["info", "-c", "data/shapes.yaml", "-c", f"model/{path.name}"])
    assert "MLP" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_overlay_opens_with_where_it_comes_from(path):
    assert path.read_text().startswith("# ")
