"""On a real SLURM: jobs that are preempted, cancelled or lose their node lose no work."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from runs import curve, differences, final, write_config, write_videos
from slurm_cluster import (
    PARTITION,
    cluster,
    lose_node,
    reason_to_skip,
    repair_node,
    restarts,
    state,
    wait_for,
    wait_for_restarted,
)
from studies import result_of, start, trials_of, write_study

from latte_pl import cli
from latte_pl.data.latents import Manifest
from latte_pl.files import read_json

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
STEPS = 7
FIT = [
    *("fit", "-c", "tiny.yaml", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=3"),
    *("--trainer.log_every_n_steps=1", "--samples.every_n_steps=100", "--checkpoints.every_n_steps=100"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A SLURM cluster of this machine alone, whose jobs have a minute to end."""
    with cluster(kill_wait=60) as folder:
        yield folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that jobs inherit, as `sbatch --export=ALL` does."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def pausing(folder: Path, steps: list[int]) -> str:
    """Return the argument of a callback that waits for signals at some steps."""
    return f"--trainer.callbacks=[{{class_path: pause.PauseOnce, init_args: {{steps: {steps}, folder: {folder}}}}}]"


@pytest.mark.usefixtures("slurm", "environment")
def test_preempted_training_is_requeued_and_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    cli.main([*FIT, "--name=whole"])
    command = [sys.executable, "-m", "latte_pl", *FIT, "--name=job", pausing(tmp_path, [2, 4])]
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--partition={PARTITION}", "--mem=2000",
         "--output=job.log", f"--wrap=exec {shlex.join(command)}"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    job = submitted.stdout.strip()
    checkpoints = tmp_path / "runs/job/checkpoints"

    wait_for((tmp_path / "paused-2").exists)  # the time limit is near: SLURM sends SIGUSR1, the run requeues itself
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], check=True, timeout=60)
    wait_for(lambda: restarts(job) == 1)
    assert [path.name for path in checkpoints.iterdir()] == ["step=0000003.ckpt"]

    # another job needs the node: SLURM sends SIGTERM, and requeues
    wait_for_restarted(job, (tmp_path / "paused-4").exists)
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    wait_for((checkpoints / "step=0000005.ckpt").exists)

    wait_for_restarted(job, lambda: state(job) == "COMPLETED")
    assert restarts(job) == 2
    left, right = (final(tmp_path / "runs" / name, STEPS) for name in ("whole", "job"))
    assert list(differences({part: left[part] for part in STATE}, {part: right[part] for part in STATE})) == []
    for tag in ("train/loss", "val/loss"):
        assert curve(tmp_path / "runs/job", tag) == curve(tmp_path / "runs/whole", tag)
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.usefixtures("environment")
def test_study_survives_scancel_the_loss_of_a_node_and_a_restart_of_the_runner(tmp_path: Path, slurm: Path) -> None:
    pause = {"class_path": "pause.PauseOnce", "init_args": {"steps": [1, 2, 3], "folder": str(tmp_path)}}
    (tmp_path / "pause.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [pause]}}))
    configs = [write_config(tmp_path), str(tmp_path / "pause.yaml")]
    every = {"checkpoints.every_n_steps": 1, "trainer.val_check_interval": 1}
    write_study(tmp_path, rows={"uniform": {}}, scale={"configs": configs, "clips": 20, "overrides": every})
    (trial,) = trials_of(tmp_path)
    options = ("run", "study.yaml", "--executor", "slurm", "--partition", PARTITION, "--mem-gb", "2")

    runner = start(tmp_path, *options)
    wait_for((tmp_path / "paused-1").exists)
    subprocess.run(["scancel", read_json(trial.path / "job.json")["job_id"]], check=True, timeout=60)
    os.killpg(int((trial.path / "pid").read_text()), signal.SIGKILL)  # control groups do this on a cluster
    said, _ = runner.communicate(timeout=600)
    assert "0 of 1 trials finished, 1 FAILED" in said

    runner = start(tmp_path, *options)  # a new job resumes
    wait_for((tmp_path / "paused-2").exists)
    lose_node(slurm)
    os.killpg(int((trial.path / "pid").read_text()), signal.SIGKILL)
    job = read_json(trial.path / "job.json")["job_id"]
    wait_for(lambda: state(job) == "PENDING")
    runner.send_signal(signal.SIGINT)
    said, _ = runner.communicate(timeout=600)
    assert f"SLURM jobs {job} keep running" in said
    repair_node(slurm)
    runner = start(tmp_path, *options)  # follows the job that is in the queue
    wait_for_restarted(job, (tmp_path / "paused-3").exists)
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    os.kill(int((trial.path / "pid").read_text()), signal.SIGTERM)  # control groups signal each process of a job
    wait_for(lambda: restarts(job) == 2)
    wait_for_restarted(job, lambda: runner.poll() is not None)
    said, _ = runner.communicate()
    assert read_json(trial.path / "job.json")["job_id"] == job
    assert restarts(job) == 2
    assert "running, requeued" in said
    assert "1 of 1 trials finished, 0 FAILED" in said, said
    assert [step for step, _ in result_of(trial)["curves"]["val/loss"]] == list(range(1, 6))
    # each step was trained once, since every step had its checkpoint
    assert [step for step, _ in curve(trial.path, "train/loss")] == sorted(
        {s for s, _ in curve(trial.path, "train/loss")}
    )


@pytest.mark.usefixtures("slurm", "environment")
def test_latent_cache_is_encoded_by_a_job_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = write_videos(tmp_path, count=4)
    cli.main([*command, "--output=one"])
    array = ["--slurm.jobs=2", f"--slurm.partition={PARTITION}", "--slurm.cpus=1", "--slurm.mem_gb=2"]
    cli.main([*command, "--output=array", *array])
    assert Manifest.read(tmp_path / "array") == Manifest.read(tmp_path / "one")
    assert len(list((tmp_path / "array/jobs").glob("*_log.out"))) == 2
