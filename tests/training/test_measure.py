import json
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import finish, start, write_config
from safetensors import safe_open

from latte_pl import cli
from latte_pl.data import Shapes
from latte_pl.metrics import Protocol, Record, ShapesR3D
from latte_pl.training import load
from latte_pl.training.evaluation import model_hash, run_protocol, sample
from latte_pl.training.module import LatteModule

PROTOCOL = """
metrics: [embedded_video_distance, embedded_kernel_distance]
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
    """As in the processes that are started: a matrix product may depend on the number of threads in its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of three steps, runs/tiny, and a protocol, few.yaml."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "few.yaml").write_text(PROTOCOL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=3", "--name=tiny"])
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
    """Return the stored features by sample number, and how often each number was stored."""
    rows, counts = {}, Counter()
    for path in Path(output).glob("features_*/generated/shard-*.safetensors"):
        with safe_open(path, "pt") as file:
            numbers = file.get_tensor("indices").tolist()
            rows |= dict(zip(numbers, file.get_tensor("features")))
            counts.update(numbers)
    return rows, counts


@pytest.fixture(scope="module")
def whole(run):
    """The record of one call with batches of four, and the features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        return measure("whole", "--batch_size=4"), shards("whole")[0]


def test_the_record_says_what_was_measured(run, whole, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (path,) = Path("whole").glob("*.json")
    data = json.loads(path.read_text())
    assert (data["weights"], data["sampler"], data["seed"]) == ("ema", "ddim", 3)
    of_the_run = {"interval": 3, "height": 16, "width": 24, "steps": 2, "guidance": 2.0, "labels": "cycle"}
    assert of_the_run.items() <= {k: v for k, v in data["protocol"].items() if k in of_the_run}.items()
    assert data["protocol"]["fingerprint"] == Shapes(size=(16, 24)).dataset("val").fingerprint()
    assert data["model"] == "runs/tiny/checkpoints/step=0000003.ckpt"
    assert set(data["scores"]) == {"embedded_video_distance", "embedded_kernel_distance"}
    assert {score["label"] for score in data["scores"].values()} == {"smoke"}
    assert data["about"]["sampled"] == 13
    assert 0 < data["wall_time_s"] < 300
    monkeypatch.setattr(LatteModule, "sample", None)
    assert measure("whole") == whole[0]  # it is measured: nothing is sampled, and the record stays as it is
    output = capsys.readouterr().out
    assert "smoke" in output
    assert str(path) in output


def test_no_batch_size_changes_a_bit(run, whole, monkeypatch):
    monkeypatch.chdir(run)
    for batch_size in (1, 7):
        again = measure(f"by{batch_size}", f"--batch_size={batch_size}")
        assert again.scores == whole[0].scores
        assert all(torch.equal(row, whole[1][number]) for number, row in shards(f"by{batch_size}")[0].items())


def test_a_released_file_has_the_value_of_its_checkpoint(run, whole, monkeypatch):
    monkeypatch.chdir(run)
    cli.main(["export", "runs/tiny", "released.safetensors"])
    released = measure("released", "--ckpt_path=released.safetensors")
    assert released.model == "released.safetensors"
    assert released.scores == whole[0].scores
    assert released.about["model_sha256"] == whole[0].about["model_sha256"]


def test_two_processes_give_the_value_of_one(run, whole):
    more = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--batch_size=2"]
    output = finish(start(arguments("two", *more), run))
    two = record(run / "two")
    assert two.about["num_devices"] == 2
    for name, score in whole[0].scores.items():
        assert two.scores[name].value == pytest.approx(score.value, rel=1e-9)
        assert two.scores[name].interval.low == pytest.approx(score.interval.low, rel=1e-9)
    rows, counts = shards(run / "two")
    assert counts == Counter(range(13))
    assert all(torch.equal(rows[n], whole[1][n]) for n in range(13))
    assert output.count("embedded_kernel_distance") == 1


def test_a_killed_test_goes_on_and_samples_nothing_twice(run, monkeypatch):
    monkeypatch.chdir(run)
    slow = ["--model.sampling.steps=25", "--batch_size=1"]
    process = start(arguments("killed", *slow), run)
    deadline = time.monotonic() + 100
    while len(shards("killed")[0]) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = set(shards("killed")[0])
    assert 2 <= len(done) < 13
    drawn = []
    original = LatteModule.sample

    def noted(self, numbers, *rest, **more):
        drawn.extend(numbers)
        return original(self, numbers, *rest, **more)

    monkeypatch.setattr(LatteModule, "sample", noted)
    killed = measure("killed", *slow)
    assert sorted(drawn) == sorted(set(range(13)) - done)
    assert shards("killed")[1] == Counter(range(13))
    assert killed.about["sampled"] == 13 - len(done)
    assert killed.scores == measure("never_killed", *slow).scores


def test_other_weights_are_another_model(run):
    module = load(run / "runs/tiny")
    assert model_hash(module) == model_hash(load(run / "runs/tiny"))
    with torch.no_grad():
        next(module.ema.parameters()).flatten()[0] += 1e-6
    assert model_hash(module) != model_hash(load(run / "runs/tiny"))


def test_what_a_run_contradicts_changes_the_name(run, tmp_path):
    module, data = load(run / "runs/tiny"), Shapes(size=(16, 24), num_frames=4, interval=3)
    stated = "sampler: ddim\nsteps: 50\neta: 0.0\nguidance: 2\nguidance_interval: [0, 1000]\nlabels: none\n"
    (tmp_path / "strict.yaml").write_text(PROTOCOL + stated)
    protocol = run_protocol(module, data, str(tmp_path / "strict.yaml"), ShapesR3D(), "bf16-mixed")
    assert protocol.name == "strict+labels=cycle+steps=2"
    assert (protocol.precision, protocol.resize, protocol.dataset) == ("bf16-mixed", "none", "Shapes")
    open_ = run_protocol(module, data, str(run / "few.yaml"), ShapesR3D(), "32-true")
    assert (open_.name, open_.precision) == ("few", "32")


def test_classes_are_a_function_of_the_sample_number(run):
    module = load(run / "runs/tiny")
    protocol = Protocol.load(
        run / "few.yaml", dataset="d", fingerprint="f", interval=1, height=16, width=24, resize="none", sampler="ddim",
        steps=2, eta=0, guidance=2, guidance_interval=[0, 1000], labels="uniform", precision="32", extractor_sha256="e",
    )  # fmt: skip
    drawn = []
    module.sample = lambda numbers, labels, seed, prompts: drawn.append((numbers, labels, seed))
    sample(module, protocol, list(range(400)))
    sample(module, protocol, [399, 7])
    (_, labels, seed), (_, picked, _) = drawn
    assert seed == 3
    assert picked == [labels[399], labels[7]]
    assert min(Counter(labels).values()) > 25  # 8 classes, 50 of each on average
    assert set(labels) == set(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol=best"], "no protocol 'best'; choose embedded-2048-16f"),
        (["--protocol=files-embedded-8f"], "scores finished videos; use it in latte evaluate"),
        (["--protocol=embedded-256-8f"], "measures clips of 8 frames, the model makes 4; choose --protocol a .yaml"),
        (["--protocol=paper-fvd2048-16f", "--extractor_path=no/i3d.pt"], r"no file no/i3d\.pt; .*i3d_torchscript\.pt"),
        (["--data.size=[16, 32]"], r"makes videos of \(16, 24\) pixels, the data are of \(16, 32\)"),
        (["--batch_size=0"], "batch_size is 0"),
        (["-c", "trainer/fsdp.yaml", "--trainer.devices=1"], "use --trainer.strategy ddp"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_one_line(run, monkeypatch, capsys, change, message):
    monkeypatch.chdir(run)
    with pytest.raises(SystemExit):
        cli.main([*arguments("refused"), *change])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("latte: error: ")
    assert re.search(message, error), error
    assert not (run / "refused").exists()


def test_missing_weights_of_i3d_name_file_place_and_address(run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(run)
    monkeypatch.setenv("LATTE_CACHE", str(tmp_path))
    monkeypatch.setattr("latte_pl.metrics.extractors.I3D_URL", (tmp_path / "offline").as_uri())
    with pytest.raises(SystemExit):
        cli.main([*arguments("refused"), "--protocol=paper-fvd2048-16f"])
    error = capsys.readouterr().err
    assert f"{tmp_path}/i3d_torchscript.pt is missing" in error
    assert "fetch i3d_torchscript.pt on a machine with a network and put it there" in error


def test_records_of_different_protocols_never_share_a_table(run, whole, monkeypatch, capsys):
    monkeypatch.chdir(run)
    measure("other", "--model.sampling.steps=3", "--batch_size=13")
    capsys.readouterr()
    (ours,), (other,) = Path("whole").glob("*.json"), Path("other").glob("*.json")
    cli.main(["compare", str(ours), str(ours)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("runs/tiny/checkpoints") for line in lines) == 2
    with pytest.raises(SystemExit):
        cli.main(["compare", str(ours), str(other)])
    assert "can't share a table: steps 2 / 3" in capsys.readouterr().err
