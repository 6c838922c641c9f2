"""Studies as files: what is read, what is refused, and that the shipped ones are whole."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from studies import ROWS, study_in, write_study

from latte_pl.ablation import cli
from latte_pl.ablation.plan import _identity, dry_run, plan
from latte_pl.ablation.study import read
from latte_pl.ablation.watch import check, variant
from latte_pl.data import Shapes
from latte_pl.training.weights import build, build_net

FOLDER = Path(__file__).parents[2] / "ablations"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
PAPER = [path for path in SHIPPED if path.stem != "quickstart"]
CONCLUSIONS = {  # the order of the paper's table; see the list
    "patch_embedding",
    "model_variants",
    "injection",
    "temporal_position",
    "pretraining",
    "joint_training",
    "sampling_interval",
    "model_size",
}


def test_every_question_of_the_paper_is_a_study():
    assert {path.stem for path in SHIPPED} >= CONCLUSIONS | {"quickstart"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_plans_at_every_scale(path, tmp_path):
    study = read(path)
    assert study.claims
    for scale in study.scales:
        trials = plan(study, scale, tmp_path)
        arms = [trial for trial in trials if trial.arm]
        rows = study.at(scale)[1]
        assert len(arms) == len(rows) * len(study.scales[scale].seeds)
        assert study.baseline_at(scale) in rows
        assert len({trial.clips for trial in arms}) == 1
        assert any(claim.row in rows for claim in study.claims)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_models_of_the_paper_scale_are_built_without_memory(path, tmp_path):
    for trial in plan(read(path), "paper", tmp_path, seeds=[0]):
        with torch.device("meta"):
            net = build_net(trial.config["model"]["net"])
        assert all(parameter.is_meta for parameter in net.parameters())
        assert variant(net) == trial.config["model"]["net"]["init_args"]["variant"]
        assert trial.steps == 150_000


def test_studies_share_the_trial_of_the_same_baseline(tmp_path):
    studies = [read(FOLDER / f"{name}.yaml") for name in CONCLUSIONS]
    hashes = set()
    for study in studies:
        trials = plan(study, "proxy", tmp_path, seeds=[0])
        hashes |= {trial.hash for trial in trials if trial.row == study.baseline_at("proxy")}
    assert len(hashes) == 1


def test_a_dry_run_prints_commands_and_costs(tmp_path):
    study = read(FOLDER / "model_size.yaml")
    text = dry_run(study, "paper", plan(study, "paper", tmp_path, seeds=[0, 1]))
    assert text.count("latte fit") == text.count("latte test") == 8
    assert "--model.net.size=B" in text
    assert "673.68 M parameters" in text  # the paper's
    # 3 x the forward pass, 6 million clips: hours at 125 TFLOP/s
    gigaflops = float(re.search(r"XL, seed 0 .*? ([\d.]+) GFLOP a clip forward", text)[1])
    hours = float(re.search(r"XL, seed 0 .*, ([\d,]+) GPU-hours", text)[1].replace(",", ""))
    assert hours == pytest.approx(3 * gigaflops * 1e9 * 6e6 / 125e12 / 3600, rel=0.01)
    assert "8 trials" in text


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_row_whose_parts_do_not_fit_is_refused_before_anything_runs(how, tmp_path, monkeypatch, capsys):
    rows = {"uniform": {}, "slow": {"model.sampling.sampler": "ddim", "model.sampling.steps": 60}}
    write_study(tmp_path, rows=rows)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["run", "study.yaml", *how])
    assert "study, row slow: model.sampling.steps is 60" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_axes_cross(tmp_path):
    grid = {"model.net.patch_embed": ["uniform", "compression"], "model.net.temporal_position": ["absolute", "rope"]}
    changes = {"grid": grid, "baseline": "patch_embed=uniform, temporal_position=absolute", "claims": []}
    study, trials = study_in(tmp_path, rows={}, **changes)
    assert list(study.rows) == [
        "patch_embed=uniform, temporal_position=absolute",
        "patch_embed=uniform, temporal_position=rope",
        "patch_embed=compression, temporal_position=absolute",
        "patch_embed=compression, temporal_position=rope",
    ]
    built = [trial.config["model"]["net"]["init_args"] for trial in trials]
    assert [(net["patch_embed"], net["temporal_position"]) for net in built] == [
        ("uniform", "absolute"),
        ("uniform", "rope"),
        ("compression", "absolute"),
        ("compression", "rope"),
    ]


def test_a_hash_names_what_the_result_depends_on(tmp_path):
    def hashes(name, **options):
        folder = tmp_path / name
        folder.mkdir()
        return {trial.row: trial.hash for trial in study_in(folder, **options)[1]}

    plain = hashes("plain")
    assert plain["uniform"] != plain["compression"]
    assert hashes("again") == plain
    assert hashes("workers", scale={"overrides": {"data.num_workers": 1, "model.compile": True}}) == plain
    for name, change in {
        "seed": {"seeds": [1]},
        "budget": {"clips": 128},
        "rate": {"overrides": {"model.lr": 0.5}},
        "precision": {"overrides": {"trainer.precision": "bf16-mixed"}},
        "protocol": {"protocol": "embedded-256-8f"},
    }.items():
        assert not set(hashes(name, scale=change).values()) & set(plain.values()), name


def test_layers_and_weights_of_a_recipe_are_named_by_the_hash_where_they_are_on(tmp_path):
    """Trainings made before these settings keep their names."""
    rows = {
        "uniform": {},
        "absolute": {"model.net.spatial_position": "absolute", "model.lr": 0.02},
        "compression": {"model.net.spatial_position": "rope"},
        "queries": {"model.net.qk_norm": True},
        "gates": {"model.net.swiglu": True},
        "norms": {"model.net.rms_norm": True},
        "weights": {"model.diffusion.init_args.min_snr_gamma": 5},
        "flow": {
            "model.diffusion": "latte_pl.diffusion.RectifiedFlow",
            "model.net.learn_sigma": False,
            "model.sampling.sampler": "euler",
        },
    }
    _, trials = study_in(tmp_path, rows=rows)  # all differ, or the plan were refused
    by_row = {trial.row: trial for trial in trials}
    for name in ("uniform", "absolute"):
        settings = _identity(by_row[name].config)
        assert not [key for key in settings if key.endswith(("spatial_position", "_norm", "swiglu", "gamma"))]
    config = by_row["uniform"].config
    older = json.loads(json.dumps(config))
    for name in ("spatial_position", "qk_norm", "swiglu", "rms_norm"):
        del older["model"]["net"]["init_args"][name]
    del older["model"]["diffusion"]["init_args"]["min_snr_gamma"]
    assert _identity(older) == _identity(config)
    assert _identity(by_row["compression"].config)["model.net.init_args.spatial_position"] == "rope"
    for trial in trials:
        module = build(trial.config)
        check(trial.expected, module, Shapes(size=(16, 24), num_frames=4, global_batch_size=4))


def test_a_row_may_start_from_a_training_that_is_no_row(tmp_path):
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


def test_a_row_that_keeps_averages_is_measured_at_its_best_length(tmp_path):
    changes = {"rows": {"uniform": {}, "averaged": {"model.average_every": 4}}, "claims": []}
    uniform, averaged = study_in(tmp_path, **changes, scale={"protocol": "embedded-256-8f"})[1]
    assert [command[0] for command in uniform.commands] == ["fit", "test"]
    assert [command[0] for command in averaged.commands] == ["fit", "average", "test"]
    assert uniform.hash != averaged.hash
    _, average, test = averaged.commands
    assert average[-2:] == ("--run", averaged.folder)
    assert "--trainer.accelerator=cpu" in average
    assert test[test.index("--ckpt_path") + 1] == f"{averaged.folder}/averages/best.safetensors"
    assert uniform.commands[1][uniform.commands[1].index("--ckpt_path") + 1] == uniform.folder


def test_what_others_start_from_is_not_measured(tmp_path):
    changes = {
        "prepare": {"image": {"model.net.variant": "spatial"}},
        "rows": {"uniform": {}, "started": {"model.pretrained.source": "{image}"}},
        "claims": [],
        "scale": {"overrides": {"model.average_every": 4}},
    }
    trials = study_in(tmp_path, **changes)[1]
    assert {trial.row: len(trial.commands) for trial in trials} == {"image": 1, "uniform": 2, "started": 2}


MISTAKES = {
    "an unknown key": ({"colour": "red"}, "unknown colour"),
    "no baseline": ({"baseline": "none"}, "baseline 'none' is no row"),
    "a claim about nothing": ({"claims": [{"row": "late", "side": "worse"}]}, "claims about late"),
    "a claim against nothing": (
        {"claims": [{"row": "uniform", "side": "worse", "than": "late"}]},
        "claims about late",
    ),
    "a claim against itself": (
        {"claims": [{"row": "uniform", "side": "worse", "than": "uniform"}]},
        "compares 'uniform' with itself",
    ),
    "an unknown side": ({"claims": [{"row": "uniform", "side": "nicer"}]}, "side is 'nicer'; choose better"),
    "an unknown status": ({"status": "sure"}, "status is 'sure'"),
    "no seeds": ({"scale": {"seeds": []}}, "seeds"),
    "a part of a step": ({"scale": {"clips": 65}}, "65 clips are no whole number of steps of 4"),
    "an unknown setting": ({"rows": {"uniform": {"model.net.hiden": 3}}}, "hiden"),
    "an unknown value": ({"rows": {"uniform": {"model.net.variant": "late"}}}, "late"),
    "the same row twice": ({"rows": {"uniform": {}, "same": {}}}, "'uniform' and 'same' are the same training"),
    "a start from nothing": ({"rows": {"uniform": {"model.pretrained.source": "{image}"}}}, "{image}"),
    "a part of a point": ({"scale": {"clips": 4 * 37}}, "37 steps cannot be cut into about 16 equal parts"),
    "no such protocol": ({"scale": {"protocol": "fvd"}}, "no protocol 'fvd'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_study_is_one_line(mistake, tmp_path, capsys):
    changes, said = MISTAKES[mistake]
    changes = {"claims": []} | changes if "rows" in changes else dict(changes)
    path = write_study(tmp_path, **changes)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path), "--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("latte-ablate: error: ")
    assert said in lines[-1]


@pytest.mark.parametrize("name", ["ablations.yaml", "pach_embedding"])
def test_a_study_that_is_not_there_is_one_line(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["status", name])
    assert "no study" in capsys.readouterr().err


def test_the_list_names_every_study(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for path in SHIPPED:
        assert path.stem in listed
        assert yaml.safe_load(path.read_text())["question"] in listed


def test_the_rows_of_the_test_study_differ():
    assert ROWS["uniform"] != ROWS["compression"]
