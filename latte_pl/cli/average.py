"""Reconstruct EMAs of several lengths from a run's snapshots and export the best one."""

import math
from collections.abc import Sequence
from typing import Any

from latte_pl.cli.functions import run

SIGMA_RELS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.25)


def average(
    run: str,
    sigma_rels: Sequence[float] = SIGMA_RELS,
    output: str | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
) -> None:
    """Reconstruct EMAs of several lengths from a run's snapshots and export the one with the lowest held-out loss.

    The run has to be trained with model.ema_snapshot_every (post-hoc EMA, Karras et al. 2024). The losses of all
    lengths are written to averages/sigma_rels.json in the run's folder.

    Args:
        run: A run's folder, or one of its checkpoints.
        sigma_rels: Standard deviations of the EMAs relative to the training time, in [0.005, 0.28].
        output: The exported file; averages/best.safetensors in the run's folder if None.
        accelerator: Accelerator of the trainer.
        devices: Devices of the trainer.
        precision: Precision of the trainer; that of the run if None.
        batch_size: Clips of a validation batch over all devices; data.global_batch_size of the run if None.
    """
    from lightning import Trainer
    from tqdm import tqdm

    from latte_pl.cli.config import quiet
    from latte_pl.data.datamodule import VideoDataModule
    from latte_pl.files import write_json
    from latte_pl.training import post_hoc_ema, weights
    from latte_pl.training.components import instantiate

    checkpoint = weights.intact(run)
    folder = checkpoint.parent.parent / "averages"
    best_file = weights.export_path(output or str(folder / "best.safetensors"))
    if not sigma_rels:
        raise ValueError("there are no lengths to try; give some, such as --sigma_rels [0.05,0.1]")
    for sigma_rel in sigma_rels:
        post_hoc_ema.std_to_exp(sigma_rel)  # refuses lengths out of range before anything is measured
    if checkpoint.suffix != ".ckpt" or checkpoint.parent.name != "checkpoints":
        raise ValueError(f"{run} is no run and none of its checkpoints; give a run's folder")
    config = weights.read_config(checkpoint)
    every = config["model"].get("ema_snapshot_every", 0)
    if not every:
        raise ValueError(f"{run} has no snapshots of EMAs; train with model.ema_snapshot_every")
    step = weights.step_of(checkpoint)
    files = post_hoc_ema.snapshots(checkpoint, step, every)
    error = {length: post_hoc_ema.reconstruction_error(list(files), length) for length in sigma_rels}
    skipped = [length for length in sigma_rels if error[length] > post_hoc_ema.TOLERANCE]
    tried = [length for length in sigma_rels if length not in skipped]
    if not tried:
        raise ValueError(
            f"{len(files)} snapshots are too few to reconstruct EMAs of sigma_rel "
            f"{', '.join(f'{length:g}' for length in skipped)}; try other lengths, or train with a smaller "
            "model.ema_snapshot_every"
        )
    weights.check_writable(best_file)
    quiet()
    trained = weights.read(checkpoint)
    module = weights.build(config)
    trained.load_into(module)
    data = instantiate(VideoDataModule, config["data"])
    if batch_size is not None:
        data.global_batch_size = batch_size
    saved: dict[str, Any] = config.get("trainer") or {}
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=precision or saved.get("precision"),  # type: ignore[arg-type]
        limit_val_batches=saved.get("limit_val_batches"),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )

    def held_out_loss() -> float:
        trainer.validate(module, datamodule=data, verbose=False)
        return float(trainer.callback_metrics["val/loss"])

    own = held_out_loss()
    losses: dict[float, float] = {}
    for length in tqdm(tried, "EMA lengths", unit="length", disable=not trainer.is_global_zero):
        post_hoc_ema.reconstruct(module.ema, files, length)
        losses[length] = held_out_loss()
    best = min(losses, key=lambda length: losses[length] if math.isfinite(losses[length]) else math.inf)
    post_hoc_ema.reconstruct(module.ema, files, best)
    if not trainer.is_global_zero:
        return
    weights.write_export(trained, module.ema.state_dict(), best_file)
    table = {"sigma_rels": {f"{length:g}": loss for length, loss in losses.items()}, "ema": own, "best": best}
    write_json(folder / "sigma_rels.json", table | {"step": step})
    print("sigma_rel  held-out loss")
    for length, loss in losses.items():
        print(f"{length:<9g}  {loss:.6f}{'  best' if length == best else ''}")
    for length in skipped:
        print(f"{length:<9g}  skipped: reconstruction error {error[length]:.2f} with {len(files)} snapshots")
    print(
        f"EMA        {own:.6f}  with the run's own decay\n\nstep {step}, {len(files)} snapshots; weights  {best_file}"
    )


def main(args: Sequence[str]) -> None:
    """Run `latte average`."""
    run("latte average", average, args)
