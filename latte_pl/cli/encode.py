"""Encode a data set into a latent cache."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from latte_pl.autoencoders import Autoencoder, TextEncoder
from latte_pl.cli.config import ParsedCLI
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.encoding import SHARD_FRAMES, encode, size_on_disk, written_frames
from latte_pl.data.latents import MANIFEST, Manifest
from latte_pl.profiling.advice import advised
from latte_pl.training.components import instantiate

PAUSE = 2.0  # seconds between two looks at the progress of other processes
GRACE = 30.0  # seconds that a result may appear after its job has left SLURM's queue


@dataclass
class SlurmArray:
    """A SLURM job array that encodes.

    Args:
        jobs: Number of jobs, each with ``--devices`` devices; 0 encodes on this machine.
        partition: Partition; None uses the cluster's default.
        cpus: CPUs of a device.
        mem_gb: Memory of a job in GB; None uses the cluster's default.
        timeout_min: Time limit of a job in minutes. The same command resumes.
    """

    jobs: int = 0
    partition: str | None = None
    cpus: int = 4
    mem_gb: float | None = None
    timeout_min: int = 24 * 60


class EncodeCLI(ParsedCLI):
    """The arguments of `latte encode`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the folder of the cache and the devices."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str, required=True, help="Folder of the cache; an unfinished cache is resumed."
        )
        parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ... or auto.")
        parser.add_argument(
            "--devices", type=int, default=1, help="Processes of a machine: one for each GPU, or that many on the CPU."
        )
        parser.add_argument(
            "--share",
            type=tuple[int, int],
            default=(0, 1),
            help="Index and number of the processes that share a cache.",
        )
        parser.add_argument(
            "--shard_frames",
            type=int,
            default=SHARD_FRAMES,
            help="Frames of a shard of a new cache: what one process writes at a time and loses when it is killed.",
        )
        parser.add_class_arguments(SlurmArray, "slurm")


def main(args: Sequence[str]) -> None:
    """Run `latte encode`."""
    cli = EncodeCLI("encode", args, "Encode a data set into a latent cache; uses data, autoencoder and text encoder.")
    config, output = cli.config, Path(cli.config.output)
    index, count = config.share
    if not 0 <= index < count:
        raise ValueError(f"share is [{index}, {count}]; the index must lie in 0..{count - 1}")
    for name, value, least in (
        ("devices", config.devices, 1),
        ("shard_frames", config.shard_frames, 1),
        ("slurm.jobs", config.slurm.jobs, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    data: Any = instantiate(VideoDataModule, config.data.as_dict())
    latents = getattr(data, "latents", None)
    if latents is not None:
        raise ValueError(f"data.latents is {latents}; remove it to encode the videos")
    if data.captions and config.model.text_encoder is None:
        raise ValueError("data.captions is true; set model.text_encoder to encode captions, or data.captions to false")
    if config.slurm.jobs:
        _follow(output, SlurmJobs(args, config, output))
    elif config.devices > 1:
        names = _devices(config.device, config.devices)
        data.open("all", num_frames=1, interval=1)  # one process indexes the files
        _follow(output, Processes(args, output, names, index * len(names), count * len(names)))
    else:
        _encode(config, data, output)
    manifest = Manifest.read(output)
    frames = sum(video.num_frames for video in manifest.videos)
    views = 2 if manifest.settings["flipped"] else 1
    print(
        f"{output}: {len(manifest.videos):,} videos, {frames:,} frames, {views} views, "
        f"{size_on_disk(output) / 1e9:.2f} GB"
    )
    print(
        f"train with --data.latents {output}"
        if manifest.checksums
        else "other processes are still encoding; the last one completes the cache"
    )


def _encode(config: Any, data: Any, output: Path) -> None:
    """Encode in this process."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    autoencoder = instantiate(Autoencoder, config.model.autoencoder.as_dict())
    text_encoder = instantiate(TextEncoder, config.model.text_encoder.as_dict()) if data.captions else None
    try:
        device = torch.device(name)
        autoencoder.to(device)
        if text_encoder is not None:
            text_encoder.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} cannot be used ({str(error).splitlines()[0]})") from error
    dataset = data.open("all", num_frames=1, interval=1)
    less = f"out of memory on {name}; lower model.autoencoder.init_args.slice_frames (8 takes half of the default 16)"
    with advised(lambda _: less):
        encode(
            dataset,
            autoencoder,
            output,
            data.settings,
            data.flip,
            device,
            shard_frames=config.shard_frames,
            text=text_encoder,
            share=tuple(config.share),
        )


def _devices(name: str, number: int) -> list[str]:
    """Return the devices of the processes of a machine.

    Raises:
        ValueError: The machine has fewer GPUs.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return ["cpu"] * number
    if name not in ("auto", "cuda"):
        raise ValueError(f"device is {name} and devices is {number}; use --device cuda or cpu for several processes")
    if (found := torch.cuda.device_count()) < number:
        raise ValueError(f"devices is {number}, but this machine has {found} GPUs")
    return [f"cuda:{n}" for n in range(number)]


def _follow(output: Path, work: "Processes | SlurmJobs") -> None:
    """Show frames, frames a second and the time left until processes have ended."""
    manifest = None
    try:
        with tqdm(desc="encoding", unit="frame") as bar:
            ended = False
            while not ended:
                ended = work.ended(output)
                if manifest is None and (output / MANIFEST).is_file():
                    manifest = Manifest.read(output)
                    bar.total = sum(video.num_frames for video in manifest.videos)
                    bar.initial = bar.n = written_frames(output, manifest)
                if manifest is not None:
                    bar.n = written_frames(output, manifest)
                bar.refresh()
                time.sleep(0.0 if ended else PAUSE)
    except BaseException:
        work.stop()
        raise


class Processes:
    """Processes of this machine that encode, one for each device.

    Args:
        args: Arguments of `latte encode`.
        output: Folder of the cache.
        devices: Device of each process.
        first: Index of the first process among all that share the cache.
        count: Number of all processes that share the cache.
    """

    def __init__(self, args: Sequence[str], output: Path, devices: Sequence[str], first: int, count: int) -> None:
        output.mkdir(parents=True, exist_ok=True)
        threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "TQDM_DISABLE": "1"}
        self._logs = [output / f"encode-{first + n}.log" for n in range(len(devices))]
        self._processes = []
        for n, device in enumerate(devices):
            own = [f"--device={device}", "--devices=1", "--slurm.jobs=0", f"--share=[{first + n}, {count}]"]
            command = [sys.executable, "-m", "latte_pl", "encode", *args, *own]
            with self._logs[n].open("w") as log:
                self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def ended(self, output: Path) -> bool:
        """Return whether all have ended.

        Raises:
            ValueError: All have ended, but some failed.
        """
        if any(process.poll() is None for process in self._processes):
            return False
        failed = [log for process, log in zip(self._processes, self._logs) if process.returncode]
        if failed:
            lines = failed[0].read_text(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), "killed")
            raise ValueError(
                f"{len(failed)} of {len(self._processes)} processes failed ({failed[0]}: {reason}); the same command "
                "resumes"
            )
        return True

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


class SlurmJobs:
    """A SLURM job array that encodes; jobs that are preempted or reach their time limit are queued again.

    Args:
        args: Arguments of `latte encode`.
        config: The configuration.
        output: Folder of the cache, which all nodes see.
    """

    def __init__(self, args: Sequence[str], config: Any, output: Path) -> None:
        import submitit

        slurm = config.slurm
        executor = submitit.AutoExecutor(folder=output / "jobs", cluster="slurm")
        executor.update_parameters(
            name="latte-encode",
            timeout_min=slurm.timeout_min,
            cpus_per_task=slurm.cpus * config.devices,
            gpus_per_node=0 if config.device == "cpu" else config.devices,
            slurm_use_srun=False,
            **({"slurm_partition": slurm.partition} if slurm.partition else {}),
            **({"mem_gb": slurm.mem_gb} if slurm.mem_gb else {}),
        )
        with executor.batch():
            self._jobs = [executor.submit(EncodeJob(tuple(args), n, slurm.jobs)) for n in range(slurm.jobs)]
        self._array = str(self._jobs[0].job_id).partition("_")[0]
        self._seen = time.monotonic()  # when SLURM last had a job of the array
        print(f"SLURM job array {self._array} of {slurm.jobs} jobs; their logs are in {output / 'jobs'}")

    def ended(self, output: Path) -> bool:
        """Return whether the cache is complete.

        Raises:
            ValueError: All jobs have ended, but the cache is not complete.
        """
        if (output / MANIFEST).is_file() and Manifest.read(output).checksums:
            return True
        command = ["squeue", "--noheader", f"--jobs={self._array}", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.stdout.strip() or (done.returncode and "Invalid job id" not in done.stderr):  # SLURM may not answer
            self._seen = time.monotonic()
        failed = [job for job in self._jobs if job.paths.result_pickle.exists() and job.exception() is not None]
        if failed or time.monotonic() - self._seen > GRACE:
            reason = str(failed[0].exception()).strip().splitlines()[-1] if failed else "they ended without a result"
            raise ValueError(
                f"the SLURM job array {self._array} did not complete the cache ({reason}); their logs are in "
                f"{output / 'jobs'}; the same command resumes"
            )
        return False

    def stop(self) -> None:
        """Say that the jobs keep running."""
        print(f"SLURM job array {self._array} keeps running; scancel {self._array} cancels it")


@dataclass(frozen=True)
class EncodeJob:
    """A job of the array, which submitit calls on its node.

    Args:
        args: Arguments of `latte encode`.
        index: Index of the job.
        count: Number of jobs.
    """

    args: tuple[str, ...]
    index: int
    count: int

    def __call__(self) -> None:
        """Encode this job's share.

        Raises:
            RuntimeError: The command failed.
        """
        own = ["--slurm.jobs=0", f"--share=[{self.index}, {self.count}]"]
        command = [sys.executable, "-m", "latte_pl", "encode", *self.args, *own]
        status = subprocess.run(command, env={**os.environ, "TQDM_DISABLE": "1"}).returncode
        if status:
            raise RuntimeError(f"latte encode ended with status {status}")

    def checkpoint(self) -> Any:
        """Submit the same job again: finished shards are kept."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
