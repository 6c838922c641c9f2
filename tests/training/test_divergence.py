"""A training that diverges stops, and keeps its last finite checkpoint."""

import pytest
import torch
from lightning import Callback
from runs import final, run_distributed, write_config

from latte_pl import cli

SHORT = [
    "--trainer.max_steps=8",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=100",
    "--samples.every_n_steps=100",
    "--checkpoints.every_n_steps=2",
    "--checkpoints.keep=1",
]


class Spoil(Callback):
    """Make a training diverge at a step.

    Args:
        step: The step.
        what: "loss" spoils the data of a batch, "weights" a weight after the step.
        rank: Rank of the process.
        micro_batch: Index of the accumulated batch within the step.
    """

    def __init__(self, step, what="loss", rank=0, micro_batch=0):
        self.step, self.what, self.rank, self.micro_batch = step, what, rank, micro_batch

    def due(self, trainer, batch_idx):
        if trainer.global_rank != self.rank:
            return False
        return batch_idx % trainer.accumulate_grad_batches == self.micro_batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.what == "loss" and trainer.global_step == self.step - 1 and self.due(trainer, batch_idx):
            batch["moments"] = torch.full((len(batch["clip"]), 4, 6, 16, 24), torch.nan)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.what == "weights" and trainer.global_step == self.step:
            with torch.no_grad():
                list(pl_module.net.parameters())[-1].view(-1)[0] = torch.inf


def spoiling(**options):
    """Return the argument that adds `Spoil` to a run."""
    text = ", ".join(f"{name}: {value}" for name, value in options.items())
    return f"--trainer.callbacks=[{{class_path: test_divergence.Spoil, init_args: {{{text}}}}}]"


def check_kept(folder, step):
    """Check that the only checkpoint is that of a step, and is finite."""
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step={step:07d}.ckpt"]
    state = final(folder, step)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["fit", "-c", write_config(tmp_path), *SHORT, "--name=run"]


@pytest.mark.parametrize(
    ("options", "more", "message", "kept"),
    [
        ({"step": 5}, [], "the loss is nan at step 5", 4),
        # not the last of the accumulated batches, at a step that is not logged
        ({"step": 5}, ["--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=100"], "the loss is nan", 4),
        ({"step": 4, "what": "weights"}, [], "the weights are not finite at step 4", 2),
        ({"step": 8, "what": "weights"}, [], "the weights are not finite at step 8", 6),
        ({"step": 3, "what": "weights"}, ["--checkpoints.every_n_steps=100"], "the loss is nan at step 4", None),
    ],
)
def test_divergence_stops_with_one_line_and_keeps_the_last_finite_checkpoint(
    args, tmp_path, capsys, options, more, message, kept
):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*args, *more, spoiling(**options)])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
    assert "model.lr" in line
    if kept is None:
        assert "there is no checkpoint yet" in line
        assert not (tmp_path / "runs/run/checkpoints").exists()
    else:
        assert f"the last checkpoint is runs/run/checkpoints/step={kept:07d}.ckpt" in line
        check_kept(tmp_path / "runs/run", kept)


def test_snapshots_of_averages_are_finite(args, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(
            [*args, "--model.ema_snapshot_every=3", spoiling(step=5, what="weights"), "--checkpoints.every_n_steps=4"]
        )
    assert [path.name for path in (tmp_path / "runs/run/averages").iterdir()] == ["step=0000003.safetensors"]


def test_all_processes_stop_when_the_loss_of_one_diverges(args, tmp_path):
    more = ["-c", "trainer/ddp.yaml", spoiling(step=3, rank=1)]
    output = run_distributed([*args, *more], tmp_path, expected=[2, 2])
    assert output.count("the loss is nan at step 3") == 2
    check_kept(tmp_path / "runs/run", 2)


def test_diverged_run_resumes_from_its_finite_checkpoint(args, tmp_path):
    with pytest.raises(SystemExit):
        cli.main([*args, spoiling(step=5)])
    cli.main(args)
    check_kept(tmp_path / "runs/run", 8)
