"""A run small enough for a test: 16 x 24 pixels straight into a two-block model."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = """
data:
  class_path: latte_pl.data.Shapes
  init_args: {size: [16, 24], num_frames: 4, interval: 3, global_batch_size: 4, val_clips: 6, num_workers: 0}
model:
  net:
    class_path: latte_pl.nn.Latte
    init_args:
      {hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4, input_size: [16, 24], in_channels: 3, num_frames: 4,
       conditioning: class, num_classes: 8}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  codec: {class_path: latte_pl.codecs.PixelCodec}
  sampling: {sampler: ddim, steps: 2, guidance: 2.0}
  lr: 1.0e-2
  ema_decay: 0.9
trainer: {max_steps: 12, val_check_interval: 5, accelerator: cpu, devices: 1, gradient_clip_val: 1.0,
          enable_progress_bar: false}
curves: {every_n_steps: 3}
samples: {every_n_steps: 6, num_samples: 3}
checkpoints: {every_n_steps: 4, keep: 9}
"""


def write_config(folder: Path) -> str:
    """Write the configuration and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


def start(args: list[str], cwd: Path) -> subprocess.Popen:
    """Start `latte` in a process of its own, with its output kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    return subprocess.Popen(
        [sys.executable, "-m", "latte_pl", *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a process that has to succeed, and return what it printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def final(folder: Path, step: int = 12) -> dict:
    """Read a checkpoint of a run."""
    return torch.load(folder / "checkpoints" / f"step={step:07d}.ckpt", weights_only=True)


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read a curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]
