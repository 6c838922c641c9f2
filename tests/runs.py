"""A run that is small enough for a test: a model of two blocks on videos of 16 x 24 pixels, without an autoencoder."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fake_videos import write_xvid
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latte_pl import cli

CONFIG = """
data:
  class_path: latte_pl.toy.Shapes
  init_args: {size: [16, 24], num_frames: 4, interval: 3, global_batch_size: 4, val_clips: 6, num_workers: 0}
model:
  net:
    class_path: latte_pl.nn.Latte
    init_args: {hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4, conditioning: class}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  autoencoder: {class_path: latte_pl.autoencoders.PixelAutoencoder}
  sampling: {sampler: ddim, steps: 2, guidance: 2.0}
  lr: 1.0e-2
  ema_decay: 0.9
trainer: {max_steps: 12, val_check_interval: 5, log_every_n_steps: 3, accelerator: cpu, devices: 1,
          gradient_clip_val: 1.0, enable_progress_bar: false}
samples: {every_n_steps: 6, num_samples: 3}
checkpoints: {every_n_steps: 4, keep: 9}
"""


def write_config(folder: Path) -> str:
    """Write the configuration and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


ENCODE_CONFIG = """
data: {class_path: latte_pl.data.Folder, init_args: {root: videos, size: [16, 24], num_frames: 4, interval: 1}}
model:
  net: {class_path: latte_pl.nn.Latte, init_args: {hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4}}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  autoencoder: {class_path: latte_pl.autoencoders.PixelAutoencoder}
"""


def write_videos(folder: Path, count: int = 5) -> list[str]:
    """Write videos of 12 frames and a configuration, and return the command that encodes them in shards of two."""
    for number in range(count):
        write_xvid(folder / f"videos/{number}.avi", 12)
    (folder / "encode.yaml").write_text(ENCODE_CONFIG)
    return ["encode", "-c", "encode.yaml", "--shard_frames=24", "--device=cpu"]


class KillAfter(Callback):
    """Kill the process with SIGKILL after some batches of training or testing, counted from its start."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_test_batch_end = on_train_batch_end


PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes as forks of one that has imported Lightning already, which takes seconds."""
PROCESSES.set_forkserver_preload(["latte_pl.cli.fit", "latte_pl.cli.test"])


def _latte(args: list[str], cwd: Path, log: Path, environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    cli.main(args)


def _exit_codes(args: list[str], cwd: Path, environments: list[dict[str, str]]) -> tuple[list[int | None], str]:
    """Run `latte` in one process for each environment, and return their exit codes and what they printed."""
    logs = [cwd / f"rank{rank}.log" for rank in range(len(environments))]
    processes = [
        PROCESSES.Process(target=_latte, args=(args, cwd, log, environment))
        for log, environment in zip(logs, environments)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
    for process in processes:
        process.kill()  # only processes that hang are still alive
        process.join()
    return [process.exitcode for process in processes], "".join(log.read_text() for log in logs)


def run_killed(args: list[str], cwd: Path, batches: int) -> None:
    """Run `latte` in a process that is killed after some batches."""
    kill = f'[{{"class_path": "runs.KillAfter", "init_args": {{"batches": {batches}}}}}]'
    codes, output = _exit_codes([*args, f"--trainer.callbacks={kill}"], cwd, [{}])
    assert codes == [-signal.SIGKILL], output


def run_distributed(
    args: list[str], cwd: Path, world_size: int = 2, expected: list[int] | None = None, accelerator: str = "cpu"
) -> str:
    """Run `latte` in several processes as torchrun starts them, check their exit codes, and return their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size), "NODE_RANK": "0"}
    devices = [f"--trainer.devices={world_size}", f"--trainer.accelerator={accelerator}"]
    codes, output = _exit_codes(
        [*args, *devices], cwd, [shared | {"LOCAL_RANK": str(rank)} for rank in range(world_size)]
    )
    assert codes == (expected or [0] * world_size), output
    return output


def run_command(command: list[str], cwd: Path, environment: dict[str, str], timeout: float = 240) -> tuple[int, str]:
    """Run a command with its child processes, and return its exit status and what they printed.

    Raises:
        AssertionError: It takes longer than ``timeout`` seconds; the message has the end of what they printed.
    """
    with (cwd / "command.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.seek(0)
            raise AssertionError(f"{command} runs after {timeout} s: {log.read()[-4000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # child processes that hang
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read()


def final(folder: Path, step: int = 12) -> dict[str, Any]:
    """Read a checkpoint of a run."""
    return torch.load(folder / "checkpoints" / f"step={step:07d}.ckpt", weights_only=True)


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read a curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Yield the names of the entries of two checkpoints that are not equal in every bit."""
    if isinstance(left, dict):
        if left.keys() != right.keys():
            yield f"{path}: keys"
        for name in left.keys() & right.keys():
            yield from differences(left[name], right[name], f"{path}.{name}")
    elif isinstance(left, list | tuple):
        for n, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(a, b, f"{path}.{n}")
    elif isinstance(left, torch.Tensor):
        if not torch.equal(left, right):
            yield path
    elif left != right:
        yield path
