"""Measure training, sampling and encoding on one GPU within a time limit, the most important numbers first.

    git clone https://github.com/Vchitect/Latte official
    python benchmarks/gpu.py --official official --output results --minutes 4 --hardware "1 x H100 SXM"

All inputs are random latents of 16 x 32 x 32 or random pixels of 256 x 256, so neither data nor weights are needed. The
results are written to OUTPUT/gpu.json and OUTPUT/gpu.md after each measurement, so a job that is stopped keeps what it
has measured. `--device cpu --tiny` runs every part in a small size, to try the script on a machine without a GPU.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attention
import note
import sampling
import torch
import train_step
from lightning import Callback, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from latte_pl.autoencoders import KLAutoencoder, PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion, Guidance
from latte_pl.interop import load_official
from latte_pl.nn import Latte
from latte_pl.nn.latte import SIZES
from latte_pl.profiling.cost import count_cost
from latte_pl.training import LatteModule

FRAMES = 16
BATCHES = {"S": 32, "B": 16, "L": 8, "XL": 5}
"""Clips per step; the official configurations have 5 clips of XL per GPU."""
VARIANTS = ("compiled bf16", "bf16", "official bf16", "official")
TINY_VARIANTS = ("compiled", "eager", "official")  # many CPUs have no bf16
LABELS = {**train_step.VARIANTS, "official": "official code, float32 (TF32), as it trains by default"}
KINDS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matmul": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "optimizer and EMA": ("multi_tensor", "adam", "lerp", "foreach"),
    "Inductor": ("triton",),
}
"""Groups of CUDA kernels by parts of their names; the first group that matches counts, others are "elementwise"."""


class Report:
    """Rows of results by section, which are written to a folder after each row."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start = args, time.monotonic()
        self.sections: dict[str, list[dict[str, Any]]] = {}

    @property
    def time_left(self) -> float:
        """Seconds until the time limit."""
        return self.args.minutes * 60.0 - (time.monotonic() - self.start)

    def add(self, section: str, **row: Any) -> None:
        """Add a row and write all results."""
        self.sections.setdefault(section, []).append(row)
        print(f"[{time.monotonic() - self.start:.0f} s] {section}: {row}", file=sys.stderr, flush=True)
        self.args.output.mkdir(parents=True, exist_ok=True)
        found = {"environment": note.environment(self.args), "command": self.command(), "sections": self.sections}
        (self.args.output / "gpu.json").write_text(json.dumps(found, indent=1))
        (self.args.output / "gpu.md").write_text("\n".join(self.lines()) + "\n")

    def command(self) -> str:
        """Return the command of this run."""
        a = self.args
        return f"python benchmarks/gpu.py --official PATH --output PATH --minutes {a.minutes:g} --device {a.device}" + (
            " --tiny" * a.tiny
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the note."""
        yield from ("# One GPU", "", note.environment(self.args), f"Command: `{self.command()}`.")
        for title, rows in self.sections.items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            yield from ("", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
            yield from (f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |" for row in rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def memory(args: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """Free what earlier measurements hold. Yield a function that returns the peak memory since then, in GiB."""
    gc.collect()
    torch._dynamo.reset()  # sizes that share compiled code would be compiled for dynamic shapes
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0


@cache
def official_model(size: str, path: Path, side: int) -> nn.Module:
    """Build the official model on the CPU."""
    return train_step.build_official(SimpleNamespace(official=path, size=size, side=side))


def step_seconds(step: Callable[[], Any], args: argparse.Namespace, repeats: int) -> float:
    """Return the median seconds of a call, after two calls to compile and warm up."""
    step(), step()
    return statistics.median(note.seconds(step, args.device) for _ in range(repeats))


def describe_kernels(step: Callable[[], Any], args: argparse.Namespace, num_steps: int = 2) -> tuple[dict, list[dict]]:
    """Profile some calls of a step.

    Returns:
        Share of the device's time of each group of kernels, and of temporal and spatial attention; and the most
        expensive kernels.
    """
    cuda = args.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * cuda)], record_shapes=True) as profiler:
        for _ in range(num_steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    events = [e for e in profiler.key_averages() if not e.is_user_annotation]  # annotations contain kernels
    kernels = [e for e in events if e.device_type == on_device and _own(e, cuda) > 0]
    total = sum(_own(e, cuda) for e in kernels) or 1.0
    shares = dict.fromkeys((*KINDS, "elementwise"), 0.0)
    for event in kernels:
        name = event.key.lower()
        kind = next((k for k, parts in KINDS.items() if any(part in name for part in parts)), "elementwise")
        shares[kind] += _own(event, cuda) / total
    calls = dict.fromkeys(("temporal attention", "spatial attention"), 0.0)
    used = set()
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key.startswith("aten::_scaled_dot_product"):
            shapes = [shape for shape in event.input_shapes if len(shape) == 4]
            kind = "temporal attention" if shapes and shapes[0][2] == FRAMES else "spatial attention"
            calls[kind] += (event.device_time_total if cuda else event.cpu_time_total) / total
            used.add(f"{kind.split()[0]}: {event.key.removeprefix('aten::_scaled_dot_product_')}")
    kernels.sort(key=lambda event: -_own(event, cuda))
    rows = [
        {"kernel": e.key[:110].replace("|", "/"), "share": _own(e, cuda) / total, "calls": e.count // num_steps}
        for e in kernels[:12]
    ]
    busy = {"busy ms": total / num_steps / 1e3}
    return {**busy, **calls, **shares, "attention kernels": "; ".join(sorted(used))}, rows


def _own(event: Any, cuda: bool) -> float:
    return event.self_device_time_total if cuda else event.self_cpu_time_total


def measure_steps(size: str, report: Report, variants: tuple[str, ...], kernels: bool) -> None:
    """Measure training steps on latents: clips per second, MFU, memory, and where the time goes."""
    args = report.args
    batch_size = args.batch or (2 if args.tiny else BATCHES[size])
    options = SimpleNamespace(official=args.official, device=args.device)
    with torch.device("meta"):
        net = Latte(size=size, conditioning="class", num_classes=train_step.NUM_CLASSES, input_size=args.side)
    flops = 3 * batch_size * count_cost(net).forward_flops
    batch = train_step.draw_batch(batch_size, args.side, args.device)
    first = None
    for variant in variants:
        if report.time_left <= 0:
            return
        with memory(args) as peak_memory:
            try:
                step = train_step.build_step(variant, options, batch, official_model(size, args.official, args.side))
                start = time.monotonic()
                loss = float(step())  # also compiles
                compile_seconds = time.monotonic() - start
                seconds = step_seconds(step, args, args.repeats)
            except torch.OutOfMemoryError:
                report.add("Training steps", model=f"{size}/2", step=LABELS[variant], clips=batch_size, ms="no memory")
                continue
            first = loss if first is None else first
            report.add(
                "Training steps",
                model=f"{size}/2",
                step=LABELS[variant],
                clips=batch_size,
                ms=1e3 * seconds,
                **{
                    "clips/s": batch_size / seconds,
                    "MFU": flops / seconds / (args.peak * 1e12),
                    "peak GiB": peak_memory(),
                    "first step s": compile_seconds,
                    "loss against first row": loss / first,
                },
            )
            if kernels:
                shares, rows = describe_kernels(step, args)
                report.add("Where the time of a step goes", model=f"{size}/2", step=LABELS[variant], **shares)
                for row in rows:
                    report.add(f"Kernels of {size}/2, {LABELS[variant]}", **row)
            del step


class RandomMoments(Dataset[dict[str, Any]]):
    """Cached moments of random clips, as a latent cache gives them."""

    def __init__(self, num_clips: int, side: int) -> None:
        self.num_clips = num_clips
        self.moments = torch.randn(16, FRAMES, 8, side, side).half()

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a clip."""
        return {"moments": self.moments[index % 16], "label": index % 101, "clip": index}


class StepTimes(Callback):
    """Time the steps of a trainer, after some steps that warm up, and count where the process waits for the GPU."""

    def __init__(self, warmup: int, device: str) -> None:
        self.warmup, self.device, self.start, self.steps, self.waits = warmup, device, 0.0, 0, 0
        self._caught: Any = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock after the warm-up, then count waits in the second half."""
        if trainer.global_step == self.warmup:
            self.start = note.clock(self.device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count a step."""
        if trainer.global_step > self.warmup:
            self.steps += 1

    def on_train_end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds = (note.clock(self.device) - self.start) / max(self.steps, 1)


def measure_trainer(size: str, report: Report) -> None:
    """Measure a Lightning training from cached latents, and the places where it waits for the GPU."""
    args = report.args
    batch_size = args.batch or (2 if args.tiny else BATCHES[size])
    for compiled in (True, False):
        if report.time_left <= 0:
            return
        with memory(args) as peak_memory:
            with torch.device(args.device):
                net = Latte(size=size, conditioning="class", num_classes=101, input_size=args.side, in_channels=4)
            latents = PixelAutoencoder()
            latents.channels = 4  # latents are cached, so it is never called
            module = LatteModule(net, GaussianDiffusion(), latents, compile=compiled)
            warmup, steps = (1, 3) if args.tiny else (6, 26)
            times = StepTimes(warmup, args.device)
            trainer = Trainer(
                accelerator="gpu" if args.device == "cuda" else "cpu",
                devices=1,
                precision="32-true" if args.tiny else "bf16-mixed",
                max_steps=steps,
                gradient_clip_val=0.1,
                callbacks=[times],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                default_root_dir=tempfile.gettempdir(),
                log_every_n_steps=50,
            )
            loader = DataLoader(
                RandomMoments(batch_size * steps, args.side),
                batch_size,
                num_workers=0 if args.tiny else 4,
                pin_memory=args.device == "cuda",
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if args.device == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
                trainer.fit(module, loader)
                if args.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            waits = [w for w in caught if "synchronizing" in str(w.message)]
            places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})
            report.add(
                "Trainer, from cached latents",
                model=f"{size}/2",
                step="compiled, bf16" if compiled else "eager, bf16",
                ms=1e3 * times.seconds,
                **{
                    "clips/s": batch_size / times.seconds,
                    "MFU": 3 * batch_size * count_cost(net).forward_flops / times.seconds / (args.peak * 1e12),
                    "peak GiB": peak_memory(),
                    "waits per step": len(waits) / steps,
                    "places": " ".join(places[:8]),
                },
            )
            del net, module, trainer


def measure_sampling(size: str, report: Report) -> None:
    """Measure guided sampling with 20 steps of DPM-Solver++, and the official loop with 250 steps."""
    args = report.args
    steps, clips = (2, 1) if args.tiny else (20, 4)
    noise = torch.randn(clips, FRAMES, 4, args.side, args.side, device=args.device)
    label = torch.arange(clips, device=args.device)
    with memory(args) as peak_memory:
        theirs = copy.deepcopy(official_model(size, args.official, args.side)).to(args.device).eval()
        with torch.device(args.device):
            net = load_official(theirs.state_dict()).eval()
        loops: dict[str, Callable[[], Any]] = {}

        def ours() -> None:
            with torch.autocast(args.device, torch.bfloat16, enabled=not args.tiny):
                GaussianDiffusion().sample(Guidance(net, label, 4.0), noise, sampler="dpm++", steps=steps)

        loops[f"{steps} DPM-Solver++ steps, eager, bf16"] = ours
        loops[f"{steps} DPM-Solver++ steps, compiled, bf16"] = ours
        settings = SimpleNamespace(official=args.official, device=args.device, official_steps=2 if args.tiny else 5)
        for name, loop in loops.items():
            if report.time_left <= 0:
                return
            if "compiled" in name:
                net.compile_blocks()
            seconds = step_seconds(loop, args, 2)
            report.add(
                "Guided sampling",
                model=f"{size}/2",
                loop=name,
                clips=clips,
                **{"s/clip": seconds / clips, "peak GiB": peak_memory()},
            )
        loop = sampling.official_loop(theirs, noise, label, settings)
        loop()
        name = f"official, {sampling.FULL_STEPS} DDPM steps, float32 (TF32)"
        report.add("Guided sampling", model=f"{size}/2", loop=name, clips=clips, **{"s/clip": loop() / clips})


def measure_autoencoder(report: Report) -> None:
    """Measure an autoencoder with the architecture of Stable Diffusion's and random weights."""
    from diffusers import AutoencoderKL

    args = report.args
    width = 16 if args.tiny else 128
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=256,
    )
    side, clips = (64, 1) if args.tiny else (256, 4)
    with tempfile.TemporaryDirectory() as folder:
        vae.save_pretrained(folder)
        autoencoder = KLAutoencoder(folder).to(args.device)
    video = torch.randint(0, 256, (clips, FRAMES, 3, side, side), dtype=torch.uint8, device=args.device)
    latents = autoencoder.encode(video)
    for dtype in (torch.float32, *([torch.bfloat16] * (not args.tiny))):
        for name, call in (
            ("encode", lambda: autoencoder.moments(video)),
            ("decode", lambda: autoencoder.decode(latents)),
        ):
            if report.time_left <= 0:
                return
            autoencoder.vae.to(dtype)
            with memory(args) as peak_memory:
                seconds = step_seconds(call, args, 1 if args.tiny else 3)
                report.add(
                    "Autoencoder, 16 frames of 256 x 256 pixels",
                    pass_=name,
                    dtype="float32 (TF32)" if dtype == torch.float32 else "bfloat16",
                    **{"clips/s": clips / seconds, "peak GiB": peak_memory()},
                )


def measure_attention(size: str, report: Report) -> None:
    """Measure one layer's attention by kernel and layout."""
    args = report.args
    width, _, heads = SIZES[size]
    shape = (2 if args.tiny else BATCHES[size], FRAMES, (args.side // 2) ** 2, heads, width // heads)
    dtype = torch.float32 if args.tiny else torch.bfloat16
    for layer, kernel, seconds in attention.measure(shape, dtype, args.device, 1):
        report.add(f"Attention of a layer of {size}/2, bf16", layer=layer, kernel=kernel, ms=1e3 * seconds)


def measure_ceilings(report: Report) -> None:
    """Measure what the device reaches at most: a matrix product and a copy."""
    args = report.args
    side = 512 if args.tiny else 8192
    dtype = torch.float32 if args.tiny else torch.bfloat16
    rate = train_step.matmul_rate(dtype, args.device, side)
    a = torch.empty(2**22 if args.tiny else 2**30, dtype=torch.uint8, device=args.device)
    b = torch.empty_like(a)
    b.copy_(a)
    seconds = min(note.seconds(lambda: b.copy_(a), args.device) for _ in range(5))
    row = {f"matmul of {side}, TFLOP/s": rate / 1e12, "copy, TB/s": 2 * a.numel() / seconds / 1e12}
    report.add("Ceilings", type=str(dtype).split(".")[1], **row)


def main() -> None:
    """Measure what the time limit allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=4.0, help="no measurement starts after so many minutes")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s of the device, for the MFU")
    parser.add_argument("--batch", type=int, help="clips per step; the default depends on the size of the model")
    parser.add_argument("--repeats", type=int, default=8, help="steps that are timed")
    parser.add_argument("--parts", nargs="+", help="parts to measure, in this order; the default is all")
    parser.add_argument("--tiny", action="store_true", help="run every part in a small size")
    note.add_arguments(parser, device=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.side = 12 if args.tiny else 32
    args.repeats = 1 if args.tiny else args.repeats
    torch.set_float32_matmul_precision("high")  # TF32, as in the official training script
    torch.backends.cudnn.allow_tf32 = True
    report = Report(args)
    if args.tiny:
        size, sizes, variants = "S", (), TINY_VARIANTS
    else:
        size, sizes, variants = "XL", ("S", "B", "L"), VARIANTS
    parts: dict[str, Callable[[], None]] = {
        "ceilings": lambda: measure_ceilings(report),
        "steps": lambda: measure_steps(size, report, variants, True),
        "trainer": lambda: measure_trainer(size, report),
        "attention": lambda: measure_attention(size, report),
        "sampling": lambda: measure_sampling(size, report),
        "autoencoder": lambda: measure_autoencoder(report),
        **{f"steps {other}": partial(measure_steps, other, report, variants[:-1], False) for other in sizes},
    }
    for name in args.parts or parts:
        if report.time_left <= 0:
            report.add("Left out", part=name, reason="time limit")
            continue
        try:
            parts[name]()
        except Exception as error:  # the parts that follow are independent
            traceback.print_exc()
            report.add("Failed", part=name, error=f"{type(error).__name__}: {error}"[:200])
    print((args.output / "gpu.md").read_text())


if __name__ == "__main__":
    main()
