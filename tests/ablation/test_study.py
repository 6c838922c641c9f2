"""Study files and their plans: what is read, what is refused, and that the shipped studies are complete."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from studies import SHIPPED, fabricate, shipped_trials, study_in, trials_of, write_study

from latte_pl.ablation import cli, plan_cache, study
from latte_pl.ablation import plan as plan_module
from latte_pl.ablation.identity import FIRST_OPTIONS, settings_of
from latte_pl.ablation.intervals import detectable
from latte_pl.ablation.monitor import check
from latte_pl.ablation.plan import dry_run, plan
from latte_pl.ablation.plan_cache import load_plan
from latte_pl.ablation.power import bytes_per_frame, outlook, resolvable
from latte_pl.ablation.study import read
from latte_pl.nn import LatteConfig
from latte_pl.toy import Shapes
from latte_pl.training.weights import build, outline

FOLDER = Path(__file__).parents[2] / "ablations"
PAPER = [path for path in SHIPPED if path.stem != "quickstart"]
CONCLUSIONS = {  # the conclusions of the paper
    "patch_embedding",
    "model_variants",
    "injection",
    "temporal_position",
    "pretraining",
    "joint_training",
    "sampling_interval",
    "model_size",
}


def test_every_conclusion_of_the_paper_is_a_study():
    assert {path.stem for path in SHIPPED} >= CONCLUSIONS | {"quickstart"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_plan_at_every_scale(path):
    shipped = read(path)
    assert shipped.claims
    for scale in shipped.scales:
        arms = [trial for trial in shipped_trials(path, scale) if trial.arm]
        rows = shipped.at(scale)[1]
        assert len(arms) == len(rows) * len(shipped.scales[scale].seeds)
        assert shipped.baseline_at(scale) in rows
        assert len({trial.clips for trial in arms}) == 1
        assert any(claim.row in rows for claim in shipped.claims)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_models_of_the_paper_scale_are_built_without_memory(path):
    for trial in (trial for trial in shipped_trials(path, "paper") if trial.seed == 0):
        net = outline(trial.config)
        assert all(parameter.is_meta for parameter in net.parameters())
        assert net.config.variant == trial.config["model"]["net"]["init_args"]["variant"]
        assert trial.steps == 150_000


def test_studies_share_the_trial_of_their_common_baseline():
    hashes = set()
    for path in (FOLDER / f"{name}.yaml" for name in CONCLUSIONS):
        baseline = read(path).baseline_at("proxy")
        hashes |= {trial.hash for trial in shipped_trials(path, "proxy") if (trial.row, trial.seed) == (baseline, 0)}
    assert len(hashes) == 1


# --------------------------------------------------------------------------------------------------------- files


def test_studies_are_found_in_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages/latte_pl"
    shutil.copytree(FOLDER, package / "studies", ignore=shutil.ignore_patterns("results"))
    monkeypatch.setattr(study.resources, "files", lambda name: tmp_path / "site-packages" / name)
    monkeypatch.chdir(tmp_path)
    assert [path.stem for path in study.available()] == [path.stem for path in SHIPPED]
    for path in SHIPPED:
        found = study.find(path.stem)
        assert found == package / "studies" / path.name
        assert read(found).scales == read(path).scales


def test_own_studies_come_first_and_use_shipped_scales(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "ablations"
    own.mkdir()
    data = yaml.safe_load((FOLDER / "injection.yaml").read_text()) | {"scales": ["proxy"]}
    (own / "injection.yaml").write_text(yaml.safe_dump(data))
    assert study.find("injection").resolve() == own / "injection.yaml"
    assert study.find("model_size") == FOLDER / "model_size.yaml"
    assert [path.stem for path in study.available()] == ["injection"]
    assert read(own / "injection.yaml").scales["proxy"] == read(FOLDER / "injection.yaml").scales["proxy"]


def test_study_overrides_single_keys_of_a_scale(tmp_path):
    path = write_study(tmp_path, scales={"proxy": {"clips": 320, "protocol": None}, "paper": None})
    scales, shipped = read(path).scales, read(FOLDER / "injection.yaml").scales
    assert (scales["proxy"].clips, scales["proxy"].protocol) == (320, None)
    assert scales["proxy"].configs == shipped["proxy"].configs
    assert scales["paper"] == shipped["paper"]


@pytest.mark.parametrize("name", ["ablations.yaml", "pach_embedding"])
def test_unknown_study_is_one_line(name, capsys):
    with pytest.raises(SystemExit):
        cli.main(["status", name])
    assert "no study" in capsys.readouterr().err


def test_list_prints_every_study(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for path in SHIPPED:
        assert path.stem in listed
        assert yaml.safe_load(path.read_text())["question"] in listed


# --------------------------------------------------------------------------------------------------------- plans


def test_plan_is_read_again_only_if_something_changed(tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(plan_module, "plan", lambda *args: planned.append(args) or plan(*args))
    changes = [
        {},
        {"scale": {"clips": 128}},
        {"rows": {"uniform": {}, "compression": {"model.net.patch_embed": "compression"}}},
    ]
    for change in changes:
        write_study(tmp_path, **change)
        count = len(planned)
        first, second = trials_of(tmp_path), trials_of(tmp_path)
        assert first == second
        assert len(planned) == count + 1
    count = len(planned)
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("lr: 1.0e-2", "lr: 2.0e-2"))
    assert trials_of(tmp_path)[0].config["model"]["lr"] == 2.0e-2
    monkeypatch.setattr(plan_cache, "_sources", lambda: iter([config]))  # as if the package had changed
    trials_of(tmp_path)
    assert len(planned) == count + 2
    load_plan(read(tmp_path / "study.yaml"), "proxy", tmp_path / "runs/ablations", seeds=[5])
    assert len(planned) == count + 3


HEAVY = {"torch", "lightning", "jsonargparse", "pandas", "scipy", "matplotlib", "numpy", "tensorboard", "submitit"}


@pytest.mark.parametrize("command", ["list", "status"])
def test_list_and_status_import_nothing_heavy(command, tmp_path):
    path = write_study(tmp_path)
    trials_of(tmp_path)
    args = ["status", str(path), "--root", str(tmp_path / "runs/ablations")] if command == "status" else ["list"]
    code = f"import sys; from latte_pl.ablation import cli\ntry: cli.main({args})\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert not set(run.stdout.splitlines()[-1].split()) & HEAVY
    assert "uniform" in run.stdout


def test_dry_run_prints_commands_and_costs(tmp_path):
    shipped = read(FOLDER / "model_size.yaml")
    text = dry_run(shipped, "paper", plan(shipped, "paper", tmp_path, seeds=[0, 1]))
    assert text.count("latte fit") == text.count("latte test") == 8
    assert "--model.net.size=B" in text
    assert "673.68 M parameters" in text  # the paper's
    # three forward passes per clip, 6 million clips, 125 TFLOP/s
    gigaflops = float(re.search(r"XL, seed 0 .*? ([\d.]+) GFLOP per clip \(forward\)", text)[1])
    hours = float(re.search(r"XL, seed 0 .*, ([\d,]+) GPU-hours", text)[1].replace(",", ""))
    assert hours == pytest.approx(3 * gigaflops * 1e9 * 6e6 / 125e12 / 3600, rel=0.01)
    assert "8 trials" in text


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_row_with_parts_that_do_not_fit_is_refused_before_training(options, tmp_path, monkeypatch, capsys):
    rows = {"uniform": {}, "slow": {"model.sampling.sampler": "ddim", "model.sampling.steps": 60}}
    write_study(tmp_path, rows=rows)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["run", "study.yaml", *options])
    assert "study, row slow: model.sampling.steps is 60" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_default_number_of_points_is_no_news_to_a_trial(tmp_path):
    hashes = [
        [trial.hash for trial in study_in(tmp_path, scale={"clips": 256} | scale)[1]]
        for scale in ({}, {"points": 16}, {"points": 8})
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    (fit,) = (part for part in trials_of(tmp_path)[0].commands[0] if "val_check_interval" in part)
    assert fit == "--trainer.val_check_interval=8"


def test_grid_crosses_axes(tmp_path):
    grid = {"model.net.patch_embed": ["uniform", "compression"], "model.net.temporal_position": ["absolute", "rope"]}
    changes = {"grid": grid, "baseline": "patch_embed=uniform, temporal_position=absolute", "claims": []}
    crossed, trials = study_in(tmp_path, rows={}, **changes)
    built = [trial.config["model"]["net"]["init_args"] for trial in trials]
    values = [(net["patch_embed"], net["temporal_position"]) for net in built]
    assert values == [
        ("uniform", "absolute"),
        ("uniform", "rope"),
        ("compression", "absolute"),
        ("compression", "rope"),
    ]
    assert list(crossed.rows) == [f"patch_embed={embed}, temporal_position={position}" for embed, position in values]


# -------------------------------------------------------------------------------------------------------- hashes


def test_hash_depends_on_what_the_result_depends_on(tmp_path):
    def hashes(name, **options):
        folder = tmp_path / name
        folder.mkdir()
        return {trial.row: trial.hash for trial in study_in(folder, **options)[1]}

    plain = hashes("plain")
    assert plain["uniform"] != plain["compression"]
    assert hashes("again") == plain
    without_effect = {"data.num_workers": 1, "model.compile": True, "model.seed": 3, "data.seed": 4}
    assert hashes("without effect", scale={"overrides": without_effect}) == plain
    for name, change in {
        "seed": {"seeds": [1]},
        "budget": {"clips": 128},
        "rate": {"overrides": {"model.lr": 0.5}},
        "precision": {"overrides": {"trainer.precision": "bf16-mixed"}},
        "protocol": {"protocol": "toy-256-8f"},
    }.items():
        assert not set(hashes(name, scale=change).values()) & set(plain.values()), name


def test_new_options_at_their_default_change_no_hash(tmp_path):
    rows = {
        "uniform": {},
        "absolute": {"model.net.spatial_position": "absolute", "model.lr": 0.02},
        "rope": {"model.net.spatial_position": "rope"},
        "qk_norm": {"model.net.qk_norm": True},
        "swiglu": {"model.net.swiglu": True},
        "rms_norm": {"model.net.rms_norm": True},
        "min_snr": {"model.diffusion.init_args.min_snr_gamma": 5},
        "flow": {
            "model.diffusion": "latte_pl.diffusion.RectifiedFlow",
            "model.net.learn_sigma": False,
            "model.sampling.sampler": "euler",
        },
    }
    _, trials = study_in(tmp_path, rows=rows)  # a plan refuses rows with equal hashes
    by_row = {trial.row: trial for trial in trials}
    new = {f"model.net.init_args.{name}" for name in LatteConfig.__dataclass_fields__ if name not in FIRST_OPTIONS}
    assert {"model.net.init_args.spatial_position", "model.net.init_args.swiglu"} <= new
    for name in ("uniform", "absolute"):
        assert not new & settings_of(by_row[name].config).keys()
    config = by_row["uniform"].config
    older = json.loads(json.dumps(config))
    for name in new:
        del older["model"]["net"]["init_args"][name.rpartition(".")[2]]
    del older["model"]["diffusion"]["init_args"]["min_snr_gamma"]
    assert settings_of(older) == settings_of(config)
    assert settings_of(by_row["rope"].config)["model.net.init_args.spatial_position"] == "rope"
    for trial in trials:
        check(trial.expected, build(trial.config), Shapes(size=(16, 24), num_frames=4, global_batch_size=4))


# ------------------------------------------------------------------------------------------------------ commands


def test_row_may_start_from_a_prepared_training(tmp_path):
    changes = {
        "prepare": {"image": {"model.net.variant": "spatial", "clips": 32}},
        "rows": {"uniform": {}, "started": {"model.pretrained.source": "{image}", "model.pretrained.labels": "keep"}},
        "claims": [],
        "scale": {"seeds": [0, 1]},
    }
    trials = study_in(tmp_path, **changes)[1]
    assert [(trial.row, trial.seed, trial.arm) for trial in trials] == [
        ("image", 0, False),
        ("uniform", 0, True),
        ("started", 0, True),
        ("image", 1, False),
        ("uniform", 1, True),
        ("started", 1, True),
    ]
    image, _, started = trials[:3]
    assert started.needs == (image.hash,)
    assert f"--model.pretrained.source={image.folder}" in started.commands[0]
    assert image.steps == 8
    assert len(image.commands) == 1


def test_row_with_ema_snapshots_is_measured_at_its_best_length(tmp_path):
    changes = {"rows": {"uniform": {}, "averaged": {"model.ema_snapshot_every": 4}}, "claims": []}
    uniform, averaged = study_in(tmp_path, **changes, scale={"protocol": "toy-256-8f"})[1]
    assert [command[0] for command in uniform.commands] == ["fit", "test"]
    assert [command[0] for command in averaged.commands] == ["fit", "average", "test"]
    assert uniform.hash != averaged.hash
    _, average, test = averaged.commands
    assert average == ("average", averaged.folder, "--accelerator", "cpu", "--devices", "1")
    assert test[test.index("--ckpt_path") + 1] == f"{averaged.folder}/averages/best.safetensors"
    assert uniform.commands[1][uniform.commands[1].index("--ckpt_path") + 1] == uniform.folder


def test_prepared_trainings_are_not_measured(tmp_path):
    changes = {
        "prepare": {"image": {"model.net.variant": "spatial"}},
        "rows": {"uniform": {}, "started": {"model.pretrained.source": "{image}"}},
        "claims": [],
        "scale": {"overrides": {"model.ema_snapshot_every": 4}},
    }
    trials = study_in(tmp_path, **changes)[1]
    assert {trial.row: len(trial.commands) for trial in trials} == {"image": 1, "uniform": 2, "started": 2}


# ------------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "unknown key": ({"colour": "red"}, "unknown colour"),
    "missing baseline": ({"baseline": "none"}, "baseline 'none' is not a row"),
    "claim about no row": ({"claims": [{"row": "late", "side": "worse"}]}, "claims name late"),
    "claim against no row": ({"claims": [{"row": "uniform", "side": "worse", "than": "late"}]}, "claims name late"),
    "claim against itself": (
        {"claims": [{"row": "uniform", "side": "worse", "than": "uniform"}]},
        "compares 'uniform' with itself",
    ),
    "unknown side": ({"claims": [{"row": "uniform", "side": "nicer"}]}, "side is 'nicer'; choose better"),
    "unknown status": ({"status": "sure"}, "status is 'sure'"),
    "unknown scale": ({"scales": ["prox"]}, "scale prox has no configs"),
    "unknown measure of trained models": (
        {"scale": {"trained": {"measure": "accuracy", "at_least": 0.5}}},
        "trained.measure is 'accuracy'; choose held_out_loss, video_distance, motion_accuracy",
    ),
    "trained models in the wrong direction": (
        {"scale": {"trained": {"measure": "motion_accuracy", "at_most": 0.5}}},
        "trained by motion_accuracy needs the number at_least, and no at_most",
    ),
    "unknown key of trained models": (
        {"scale": {"trained": {"measure": "held_out_loss", "below": 0.5}}},
        "scale proxy: trained: unknown below",
    ),
    "too few points": ({"scale": {"points": 1}}, "points=1; it must be at least 2"),
    "unknown key of a scale": ({"scale": {"clip": 3}}, "scale proxy: unknown clip"),
    "no seeds": ({"scale": {"seeds": []}}, "seeds=[]"),
    "part of a step": ({"scale": {"clips": 65}}, "65 clips are not a whole number of steps of 4"),
    "unknown setting": (
        {"rows": {"uniform": {"data.hiden": 3}}},
        "study, row uniform (data.hiden=3): Option 'hiden' is not accepted",
    ),
    "unknown value": (
        {"rows": {"uniform": {"model.net.variant": "late"}}},
        "study, row uniform (model.net.variant=late)",
    ),
    "wrong type": ({"rows": {"uniform": {"model.sampling.steps": "x"}}}, "(model.sampling.steps=x): Expected a <class"),
    "parts that do not fit": (
        {"rows": {"uniform": {"model.net.patch_size": 3}}},
        "study, row uniform: input_size must be (H, W)",
    ),
    "equal rows": ({"rows": {"uniform": {}, "same": {}}}, "'uniform' and 'same' are the same training"),
    "unknown start": ({"rows": {"uniform": {"model.pretrained.source": "{image}"}}}, "{image}"),
    "part of a point": ({"scale": {"clips": 4 * 37}}, "37 steps cannot be divided into about 16 equal parts"),
    "unknown protocol": ({"scale": {"protocol": "fvd"}}, "fvd"),
    "unknown config": ({"scale": {"configs": ["data/shape.yaml"]}}, "data/shape.yaml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_study_is_one_line(mistake, tmp_path, capsys):
    changes, message = MISTAKES[mistake]
    changes = {"claims": []} | changes if "rows" in changes else dict(changes)
    path = write_study(tmp_path, **changes)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path), "--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("latte-ablate: error: ")
    assert message in lines[-1]


def test_dry_run_says_what_the_cache_takes_and_what_the_seeds_find(tmp_path):
    study, trials = study_in(tmp_path, scale={"seeds": [0, 1, 2]})
    (tmp_path / "results").mkdir()
    assert outlook(study, trials[0].config, None, 3) == ""
    for trial in load_plan(study, "proxy", tmp_path / "results"):
        row = trial.row == "compression"
        fabricate(trial, 0.5 + row * (0.1 + 0.01 * trial.seed), 10.0, 0.8 + row * 0.04 * trial.seed)
    text = outlook(study, trials[0].config, "toy", 4)
    # differences 0.10, 0.11, 0.12 have a standard deviation of 0.01, 2 % of the baseline's mean of 0.5
    assert resolvable(study, 4, tmp_path / "results") == pytest.approx(
        {
            "held-out loss": detectable([0.99, 1.01, 0.99, 1.01]) / 0.0115470 * 2.0,
            "video distance": 0.0,
            "motion accuracy": detectable([0.99, 1.01, 0.99, 1.01]) / 0.0115470 * 4.0,
        },
        rel=1e-4,
    )
    assert "with 4 seeds" in text
    assert "points in motion accuracy" in text
    # 16 x 24 pixels without an autoencoder: 3 channels of mean and of log-variance in float16
    assert f"{16 * 24 * 3 * 2 * 2:,} bytes per frame" in text


@pytest.mark.parametrize("name", ["temporal_position", "model_size"])
def test_cache_of_the_lab_scale_is_counted_with_its_flipped_frames(name, tmp_path):
    trial = plan(read(FOLDER / f"{name}.yaml"), "lab", tmp_path, seeds=[0])[0]
    # 16 x 16 latents of 4 channels, mean and log-variance in float16, as drawn and flipped
    assert bytes_per_frame(trial.config) == 16 * 16 * 4 * 2 * 2 * 2


@pytest.mark.parametrize("scales", [["only"], ["only", "proxy"], ["only", "other"]])
def test_the_only_scale_of_a_study_needs_no_name(scales, tmp_path, monkeypatch, capsys):
    path = write_study(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["scales"] = dict.fromkeys(scales, content["scales"]["proxy"])
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    if "proxy" in scales or len(scales) == 1:
        cli_status(["status", str(path)])
        assert f"study, {'proxy' if 'proxy' in scales else 'only'}" in capsys.readouterr().out
    else:
        cli_status(["status", str(path)], 2)
        assert "no scale 'proxy'; choose only, other" in capsys.readouterr().err


def cli_status(args, status=0):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == status
