"""A signal stops a training at a step, with a checkpoint from which it resumes bit-exactly."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Callback, Trainer
from runs import curve, differences, final, run_command, run_distributed, write_config

from latte_pl import cli
from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.data.workers import ignore_signals
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling
from latte_pl.training.preemption import SIGNALS, StopOnSignal

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
STEPS = 7
SHORT = [
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=1",
    "--samples.every_n_steps=100",
    "--checkpoints.every_n_steps=100",
]
SLURM = {
    **dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_ID"), "1"),
    **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"),
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
}


class Send(Callback):
    """Send signals to processes of a training when a hook is called.

    Args:
        signals: Names of the signals.
        hook: Name of the hook.
        count: Call of the hook that sends, from 1.
        ranks: Ranks of the processes that get the signals.
        workers: Whether the loader processes get them first, from another process.
    """

    def __init__(self, signals=("SIGTERM",), hook="on_train_batch_end", count=4, ranks=(0,), workers=False):
        self.signals, self.left, self.ranks, self.workers = signals, count, ranks, workers
        setattr(self, hook, self.send)

    def send(self, trainer, *_, **__):
        self.left -= 1
        if self.left != 0 or trainer.global_rank not in self.ranks:
            return
        for name in self.signals:
            if self.workers:
                subprocess.run(
                    ["kill", f"-{name[3:]}", *(str(child.pid) for child in multiprocessing.active_children())],
                    check=True,
                )
            os.kill(os.getpid(), getattr(signal, name))


def sending(**options):
    """Return the argument that adds `Send` to a run."""
    text = ", ".join(f"{name}: {value}" for name, value in options.items())
    return f"--trainer.callbacks=[{{class_path: test_preemption.Send, init_args: {{{text}}}}}]"


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def stop(args):
    """Run `latte` in this process, which a signal stops, and check its status and the signal handlers."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 75
    assert [signal.getsignal(number) for number in SIGNALS] == before


def check_equal(whole, resumed):
    left, right = final(whole, STEPS), final(resumed, STEPS)
    assert list(differences({part: left[part] for part in STATE}, {part: right[part] for part in STATE})) == []
    for tag in ("train/loss", "val/loss"):
        assert curve(whole, tag) == curve(resumed, tag)
    assert [step for step, _ in curve(resumed, "train/loss")] == list(range(1, STEPS + 1))
    assert [step for step, _ in curve(resumed, "val/loss")] == [3, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run that was never interrupted, "whole"."""
    folder = tmp_path_factory.mktemp("preemption")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), *SHORT, "--name=whole"])
    return folder


@pytest.fixture
def run(folder, monkeypatch, request):
    """Arguments of a run of its own, and its folder."""
    monkeypatch.chdir(folder)
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    return ["fit", "-c", "tiny.yaml", *SHORT, f"--name={name}"], folder / "runs" / name


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"signals": "[SIGTERM]"}, 4),
        ({"signals": "[SIGUSR1]"}, 4),
        ({"signals": "[SIGINT]"}, 4),
        ({"count": 3}, 3),  # validation is due at this step
        ({"hook": "on_before_optimizer_step"}, 4),
        ({"hook": "on_validation_start", "count": 1}, 4),
        ({"hook": "on_save_checkpoint", "count": 1}, 5),
        ({"hook": "on_fit_start", "count": 1}, 0),
    ],
)
def test_signal_stops_with_a_checkpoint_that_resumes_bit_exactly(folder, run, capsys, options, step):
    args, own = run
    every = ["--checkpoints.every_n_steps=4"] if options.get("hook") == "on_save_checkpoint" else []
    stop([*args, *every, sending(**options)])
    assert saved(own)[-1:] == ([f"step={step:07d}.ckpt"] if step else [])
    assert f"stopped by {options.get('signals', '[SIGTERM]')[1:-1]} at step {step}; the same" in capsys.readouterr().out
    cli.main(args)
    check_equal(folder / "runs/whole", own)
    assert not list(own.glob("hpc_ckpt*"))


def test_signal_stops_between_accumulated_steps(folder, run):
    args, own = run
    args += ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]
    stop([*args, sending(count=7)])  # the first of the two batches of step 4
    assert saved(own) == ["step=0000004.ckpt"]
    cli.main(args)
    whole = [*args, "--name=accumulated"]
    cli.main(whole)
    check_equal(folder / "runs/accumulated", own)


def test_signals_to_loader_processes_do_not_end_them(folder, run):
    args, own = run
    args += ["--data.init_args.num_workers=2"]
    stop([*args, sending(signals="[SIGTERM, SIGINT, SIGUSR1]", workers="true")])
    cli.main(args)
    check_equal(folder / "runs/whole", own)


def test_training_process_ends_loader_processes():
    process = multiprocessing.get_context("fork").Process(target=_ignore_and_wait)
    process.start()
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode in (0, -signal.SIGTERM)  # the second if the signal came first


def _ignore_and_wait():
    ignore_signals(0)
    signal.pause()


def test_signal_in_the_last_step_does_not_fail_the_run(run):
    args, own = run
    cli.main([*args, sending(count=STEPS)])
    assert saved(own) == [f"step={STEPS:07d}.ckpt"]


def test_second_interrupt_stops_at_once(run):
    args, own = run
    with pytest.raises(SystemExit) as stopped:
        cli.main([*args, sending(signals="[SIGINT, SIGINT]")])
    assert stopped.value.code == 1
    assert saved(own) == []


def test_slurm_job_is_requeued_after_its_checkpoint_is_saved(folder, run, monkeypatch):
    args, own = run
    scontrol = folder / "bin/scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(f'#!/bin/sh\necho "$@" $(ls {own}/checkpoints) >> {own}/requeued\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {**SLURM, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    stop([*args, sending(signals="[SIGUSR1]")])
    assert (own / "requeued").read_text() == "requeue 7_3 step=0000004.ckpt\n"
    cli.main(args)
    check_equal(folder / "runs/whole", own)
    assert not list(own.glob("hpc_ckpt*"))


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_two_processes_stop_at_the_same_step(folder, run, ranks):
    args, own = run
    args += ["-c", "trainer/ddp.yaml"]
    output = run_distributed([*args, sending(count=3, ranks=ranks)], folder, expected=[75, 0])
    assert saved(own) == ["step=0000004.ckpt"], output
    assert output.count("stopped by SIGTERM at step 4") == 1
    if ranks == [1]:
        run_distributed(args, folder)
        run_distributed([*args, "--name=distributed"], folder)
        check_equal(folder / "runs/distributed", own)


def test_devices_of_a_slurm_job_without_srun_are_used(folder, run):
    args, own = run
    args += ["-c", "trainer/ddp.yaml", "--trainer.devices=2", sending(count=2)]
    command = [str(Path(sys.executable).with_name("latte")), *args]
    path = os.pathsep.join(os.path.dirname(__file__) if part == "" else part for part in sys.path)
    environment = {**os.environ, **SLURM, "PYTHONPATH": path}
    del environment["SLURM_NTASKS_PER_NODE"]  # as without --ntasks
    status, output = run_command(command, folder, environment)
    assert status == 75, output
    checkpoint = final(own, 3)  # one step later than on one device, since two processes agree
    assert checkpoint["global_step"] == 3
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 3


def build_module(seed):
    net = Latte(
        hidden_size=16, depth=2, num_heads=2, patch_size=8, input_size=(16, 24), in_channels=3, num_frames=4,
        conditioning="class", num_classes=8,
    )  # fmt: skip
    net.init_weights(seed)
    return LatteModule(net, GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 2), lr=1e-2)


def test_stock_trainer_stops_and_resumes_bit_exactly(tmp_path):
    states = []
    for callbacks, checkpoint in (
        ([], None),
        ([Send(), StopOnSignal()], None),
        ([StopOnSignal()], tmp_path / "checkpoints/step=0000004.ckpt"),
    ):
        module = build_module(seed=0 if checkpoint is None else 1)
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", devices=1, max_steps=6, min_steps=6, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip
        data = Shapes(size=(16, 24), num_frames=4, interval=3, global_batch_size=4, val_clips=5, num_workers=0)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        states.append((trainer.global_step, module.state_dict(), trainer.optimizers[0].state_dict()))
    whole, stopped, resumed = states
    assert stopped[0] == 4
    assert saved(tmp_path) == ["step=0000004.ckpt"]
    assert list(differences(whole, resumed)) == []
