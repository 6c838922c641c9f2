"""An interrupted run resumes bit-exactly."""

import pytest
import torch
from runs import curve, differences, final, run_killed, write_config

from latte_pl import cli

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run that was never interrupted, "whole", and of one that was killed twice, "killed".

    Steps accumulate two batches. The first process dies in the middle of step 7, after the checkpoint of step 4. The
    second process dies in step 9, after that of step 8. Snapshots of EMAs are written every two steps.
    """
    folder = tmp_path_factory.mktemp("resume")
    more = ["--trainer.accumulate_grad_batches=2", "--model.ema_snapshot_every=2", "--trainer.precision=bf16-mixed"]
    args = ["fit", "-c", write_config(folder), *more]
    run_killed([*args, "--name=killed"], folder, batches=13)
    assert [path.name for path in (folder / "runs/killed/checkpoints").iterdir()] == ["step=0000004.ckpt"]
    run_killed([*args, "--name=killed"], folder, batches=10)
    (folder / "runs/killed/checkpoints/.step=0000011.ckpt.1-a.part").write_bytes(b"a part of a checkpoint")
    # the snapshot of a step after the checkpoint, as another interruption leaves it
    torch.save({}, folder / "runs/killed/averages/step=0000010.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main([*args, "--name=killed"])
        cli.main([*args, "--name=whole"])
    return folder / "runs"


def test_resume_is_bit_exact(runs):
    whole, killed = (final(runs / name) for name in ("whole", "killed"))
    assert list(differences({part: whole[part] for part in STATE}, {part: killed[part] for part in STATE})) == []
    assert {name.partition(".")[0] for name in whole["state_dict"]} == {"net", "ema", "averages"}


def test_resumed_run_logs_every_point_once(runs):
    for tag in ("train/loss", "train/mse", "val/loss", "train/clips_seen"):
        assert curve(runs / "whole", tag) == curve(runs / "killed", tag)
    assert [step for step, _ in curve(runs / "killed", "train/loss")] == [3, 6, 9, 12]


def test_resumed_run_writes_equal_snapshots(runs):
    whole, killed = (
        {path.name: path.read_bytes() for path in (runs / name / "averages").glob("step=*")}
        for name in ("whole", "killed")
    )
    assert sorted(whole) == [f"step={step:07d}.safetensors" for step in range(2, 13, 2)]
    assert whole == killed
