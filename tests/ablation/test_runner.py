"""Trials that are killed, raise, diverge or fill the disk: no result is lost, counted twice or silently missing."""

import json
import os
import re
import resource
import signal
import subprocess
import time

import pytest
from studies import result_of, start, trials_of, write_study

from latte_pl.ablation.runner import state_of
from latte_pl.ablation.worker import last_line


def test_the_last_line_is_the_error_not_what_came_after():
    lines = ["Traceback", "ValueError: no such file", "", "ChildProcess 3 terminated", "srun: error: exit code 1"]
    assert last_line(lines, 1) == "ValueError: no such file"
    assert last_line(["working", "latte: error: data.size is 3"], 2) == "latte: error: data.size is 3"
    assert last_line(lines[:2], -9) == "the process was killed by signal 9: ValueError: no such file"
    assert last_line(["step 7"], -9) == "the process was killed by signal 9"
    assert last_line(["torch.AcceleratorError: CUDA", "bye"], 1) == "torch.AcceleratorError: CUDA"
    assert last_line([], 3) == ""


def finish(process, status=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(trial):
    try:
        return json.loads((trial.path / "progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def processes(trial):
    """Return the process numbers of a trial's `latte fit`; other tests run trials of the same hash at the same time."""
    config = trial.path.parents[3] / "tiny.yaml"
    pattern = f"latte_pl fit -c {config} .*--name={trial.hash}"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of two rows that ran without a fault, two trials at a time: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    write_study(folder)
    return folder, finish(start(folder, "run", "study.yaml", "--jobs", "2"))


def test_a_run_leaves_a_result_a_trial(whole):
    folder, said = whole
    assert "2 of 2 trials finished, 0 FAILED" in said
    uniform, compression = map(result_of, trials_of(folder))
    assert uniform["axes"]["patch_embed"] == "uniform"
    assert compression["axes"]["patch_embed"] == "compression"
    for result in (uniform, compression):
        assert result["clips"] == 64
        assert result["curves"]["val/loss"][-1] == [16, result["held_out"]["loss"]]
        assert result["cost"]["forward_flops"] > 1e5
        assert result["cost"]["peak_memory"] > 1e8
        assert result["cost"]["clips_per_second"] > 0
        assert result["wall_time_s"] > 1
    assert uniform["held_out"]["hash"] == compression["held_out"]["hash"]
    assert uniform["cost"]["forward_flops"] != compression["cost"]["forward_flops"]


def test_finished_trials_are_skipped(whole):
    folder, _ = whole
    before = {trial.hash: trial.result.stat().st_mtime_ns for trial in trials_of(folder)}
    logs = {trial.hash: (trial.path / "log.txt").read_text() for trial in trials_of(folder)}
    assert "2 of 2 trials finished" in finish(start(folder, "run", "study.yaml"))
    for trial in trials_of(folder):
        assert trial.result.stat().st_mtime_ns == before[trial.hash]
        assert (trial.path / "log.txt").read_text() == logs[trial.hash]


def test_trials_that_raise_or_diverge_fail_alone(tmp_path):
    rows = {
        "uniform": {},
        "diverges": {"model.lr": 1.0e30},
        "is not what it says": {"model.net.temporal_stride": 4},
    }
    write_study(tmp_path, rows=rows)
    said = finish(start(tmp_path, "run", "study.yaml", "--jobs", "3"), status=1)
    assert "1 of 3 trials finished, 2 FAILED" in said
    assert re.search(r"diverges, seed 0: .*the loss is (nan|inf) at step \d+", said)
    assert re.search(r"is not what it says, seed 0: .*temporal_stride to 4.*built has 1; the trial is refused", said)
    assert [state_of(trial) for trial in trials_of(tmp_path)] == ["finished", "FAILED", "FAILED"]
    again = finish(start(tmp_path, "status", "study.yaml"))
    assert again.count("FAILED") == 2
    assert "the loss is" in again


def test_a_killed_trial_goes_on_from_its_checkpoint(whole, tmp_path):
    write_study(tmp_path)
    uniform, compression = trials_of(tmp_path)
    process = start(tmp_path, "run", "study.yaml", "--jobs", "2")
    wait_for(lambda: list(uniform.path.glob("checkpoints/*.ckpt")), process)
    for number in processes(uniform):
        os.kill(number, signal.SIGKILL)
    said = finish(process, status=1)
    assert "1 of 2 trials finished, 1 FAILED" in said, said
    assert "killed by signal 9" in said
    first = result_of(compression)
    assert "2 of 2 trials finished, 0 FAILED" in finish(start(tmp_path, "run", "study.yaml"))
    assert result_of(compression) == first
    expected = {result["row"]: result for result in map(result_of, trials_of(whole[0]))}
    for trial in (uniform, compression):
        # the same numbers as of a run without a fault, each point of the curve once
        assert result_of(trial)["curves"]["val/loss"] == expected[trial.row]["curves"]["val/loss"]
    assert (uniform.path / "log.txt").read_text().count("checkpoints ") == 1


def test_ctrl_c_leaves_everything_resumable(tmp_path):
    write_study(tmp_path, scale={"clips": 256})
    uniform, _ = trials_of(tmp_path)
    process = start(tmp_path, "run", "study.yaml")
    wait_for(lambda: list(uniform.path.glob("checkpoints/*.ckpt")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    said = finish(process, status=1)
    assert "the same command goes on from the newest checkpoints" in said
    assert "Traceback" not in said
    assert not processes(uniform)
    assert state_of(uniform) in ("FAILED", "stopped")
    before = max(path.name for path in uniform.path.glob("checkpoints/*.ckpt"))
    assert "2 of 2 trials finished" in finish(start(tmp_path, "run", "study.yaml", "--jobs", "2"))
    assert before > "step=0000000.ckpt"


def test_two_runs_at_once_train_each_trial_once(tmp_path):
    write_study(tmp_path)
    both = [start(tmp_path, "run", "study.yaml", "--jobs", "2") for _ in range(2)]
    for process in both:
        assert "2 of 2 trials finished, 0 FAILED" in finish(process)
    for trial in trials_of(tmp_path):
        assert (trial.path / "log.txt").read_text().count("checkpoints ") == 1
        assert len(list(trial.path.glob("events.*"))) == 1


def test_a_full_disk_fails_the_trial_and_is_gone_on_from(tmp_path):
    write_study(tmp_path, rows={"uniform": {}})
    (trial,) = trials_of(tmp_path)

    def small_files():  # a checkpoint does not fit, everything else does
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    said = finish(start(tmp_path, "run", "study.yaml", preexec_fn=small_files), status=1)
    assert re.search(r"0 of 1 trials finished, 1 FAILED", said)
    assert "is the disk full?" in said
    assert state_of(trial) == "FAILED"
    assert not list(trial.path.glob("checkpoints/*"))
    assert "1 of 1 trials finished" in finish(start(tmp_path, "run", "study.yaml"))
    # the training began anew; its curve has each step once
    assert [step for step, _ in result_of(trial)["curves"]["val/loss"]] == list(range(1, 17))


def test_a_disk_that_takes_no_word_still_gives_a_failed_trial(tmp_path):
    write_study(tmp_path, rows={"uniform": {}})
    (trial,) = trials_of(tmp_path)
    trial.path.mkdir(parents=True)
    (trial.path / "built.json").mkdir()  # what the training writes first cannot be written
    said = finish(start(tmp_path, "run", "study.yaml"), status=1)
    assert "0 of 1 trials finished, 1 FAILED" in said
    assert state_of(trial) == "FAILED"
