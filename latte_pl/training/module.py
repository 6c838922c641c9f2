"""The LightningModule: a denoiser, a diffusion objective and a frozen autoencoder, trained and sampled."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from latte_pl.autoencoders import Autoencoder, TextEncoder, to_uint8
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.diffusion import Diffusion, Guidance
from latte_pl.nn.denoiser import Denoiser
from latte_pl.rng import key, normal, torch_generator, uniform
from latte_pl.training import post_hoc_ema
from latte_pl.training.checkpoints import Diverged, advice, check_finite
from latte_pl.training.components import describe, instantiate
from latte_pl.training.precision import gather_policy
from latte_pl.training.settings import Pretrained, Sampling, check_parts
from latte_pl.types import Draws, Text, VideoBatch

HELD_OUT_SEED = 0
"""Seed of timesteps and noise of the held-out loss, the same for all runs, so that runs are comparable."""
DECAY = 0.3
"""Share of a training over which the schedule "wsd" decays."""
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class LatteModule(LightningModule):
    """Train a denoiser on the latents of a frozen autoencoder, and sample videos from it.

    Works under any `lightning.Trainer`, with the datamodules of `latte_pl.data` or with a DataLoader of the user::

        module = LatteModule(Latte(size="S", conditioning="class", num_classes=8), GaussianDiffusion(), autoencoder)
        Trainer(max_steps=1000).fit(module, DataLoader(clips, batch_size=8))

    A training batch is a dictionary (`latte_pl.types.VideoBatch`) with ``video`` (B, F, 3, H, W) uint8, or ``moments``
    of cached latents, and for class-conditional models ``label`` (B,). Each timestep, noise, label dropout and
    posterior sample is a function of ``seed`` and of the clip's index alone, so it does not depend on the number of
    devices, on the accumulated batches or on interruptions. Batches may name the index of each clip in ``clip`` (B,);
    otherwise clips are numbered in the order of training.

    Validation measures the EMA weights on fixed timesteps and noise. Test and prediction draw a sample for each
    request of a batch (`latte_pl.data.requests`). If test batches contain clips instead of requests, the module logs
    their held-out loss.

    Args:
        net: The denoiser, ``forward(x, timesteps, labels, text, num_images)``.
        diffusion: Objective and samplers.
        autoencoder: Frozen autoencoder. It is no registered submodule, so it is neither saved nor optimized.
        sampling: How samples are drawn.
        pretrained: Weights that `latte fit` loads into a new run. Under a stock Trainer call
            ``latte_pl.interop.load_dit(module.net, source)`` and `reset_ema` instead.
        seed: Seed of timesteps, noise, dropout and posterior samples in training, and of predicted samples.
        lr: Learning rate of AdamW.
        betas: Averaging coefficients of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        warmup_steps: Steps over which the learning rate rises linearly to `lr`.
        lr_schedule: Learning rate after the warm-up: "constant"; "cosine" to 0 at the last step
            (``trainer.max_steps``); or "wsd", constant and then linear to 0 over the last 30 % of all steps (warm-up,
            stable, decay).
        clip_from_step: First step at which ``trainer.gradient_clip_val`` acts.
        ema_decay: Decay of the exponential moving average (EMA) of the denoiser's weights, per step.
        ema_warmup: Limit the decay to (1 + n) / (10 + n) after n steps, for runs much shorter than
            1 / (1 - ``ema_decay``) steps.
        compile: Compile the blocks of the denoiser with torch.compile.
        text_encoder: Frozen encoder of captions, for ``conditioning="text"``; not a registered submodule either.
        ema_snapshot_every: Steps between snapshots of two power-function EMAs, from which `latte average`
            reconstructs EMAs of other lengths after training; 0 saves none. Training then holds two more copies of the
            weights, and each snapshot takes the disk space of two models in float32.

    Raises:
        ValueError: Parts or settings do not fit together; the setting to change is named.
    """

    def __init__(
        self,
        net: Denoiser,
        diffusion: Diffusion,
        autoencoder: Autoencoder,
        sampling: Sampling = Sampling(),  # noqa: B008 -- never mutated; jsonargparse reads the default
        pretrained: Pretrained | None = None,
        seed: int = 0,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine", "wsd"] = "constant",
        clip_from_step: int = 0,
        ema_decay: float = 0.9999,
        ema_warmup: bool = False,
        compile: bool = False,
        text_encoder: TextEncoder | None = None,
        ema_snapshot_every: int = 0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # load_from_checkpoint passes components as class path and arguments
        net = instantiate(Denoiser, net)
        diffusion = instantiate(Diffusion, diffusion)
        autoencoder = instantiate(Autoencoder, autoencoder)
        sampling = instantiate(Sampling, sampling)
        pretrained = instantiate(Pretrained, pretrained)
        text_encoder = instantiate(TextEncoder, text_encoder)
        for name, part in (("net", net), ("diffusion", diffusion), ("autoencoder", autoencoder)):
            if part is None:
                raise ValueError(f"the checkpoint does not describe {name}; pass {name}= to load_from_checkpoint")
        self.save_hyperparameters({name: describe(value) for name, value in arguments.items()})
        check_parts(net, diffusion, sampling)
        if net.in_channels != autoencoder.channels:
            raise ValueError(
                f"model.net.in_channels is {net.in_channels}, but the latents of the autoencoder have "
                f"{autoencoder.channels} channels; set model.net.init_args.in_channels to {autoencoder.channels}"
            )
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"model.ema_decay is {ema_decay}; it must lie in [0, 1)")
        if warmup_steps < 0:
            raise ValueError(f"model.warmup_steps is {warmup_steps}; it must be at least 0")
        if net.conditioning == "text":
            if text_encoder is None:
                raise ValueError("the model is text-conditional; set model.text_encoder")
            if (net.text_dim, net.text_length) != (text_encoder.width, text_encoder.length):
                raise ValueError(
                    f"model.net has text_dim {net.text_dim} and text_length {net.text_length}, model.text_encoder has "
                    f"width {text_encoder.width} and length {text_encoder.length}; set both alike"
                )
        if ema_snapshot_every < 0:
            raise ValueError(f"model.ema_snapshot_every is {ema_snapshot_every}; it must be at least 0")
        if lr <= 0.0:
            raise ValueError(f"model.lr is {lr}; it must be positive")
        self.net = net
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        self.ema_snapshot_every = ema_snapshot_every
        copies = len(post_hoc_ema.SIGMA_RELS) if ema_snapshot_every else 0
        self.averages = nn.ModuleList(copy.deepcopy(self.ema) for _ in range(copies))
        self.diffusion, self.sampling, self.pretrained = diffusion, sampling, pretrained
        self.seed, self.lr, self.betas, self.weight_decay = seed, lr, betas, weight_decay
        self.warmup_steps, self.lr_schedule, self.clip_from_step = warmup_steps, lr_schedule, clip_from_step
        self.ema_decay, self.ema_warmup, self.compile_blocks = ema_decay, ema_warmup, compile
        # NaN is passed on; torchmetrics 1.9 drops the weights of padding with nan_strategy "disable"
        self.val_loss = MeanMetric(nan_strategy=float("nan"))
        self.test_loss = MeanMetric(nan_strategy=float("nan"))
        self._frozen = (autoencoder, text_encoder)  # a tuple hides them from nn.Module
        self._devices: list[torch.device | None] = [None, None]  # where the frozen networks are
        self._window: list[tuple[Tensor, dict[str, Tensor]]] = []  # timesteps and losses of the current optimizer step
        self._logged_step = -1
        self._batch_sizes: dict[Any, int] = {}  # clips of a full batch, by stage of the trainer
        self.sampling_progress: Callable[..., Iterable[Any]] | None = None
        """Wraps the denoising steps of ``num_videos`` videos, such as to show them as a bar."""
        self._num_evaluated = 0  # batches of the current validation or test
        self._configured = False

    def init_weights(self, seed: int) -> None:
        """Initialise the denoiser, each parameter from its own generator, and reset the EMA to these weights."""
        self.net.init_weights(seed)
        self.reset_ema()

    def reset_ema(self) -> None:
        """Set the EMA to the denoiser's current weights."""
        self.ema.load_state_dict(self.net.state_dict())

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, on this module's device."""
        return self._on_device(0)

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder of a text-conditional model, on this module's device."""
        assert self._frozen[1] is not None
        return self._on_device(1)

    def _on_device(self, index: int) -> Any:
        """Return a frozen network after it has moved here; `to` would visit all its parameters at each use."""
        if self._devices[index] != self.device:
            self._frozen[index].to(self.device)
            self._devices[index] = self.device
        return self._frozen[index]

    # ------------------------------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the trainer's precision, and the model against the datamodule.

        Raises:
            ValueError: The precision is not supported, or a setting of the model does not match the data.
        """
        self._batch_sizes = {}
        if stage == "fit" and self.trainer.precision in ("bf16-true", "16-true", "64-true"):
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}; train with 32-true, bf16-mixed or 16-mixed, because "
                "weights and their EMA are kept in float32"
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, VideoDataModule) and stage != "predict":
            self._check_data(data)

    def _check_data(self, data: VideoDataModule) -> None:
        factor = self._frozen[0].factor
        latent = tuple(side // factor for side in data.size)
        if any(side % factor for side in data.size):
            raise ValueError(
                f"data.size is {data.size}; both sides must be multiples of {factor}, the autoencoder's downsampling"
            )
        if latent != tuple(self.net.input_size):
            raise ValueError(
                f"model.net.input_size is {tuple(self.net.input_size)}, but the latents of the data are {latent}; "
                f"set model.net.init_args.input_size to [{latent[0]}, {latent[1]}]"
            )
        if data.num_frames != self.net.num_frames:
            raise ValueError(
                f"model.net.num_frames is {self.net.num_frames}, but the clips have {data.num_frames} frames; "
                f"set model.net.init_args.num_frames to {data.num_frames}"
            )
        if self.net.conditioning == "class" and self.net.num_classes != len(data.class_names):
            raise ValueError(
                f"model.net.num_classes is {self.net.num_classes}, but the data have {len(data.class_names)} classes; "
                f"set model.net.init_args.num_classes to {len(data.class_names)}, or conditioning to none"
            )
        if self.net.conditioning == "text" and not data.captions:
            raise ValueError("the model is text-conditional; set data.captions to true (the data need captions)")

    def configure_model(self) -> None:
        """Shard the denoiser under FSDP2, and compile its blocks and those of its EMA, which validates and samples."""
        if self._configured:  # each use of a trainer calls this hook
            return
        self._configured = True
        if self.device_mesh is not None:
            mesh, policy = self.device_mesh["data_parallel"], gather_policy(self.trainer.precision)
            for module in (self.net, self.ema, *self.averages):
                for block in module.blocks:
                    fully_shard(block, mesh=mesh, mp_policy=policy)
                # without resharding, the root stays gathered after a forward pass that has no backward pass
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if self.compile_blocks:
            self.net.compile_blocks()
            self.ema.compile_blocks()

    def configure_optimizers(self) -> Any:
        """Return AdamW and the learning rate schedule.

        Raises:
            ValueError: The schedule needs a last step, and the trainer has none.
        """
        # with 16-mixed, a fused AdamW unscales inside its step, and Lightning then refuses to clip
        fused = self.trainer.precision != "16-mixed"
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        total = self.trainer.max_steps
        if self.lr_schedule != "constant" and total < 1:
            raise ValueError(f"model.lr_schedule {self.lr_schedule} needs a last step; set trainer.max_steps")

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.lr_schedule == "constant":
                return 1.0
            if self.lr_schedule == "wsd":
                return min(1.0, max(0.0, (total - step) / (DECAY * total)))
            progress = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the names of the classes, which sampling uses as labels."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, VideoDataModule):
            checkpoint["class_names"] = list(data.class_names)

    def on_train_start(self) -> None:
        """Start a window of losses, and align the trainer's batch counters with the optimizer steps taken.

        A checkpoint may count a batch that was not trained on, and a resumed run may accumulate another number of
        batches than the run that wrote the checkpoint.
        """
        self._window, self._logged_step = [], self.global_step
        loop = self.trainer.fit_loop.epoch_loop
        if self.trainer.fit_loop.restarting and self.trainer.num_training_batches == math.inf:
            batches = self.global_step * self.trainer.accumulate_grad_batches
            for counts in (loop.batch_progress.total, loop.batch_progress.current):
                counts.load_state_dict(dict.fromkeys(("ready", "started", "processed", "completed"), batches))
                # Lightning adds the batch after which such a checkpoint was saved
                counts.completed -= loop.restarted_on_train_batch_end

    # --------------------------------------------------------------------------------------- training

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Number the clips of a batch where it does not, and draw its random numbers.

        This is done on the CPU before the transfer: on a GPU, reading the indices of the clips would wait for all
        earlier work, and so would copies of draws that are not in pinned memory.
        """
        if not isinstance(batch, dict) or not ("moments" in batch or "video" in batch):
            return batch
        batch = cast(VideoBatch, batch)
        if self.trainer.training:
            clips = self._with_indices(
                batch, self.global_step * self.trainer.accumulate_grad_batches + len(self._window)
            )
            draws = self.draw(clips, self.seed)
        else:
            clips = self._with_indices(batch, self._num_evaluated)
            self._num_evaluated += 1
            draws = self.draw_held_out(clips)
        if self.device.type == "cuda":
            draws = Draws(*(tensor.pin_memory() for tensor in draws))
        return {**clips, "draws": draws}

    def draw(self, batch: VideoBatch, seed: int, u: Tensor | None = None) -> Draws:
        """Draw the random numbers of a batch on the CPU.

        Args:
            batch: Clips with their indices in ``clip``.
            seed: Seed of the draws.
            u: Uniforms (B,) in [0, 1) that determine the timesteps; None draws them.

        Raises:
            ValueError: The model is class-conditional and the batch has no labels.
        """
        clip = batch["clip"]
        if "moments" in batch:
            frames, doubled, height, width = batch["moments"].shape[1:]
            shape = (frames, doubled // 2, height, width)
        else:
            autoencoder = self._frozen[0]
            frames, _, height, width = batch["video"].shape[1:]
            shape = (frames, autoencoder.channels, height // autoencoder.factor, width // autoencoder.factor)
        if u is None:
            u = uniform(seed, "timestep", clip)[:, 0]
        posterior, noise = (normal(seed, purpose, clip, shape) for purpose in ("posterior", "noise"))
        return Draws(self.diffusion.timesteps(u), posterior, noise, self.draw_conditions(batch, seed))

    def draw_conditions(self, batch: VideoBatch, seed: int) -> Tensor:
        """Draw the uniforms (B,) or (B, 1 + N) that decide which labels or captions are dropped.

        Raises:
            ValueError: The model is class-conditional and the batch has no labels.
        """
        num_clips, num_images = len(batch["clip"]), num_images_of(batch)
        shape: tuple[int, ...] = (num_clips, 1 + num_images) if num_images else (num_clips,)
        if self.net.conditioning == "none":
            return torch.empty(0)
        if self.net.conditioning == "class":
            if "label" not in batch:
                raise ValueError('the model is class-conditional; each batch needs "label" (B,) int64')
            shape = tuple(batch["label"].shape)
        elif "text" in batch:
            shape = tuple(batch["text"].mask.shape[:-1])
        return uniform(seed, "label", batch["clip"], math.prod(shape[1:])).view(shape)

    def draw_held_out(self, batch: VideoBatch) -> Draws:
        """Return the fixed timesteps and noise of the held-out loss on the CPU."""
        # a low-discrepancy sequence covers the timesteps evenly for any number of clips
        u = torch.frac(0.5 + batch["clip"].double() * GOLDEN_RATIO).float()
        return self.draw(batch, HELD_OUT_SEED, u)

    def latents(self, batch: VideoBatch, noise: Tensor) -> Tensor:
        """Return the scaled latents (B, F + N, C, H, W) of a batch, sampled from the posterior by ``noise``."""
        if "moments" in batch:
            mean, logvar = batch["moments"].float().chunk(2, dim=2)
        else:
            mean, logvar = self.autoencoder.moments(batch["video"])
        return self.autoencoder.latents(mean, logvar, noise.to(mean))

    def labels(self, batch: VideoBatch, dropped: Tensor) -> Tensor | None:
        """Return the labels for the denoiser, with the null class where ``dropped`` (B,) or (B, 1 + N) is True."""
        if self.net.conditioning != "class":
            return None
        return torch.where(dropped, self.net.null_label, batch["label"])

    def text(self, batch: VideoBatch, dropped: Tensor) -> Text | None:
        """Return the captions for the denoiser, with the null caption where ``dropped`` is True."""
        if self.net.conditioning != "text":
            return None
        text = batch["text"] if "text" in batch else self.text_encoder.encode(batch["caption"])
        text = Text(text.embeddings.float(), text.mask)  # cached embeddings have half precision
        return text.replaced(dropped, self.net.null_text(text))

    def losses(
        self, net: nn.Module, batch: VideoBatch, draws: Draws, dropout: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the diffusion's losses of a batch.

        Args:
            net: The denoiser, or its EMA.
            batch: Clips.
            draws: Their random numbers, see `draw`.
            dropout: Probability that a label or caption is dropped.

        Returns:
            The timesteps (B,) and the losses by name, each (B, F + N).
        """
        t, posterior, noise, condition = (tensor.to(self.device) for tensor in draws)
        x = self.latents(batch, posterior)
        dropped = condition < dropout
        labels, text, num_images = self.labels(batch, dropped), self.text(batch, dropped), num_images_of(batch)
        return t, self.diffusion.loss(lambda x, t: net(x, t, labels, text, num_images), x, t, noise.to(x))

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of this process's micro-batch."""
        t, losses = self.losses(self.net, batch, batch["draws"], self.net.class_dropout)
        self._window.append((t.float(), {name: value.detach() for name, value in losses.items()}))
        return losses["loss"].mean()

    def _with_indices(self, batch: VideoBatch, batch_count: int) -> VideoBatch:
        """Return a batch with the indices of its clips, numbered in order where it has none."""
        if "clip" in batch:
            return batch
        size = len(batch["moments"] if "moments" in batch else batch["video"])
        # the last batch of an epoch may be smaller than the others
        full = self._batch_sizes.setdefault(self.trainer.state.stage, size)
        first = (batch_count * self.trainer.world_size + self.trainer.global_rank) * full
        return {**batch, "clip": torch.arange(first, first + size)}

    def on_train_batch_end(self, outputs: Any, batch: VideoBatch, batch_idx: int) -> None:
        """Log the losses of an optimizer step over all processes and accumulated batches."""
        if self.global_step == self._logged_step:  # still accumulating
            return
        self._logged_step = self.global_step
        window, self._window = self._window, []
        due = self.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due:
            self._log_losses(window, num_images_of(batch))
        elif self.device.type == "cpu":  # reading a value on a GPU waits for the device
            loss = torch.cat([losses["loss"].float() for _, losses in window]).mean()
            self._check_loss(self.trainer.strategy.reduce(loss, reduce_op="mean"))

    def _check_loss(self, loss: Tensor) -> None:
        """Stop the training if the loss of all processes, which then all stop at this step, is not finite."""
        if not torch.isfinite(loss):
            raise Diverged(advice(self.trainer, f"the loss is {float(loss)}"))

    def _log_losses(self, window: list[tuple[Tensor, dict[str, Tensor]]], num_images: int) -> None:
        """Log mean losses: in total, for each quarter of the timesteps, and of clips and images in joint training."""
        t = torch.cat([t for t, _ in window])
        losses = {name: torch.cat([part[name] for _, part in window]) for name in window[0][1]}
        loss, everywhere = losses["loss"], torch.ones_like(losses["loss"], dtype=torch.bool)
        groups = {name: (values, everywhere) for name, values in losses.items()}
        quarter = (t / 250.0).long().clamp(0, 3)[:, None].expand_as(loss)
        groups |= {f"loss_t{250 * q}-{250 * (q + 1)}": (loss, quarter == q) for q in range(4)}
        if num_images:
            is_image = torch.arange(loss.shape[1], device=loss.device) >= loss.shape[1] - num_images
            groups |= {"loss_video": (loss, ~is_image & everywhere), "loss_image": (loss, is_image & everywhere)}
        sums = torch.stack([torch.stack([x.where(m, 0.0).sum().float(), m.sum().float()]) for x, m in groups.values()])
        # the one read of values from the device
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        means = {f"train/{name}": total / count for name, (total, count) in zip(groups, sums) if count > 0}
        self._check_loss(means["train/loss"])
        self._log_at_step(means, prog_bar=("train/loss",))

    def _log_at_step(self, metrics: dict[str, Tensor], prog_bar: Sequence[str] = ()) -> None:
        """Log metrics at the number of optimizer steps taken; the step of `self.log` is one less."""
        training = self.trainer.state.fn == "fit"
        for name, value in metrics.items():
            # every process has the value of all; Lightning warns about epochs without sync_dist
            synchronise = not self.trainer.training
            self.log(name, value, prog_bar=name in prog_bar, logger=not training, sync_dist=synchronise)
        for logger in self.loggers if training and not self.trainer.sanity_checking else []:
            logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=self.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients from ``clip_from_step`` on."""
        if not gradient_clip_val or self.global_step < self.clip_from_step:
            return
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        # Lightning refuses to clip gradients of a fused optimizer, also without a GradScaler
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.net.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then update the EMA."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step  # steps before this one
        decay = min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1.0 - decay)
        post_hoc_ema.update(self.averages, self.net, step + 1)
        every = self.ema_snapshot_every
        if every and (step + 1) % every == 0 and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_finite(self.trainer, self, step + 1)
            post_hoc_ema.write_snapshot(self.averages, Path(self.trainer.default_root_dir), step + 1)

    # -------------------------------------------------------------------------------------- evaluation

    def held_out_loss(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the EMA weights on fixed timesteps and noise.

        The loss is the sum of the objective's parts without training weights, so that differently weighted trainings
        are comparable.

        Args:
            batch: Clips with their indices in ``clip``; ``padding`` (B,) bool marks repeated clips that fill a batch.

        Returns:
            The loss of each clip (B,), and its weight (B,): 0 for padding, else 1.
        """
        draws = batch.get("draws") or self.draw_held_out(batch)
        _, losses = self.losses(self.ema, batch, draws, dropout=0.0)
        parts = [value for name, value in losses.items() if name != "loss"]
        loss = sum(parts[1:], start=parts[0]).mean(dim=1)
        weight = 1.0 - batch["padding"].float() if "padding" in batch else torch.ones_like(loss)
        return loss, weight.to(loss)

    def on_validation_epoch_start(self) -> None:
        """Number the clips of a validation from 0, if they have no indices."""
        self._num_evaluated = 0

    def on_test_epoch_start(self) -> None:
        """Number the clips of a test from 0, if they have no indices."""
        self._num_evaluated = 0

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """Add a batch of clips to the held-out loss."""
        self.val_loss.update(*self.held_out_loss(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out loss."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self._log_at_step({"val/loss": loss}, prog_bar=("val/loss",))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Return the samples (B, F, 3, H, W) uint8 of a batch of requests, or add a batch of clips to the test loss.

        `latte_pl.evaluation.ProtocolEvaluation`, a callback, computes the metrics of the samples. On a CPU each sample
        is drawn alone: kernels choose their arithmetic by the shape of a batch, and so the batch size does not change
        a sample by a bit.
        """
        if "index" in batch:
            return self.sample_requests(batch, size=1 if self.device.type == "cpu" else None)
        self.test_loss.update(*self.held_out_loss(batch))  # type: ignore[arg-type]
        return None

    def on_test_epoch_end(self) -> None:
        """Log the held-out loss of the clips that were tested, if any."""
        if self.test_loss.update_called:
            self.log("test/loss", self.test_loss.compute(), sync_dist=True)
            self.test_loss.reset()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the samples (B, F, 3, H, W) uint8 of a batch of requests."""
        return self.sample_requests(batch)

    def sample_requests(self, batch: dict[str, Any], size: int | None = None) -> Tensor:
        """Return the samples (B, F, 3, H, W) uint8 of a batch of requests.

        Args:
            batch: ``index`` (B,); ``label`` (B,) or ``prompt`` (B strings) as the model needs; optionally ``seed``.
            size: Samples that are drawn at once; None draws the whole batch.
        """
        indices = batch["index"].tolist()
        labels = batch["label"].tolist() if "label" in batch else None
        prompts, seed = batch.get("prompt"), batch.get("seed", self.seed)
        pixels = [side * self.autoencoder.factor for side in self.net.input_size]
        parts = [torch.empty(0, self.net.num_frames, 3, *pixels, dtype=torch.uint8, device=self.device)]
        size = size or max(len(indices), 1)
        for first in range(0, len(indices), size):
            n = slice(first, first + size)
            parts.append(
                self.sample(indices[n], None if labels is None else labels[n], seed, prompts=prompts and prompts[n])
            )
        return torch.cat(parts)

    @torch.no_grad()
    def sample(
        self,
        indices: list[int],
        labels: list[int] | None = None,
        seed: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        prompts: list[str] | None = None,
    ) -> Tensor:
        """Draw videos. The noise of an index and a seed is the same in any batch and on any device.

        Args:
            indices: Indices of the B samples; index and seed determine a sample's noise.
            labels: Class of each sample, for a class-conditional model.
            seed: Seed of the set of samples.
            progress: Function that wraps the iterable of steps, such as tqdm.
            prompts: Caption of each sample, for a text-conditional model.

        Returns:
            (B, F, 3, H, W) uint8.

        Raises:
            ValueError: Labels or captions are missing, or a label is out of range.
        """
        net = self.ema if self.sampling.weights == "ema" else self.net
        if net.conditioning == "class":
            if labels is None:
                raise ValueError("the model is class-conditional; give the class of each sample")
            wrong = [label for label in labels if not 0 <= label < net.num_classes]
            if wrong:
                raise ValueError(f"label {wrong[0]} is outside the model's classes 0..{net.num_classes - 1}")
        if net.conditioning == "text" and prompts is None:
            raise ValueError("the model is text-conditional; give a caption for each sample")
        if progress is None and self.sampling_progress is not None:
            progress = partial(self.sampling_progress, num_videos=len(indices))
        training = net.training
        net.eval()
        target = torch.tensor(labels, device=self.device) if net.conditioning == "class" else None
        shape = (net.num_frames, net.in_channels, *net.input_size)
        text = self.text_encoder.encode(prompts) if net.conditioning == "text" and prompts is not None else None
        model = Guidance(net, target, self.sampling.guidance, self.sampling.guidance_interval, text=text)
        latents = self.diffusion.sample(
            model,
            normal(seed, "sample", torch.tensor(indices), shape).to(self.device),
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            eta=self.sampling.eta,
            generator=[torch_generator(key(seed, "sampler"), n) for n in indices],
            progress=progress,
        )
        net.train(training)
        return to_uint8(self.autoencoder.decode(latents))


def num_images_of(batch: VideoBatch) -> int:
    """Return the number N of images of joint training that a batch appends to each clip."""
    if "label" in batch and batch["label"].ndim == 2:
        return batch["label"].shape[1] - 1
    if "text" in batch and batch["text"].mask.ndim == 3:
        return batch["text"].mask.shape[1] - 1
    if "caption" in batch and batch["caption"] and not isinstance(batch["caption"][0], str):
        return len(batch["caption"]) - 1
    return 0
