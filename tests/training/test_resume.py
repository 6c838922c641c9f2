import signal
import time

import torch
from runs import curve, final, finish, start, write_config


def same(left, right, path=""):
    """Yield the names of entries that differ by a single bit."""
    if isinstance(left, dict):
        if left.keys() != right.keys():
            yield f"{path}: keys"
        for name in left.keys() & right.keys():
            yield from same(left[name], right[name], f"{path}.{name}")
    elif isinstance(left, list | tuple):
        for n, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from same(a, b, f"{path}.{n}")
    elif isinstance(left, torch.Tensor):
        if not torch.equal(left, right):
            yield path
    elif left != right:
        yield path


def test_a_run_killed_twice_ends_as_one_that_was_never_killed(tmp_path):
    args = ["fit", "-c", write_config(tmp_path), "--trainer.accumulate_grad_batches=2"]
    whole = start([*args, "--name", "whole"], tmp_path)
    for checkpoint in (4, 8):
        process = start([*args, "--name", "killed"], tmp_path)
        path = tmp_path / "runs/killed/checkpoints" / f"step={checkpoint:07d}.ckpt"
        deadline = time.monotonic() + 200
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert path.exists()
    (tmp_path / "runs/killed/checkpoints/step=0000011.part").write_bytes(b"half a checkpoint")
    finish(start([*args, "--name", "killed"], tmp_path))
    finish(whole)
    left, right = (final(tmp_path / "runs" / name) for name in ("whole", "killed"))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    assert list(same({p: left[p] for p in parts}, {p: right[p] for p in parts})) == []
    assert any(name.startswith("ema.") for name in left["state_dict"])
    for tag in ("train/loss", "train/mse", "val/loss", "train/clips_seen"):
        assert curve(tmp_path / "runs/whole", tag) == curve(tmp_path / "runs/killed", tag)
    assert [step for step, _ in curve(tmp_path / "runs/killed", "train/loss")] == [3, 6, 9, 12]
