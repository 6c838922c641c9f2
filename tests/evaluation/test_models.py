import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import run_distributed, run_killed, write_config
from safetensors import safe_open

from latte_pl import cli
from latte_pl.evaluation.models import model_hash, request, run_protocol
from latte_pl.metrics import Record
from latte_pl.toy import Shapes
from latte_pl.toy.extractor import ShapesR3D
from latte_pl.training import load
from latte_pl.training.module import LatteModule

PROTOCOL = """
metrics: [toy_video_distance, toy_kernel_distance]
split: val
num_frames: 4
view: first
num_real: 12
real_seed: 0
extractor: shapes_r3d
num_generated: 13
generated_interval: 1
weights: ema
seed: 3
folds: 4
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compute as in the started processes: the last bit of a product may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_process_group():
    """End the process group that a strategy for several devices starts."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of one step, runs/tiny, and a protocol, few.yaml."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "few.yaml").write_text(PROTOCOL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=1", "--samples.num_samples=1", "--name=tiny"])
    return folder


def arguments(output, *more):
    return ["test", "--ckpt_path=runs/tiny", "--protocol=few.yaml", f"--output={output}", *more]


def measure(output, *more):
    """Run the command in this process and return its record."""
    cli.main(arguments(output, "--trainer.enable_progress_bar=false", *more))
    return record(output)


def record(output):
    (path,) = Path(output).glob("*.json")
    return Record.read(path)


def shards(output):
    """Return the stored features by index of the sample, and how often each index is stored."""
    rows, counts = {}, Counter()
    for path in Path(output).glob("features_*/generated/shard-*.safetensors"):
        with safe_open(path, "pt") as file:
            indices = file.get_tensor("indices").tolist()
            rows |= dict(zip(indices, file.get_tensor("features")))
            counts.update(indices)
    return rows, counts


@pytest.fixture(scope="module")
def whole(run):
    """The record and the features of an evaluation with batches of four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        return measure("whole", "--batch_size=4"), shards("whole")[0]


def test_record_states_what_was_measured_and_is_reused(run, whole, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (path,) = Path("whole").glob("*.json")
    data = json.loads(path.read_text())
    assert (data["weights"], data["sampler"], data["seed"]) == ("ema", "ddim", 3)
    of_the_run = {"interval": 3, "height": 16, "width": 24, "steps": 2, "guidance": 2.0, "labels": "cycle"}
    assert of_the_run.items() <= {k: v for k, v in data["protocol"].items() if k in of_the_run}.items()
    assert data["protocol"]["fingerprint"] == Shapes(size=(16, 24)).dataset("val").fingerprint()
    assert data["model"] == "runs/tiny/checkpoints/step=0000001.ckpt"
    assert set(data["scores"]) == {"toy_video_distance", "toy_kernel_distance"}
    assert {score["label"] for score in data["scores"].values()} == {"smoke"}
    assert data["about"]["sampled"] == 13
    motion = data["about"]["motion"]
    assert (motion["clips"], len(motion["by_class"])) == (13, 8)
    by_class = [motion["by_class"][name] for name in Shapes().class_names]
    assert motion["value"] == pytest.approx((2 * sum(by_class[:5]) + sum(by_class[5:])) / 13)  # 13 samples of 8 classes
    assert 0 < data["wall_time_s"] < 300
    monkeypatch.setattr(LatteModule, "sample", None)
    assert measure("whole") == whole[0]  # nothing is sampled again
    output = capsys.readouterr().out
    assert "smoke" in output
    assert str(path) in output


def test_batch_size_does_not_change_the_scores(run, whole, monkeypatch):
    monkeypatch.chdir(run)
    for batch_size in (1, 7):
        again = measure(f"by{batch_size}", f"--batch_size={batch_size}")
        assert again.scores == whole[0].scores
        assert all(torch.equal(row, whole[1][number]) for number, row in shards(f"by{batch_size}")[0].items())


def test_exported_weights_have_the_scores_of_their_checkpoint(run, whole, monkeypatch):
    monkeypatch.chdir(run)
    cli.main(["export", "runs/tiny", "released.safetensors"])
    released = measure("released", "--ckpt_path=released.safetensors")
    assert released.model == "released.safetensors"
    assert released.scores == whole[0].scores
    assert released.about["model_sha256"] == whole[0].about["model_sha256"]


def test_two_processes_have_the_scores_of_one(run, whole):
    output = run_distributed(arguments("two", "--trainer.strategy=ddp", "--batch_size=2"), run)
    two = record(run / "two")
    assert two.about["num_devices"] == 2
    assert two.about["motion"] == whole[0].about["motion"]
    for name, score in whole[0].scores.items():
        assert two.scores[name].value == pytest.approx(score.value, rel=1e-9)
        assert two.scores[name].interval.low == pytest.approx(score.interval.low, rel=1e-9)
    rows, counts = shards(run / "two")
    assert counts == Counter(range(13))
    assert all(torch.equal(rows[n], whole[1][n]) for n in range(13))
    assert output.count("toy_kernel_distance") == 1


def test_process_without_samples_waits_for_the_others(run, whole):
    """All samples are one batch, so the second process has none."""
    run_distributed(arguments("one_batch", "--trainer.strategy=ddp", "--batch_size=13"), run)
    assert record(run / "one_batch").scores == whole[0].scores


def test_killed_evaluation_resumes_and_draws_no_sample_twice(run, whole, monkeypatch):
    monkeypatch.chdir(run)
    run_killed(arguments("killed", "--batch_size=3"), run, batches=2)
    done = set(shards("killed")[0])
    assert done in ({0, 1, 2}, set(range(6)))  # the last batch may not be stored yet
    drawn, original = [], LatteModule.sample

    def record_indices(self, indices, *args, **options):
        drawn.extend(indices)
        return original(self, indices, *args, **options)

    monkeypatch.setattr(LatteModule, "sample", record_indices)
    resumed = measure("killed", "--batch_size=3")
    assert sorted(drawn) == sorted(set(range(13)) - done)
    assert shards("killed")[1] == Counter(range(13))
    assert resumed.about["sampled"] == 13 - len(done)
    assert resumed.scores == whole[0].scores


def test_model_hash_depends_on_the_weights(run):
    module = load(run / "runs/tiny")
    assert model_hash(module) == model_hash(load(run / "runs/tiny"))
    with torch.no_grad():
        next(module.ema.parameters()).flatten()[0] += 1e-6
    assert model_hash(module) != model_hash(load(run / "runs/tiny"))


def test_values_that_contradict_a_protocol_change_its_name(run, tmp_path):
    module, data = load(run / "runs/tiny"), Shapes(size=(16, 24), num_frames=4, interval=3)
    stated = "sampler: ddim\nsteps: 50\neta: 0.0\nguidance: 2\nguidance_interval: [0, 1000]\nlabels: none\n"
    (tmp_path / "strict.yaml").write_text(PROTOCOL + stated)
    protocol = run_protocol(module, data, str(tmp_path / "strict.yaml"), ShapesR3D(), "bf16-mixed")
    assert protocol.name == "strict+labels=cycle+steps=2"
    assert (protocol.precision, protocol.resize, protocol.dataset) == ("bf16-mixed", "none", "Shapes")
    open_ = run_protocol(module, data, str(run / "few.yaml"), ShapesR3D(), "32-true")
    assert (open_.name, open_.precision) == ("few", "32")


def test_class_of_a_sample_is_a_function_of_its_index(run):
    module, data = load(run / "runs/tiny"), Shapes(size=(16, 24), num_frames=4, interval=3)
    uniform, cycle = (
        run_protocol(module, data, str(run / "few.yaml"), ShapesR3D(), "32-true", labels=labels)
        for labels in ("uniform", "cycle")
    )
    labels = [request(uniform, 8, n)["label"] for n in range(400)]
    assert labels[7] == request(uniform, 8, 7)["label"]
    assert min(Counter(labels).values()) > 25  # 50 on average
    assert set(labels) == set(range(8))
    assert [request(cycle, 8, n)["label"] for n in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol=best"], "no protocol 'best'; choose files-fvd-16f"),
        (["--protocol=files-toy-8f"], "scores finished videos; use it with latte evaluate"),
        (["--protocol=toy-256-8f"], "measures clips of 8 frames, the model generates 4; choose --protocol a .yaml"),
        (["--protocol=paper-fvd2048-16f", "--extractor_path=no/i3d.pt"], r"no file no/i3d\.pt; .*i3d_torchscript\.pt"),
        (["--data.size=[16, 32]"], r"generates videos of \(16, 24\) pixels, the data have \(16, 32\)"),
        (["--batch_size=0"], "batch_size is 0"),
        (["-c", "trainer/fsdp.yaml", "--trainer.devices=1"], "use --trainer.strategy ddp"),
    ],
)  # fmt: skip
def test_mistake_ends_with_one_line(run, monkeypatch, capsys, change, message):
    monkeypatch.chdir(run)
    with pytest.raises(SystemExit):
        cli.main([*arguments("refused"), *change])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("latte: error: ")
    assert re.search(message, error), error
    assert not (run / "refused").exists()


def test_missing_weights_of_i3d_name_the_file_and_its_address(run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(run)
    monkeypatch.setenv("LATTE_CACHE", str(tmp_path))
    monkeypatch.setattr("latte_pl.metrics.extractors.I3D_URL", (tmp_path / "offline").as_uri())
    with pytest.raises(SystemExit):
        cli.main([*arguments("refused"), "--protocol=paper-fvd2048-16f"])
    error = capsys.readouterr().err
    assert f"{tmp_path}/i3d_torchscript.pt is missing" in error
    assert "on a machine with internet access and copy it there" in error


def test_records_of_different_protocols_do_not_share_a_table(run, whole, monkeypatch, capsys):
    monkeypatch.chdir(run)
    measure("other", "--model.sampling.steps=3", "--batch_size=13")
    capsys.readouterr()
    (ours,), (other,) = Path("whole").glob("*.json"), Path("other").glob("*.json")
    cli.main(["compare", str(ours), str(ours)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("runs/tiny/checkpoints") for line in lines) == 2
    with pytest.raises(SystemExit):
        cli.main(["compare", str(ours), str(other)])
    assert "cannot share a table: steps 2 / 3" in capsys.readouterr().err
