"""Trials that are killed, interrupted, diverge or fill the disk: no result is lost, counted twice or missing."""

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from runs import write_config
from studies import ROOT, result_of, start, trials_of, write_study

from latte_pl.ablation import worker
from latte_pl.ablation.local import may_fork
from latte_pl.ablation.runner import Runner
from latte_pl.ablation.trial import state_of
from latte_pl.ablation.worker import error_line


def test_error_line_is_the_last_error():
    lines = ["Traceback", "ValueError: no such file", "", "ChildProcess 3 terminated", "srun: error: exit code 1"]
    assert error_line(lines, 1) == "ValueError: no such file"
    assert error_line(["working", "latte: error: data.size is 3"], 2) == "latte: error: data.size is 3"
    assert error_line(lines[:2], -9) == "the process was killed by signal 9: ValueError: no such file"
    assert error_line(["step 7"], -9) == "the process was killed by signal 9"
    assert error_line(["torch.AcceleratorError: CUDA", "bye"], 1) == "torch.AcceleratorError: CUDA"
    assert error_line([], 3) == ""


@pytest.mark.parametrize("fork", [True, False])
def test_output_of_a_command_is_in_its_log_and_nowhere_else(fork, tmp_path):
    """Also where the output of `latte-ablate` goes to a file, which is seekable."""
    imports = "from pathlib import Path; from latte_pl.ablation.worker import run"
    code = f"{imports}; run(('--help',), Path('log'), 1, fork={fork})"
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=file, check=True)
    assert "usage: latte COMMAND" in (tmp_path / "log").read_text()
    assert (tmp_path / "out").read_text() == ""


@pytest.mark.parametrize(("queue", "state", "ended"), [({"7": 1}, "requeued", False), ({}, "queued", True)])
def test_job_that_wrote_an_error_goes_on_while_slurm_has_it_in_its_queue(queue, state, ended, tmp_path):
    """A job that is preempted writes the error of its stopped training, and is then queued again."""
    trial = SimpleNamespace(hash="a", path=tmp_path / "a")
    (tmp_path / "error.pkl").touch()
    job = SimpleNamespace(job_id="7", paths=SimpleNamespace(result_pickle=tmp_path / "error.pkl"), done=lambda: True)
    runner = Runner([], tmp_path, "slurm")
    runner._active, runner._queue = {"a": job}, queue
    assert runner._has_ended(job) is ended
    assert runner._state(trial) == state


STEPS = 4
SCALE = {"clips": 4 * STEPS}


def finish(process, status=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty for a process that has ended
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study whose rows succeed, diverge or do not match, run two trials at a time: its folder and the output."""
    folder = tmp_path_factory.mktemp("whole")
    rows = {"diverges": {"model.lr": 1.0e30}, "does not match": {"model.net.temporal_stride": 4}}
    write_study(folder, rows={"uniform": {}} | rows, scale=SCALE)
    return folder, finish(start(folder, "run", "study.yaml", "--jobs", "2"), status=1)


def test_finished_trial_has_a_result(whole):
    result = result_of(trials_of(whole[0])[0])
    assert result["axes"]["patch_embed"] == "uniform"
    assert result["clips"] == 4 * STEPS
    assert [step for step, _ in result["curves"]["val/loss"]] == list(range(1, STEPS + 1))
    assert result["curves"]["val/loss"][-1][1] == result["held_out"]["loss"]
    assert result["cost"]["forward_flops"] > 1e5
    assert result["cost"]["peak_memory"] > 1e8
    assert result["wall_time_s"] > 1


def test_trials_of_one_device_may_be_forks(whole):
    trials = trials_of(whole[0])
    assert all(may_fork(trial) for trial in trials)
    devices = {"trainer": trials[0].config["trainer"] | {"devices": 2}}
    assert not may_fork(dataclasses.replace(trials[0], config=trials[0].config | devices))


@pytest.mark.parametrize(("threads", "wanted", "added"), [(2, 4, ["--data.num_workers=2"]), (4, 4, []), (None, 4, [])])
def test_loader_processes_fit_the_threads_of_a_trial(threads, wanted, added, whole, tmp_path, monkeypatch):
    trial = trials_of(whole[0])[0]
    data = {"data": {"init_args": trial.config["data"]["init_args"] | {"num_workers": wanted}}}
    trial = dataclasses.replace(trial, folder=str(tmp_path / "trial"), config=trial.config | data)
    ran = []
    monkeypatch.setattr(worker, "run", lambda command, *_: ran.append(list(command)))
    with pytest.raises(ValueError, match="is missing"):  # nothing was trained
        worker.work(trial, threads)
    assert ran == [[*trial.commands[0], *added]]


def test_trials_that_raise_or_diverge_fail_alone(whole):
    folder, said = whole
    assert "1 of 3 trials finished, 2 FAILED" in said
    assert re.search(r"diverges, seed 0: .*the loss is (nan|inf) at step \d+", said)
    assert re.search(r"does not match, seed 0: .*temporal_stride to 4, but the built value is 1; the trial", said)
    assert [state_of(trial) for trial in trials_of(folder)] == ["finished", "FAILED", "FAILED"]
    status = finish(start(folder, "status", "study.yaml"))
    assert status.count("FAILED") == 2
    assert "the loss is" in status


def test_finished_trials_are_skipped(whole):
    trials = trials_of(whole[0])[:1]
    before = [(t.result.stat().st_mtime_ns, (t.path / "log.txt").read_text()) for t in trials]
    assert Runner(trials, whole[0] / ROOT).run()
    assert [(t.result.stat().st_mtime_ns, (t.path / "log.txt").read_text()) for t in trials] == before


def test_interrupted_and_killed_trainings_resume_bit_exactly(whole, tmp_path):
    pause = {"class_path": "pause.PauseOnce", "init_args": {"steps": [1, 2], "folder": str(tmp_path)}}
    (tmp_path / "pause.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [pause]}}))
    configs = [write_config(tmp_path), str(tmp_path / "pause.yaml")]
    write_study(tmp_path, rows={"uniform": {}}, scale=SCALE | {"configs": configs})
    (trial,) = trials_of(tmp_path)

    process = start(tmp_path, "run", "study.yaml")
    wait_for((tmp_path / "paused-1").exists, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    said = finish(process, status=1)
    assert "the same command resumes from the newest checkpoints" in said
    assert "Traceback" not in said
    assert state_of(trial) in ("FAILED", "stopped")
    assert not is_running(int((trial.path / "pid").read_text()))

    process = start(tmp_path, "run", "study.yaml")
    wait_for((tmp_path / "paused-2").exists, process)
    os.kill(int((trial.path / "pid").read_text()), signal.SIGKILL)
    said = finish(process, status=1)
    assert "0 of 1 trials finished, 1 FAILED" in said
    assert "killed by signal 9" in said

    for process in [start(tmp_path, "run", "study.yaml") for _ in range(2)]:
        assert "1 of 1 trials finished, 0 FAILED" in finish(process)
    uninterrupted = trials_of(whole[0])[0]
    assert result_of(trial)["curves"]["val/loss"] == result_of(uninterrupted)["curves"]["val/loss"]
    # of two runs at once, the second waits for the first and uses its result
    assert (trial.path / "log.txt").read_text().count("checkpoints ") == 1


def test_full_disk_fails_the_trial_which_then_trains_again(tmp_path):
    write_study(tmp_path, rows={"uniform": {}}, scale=SCALE)
    (trial,) = trials_of(tmp_path)

    def small_files():  # everything fits but a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    said = finish(start(tmp_path, "run", "study.yaml", preexec_fn=small_files), status=1)
    assert "0 of 1 trials finished, 1 FAILED" in said
    assert re.search(r"cannot write .*step=0000001\.ckpt|is the disk full\?", said)
    assert not list(trial.path.glob("checkpoints/*.ckpt"))
    assert "1 of 1 trials finished" in finish(start(tmp_path, "run", "study.yaml"))
    assert [step for step, _ in result_of(trial)["curves"]["val/loss"]] == list(range(1, STEPS + 1))
