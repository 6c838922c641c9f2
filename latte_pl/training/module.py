"""The LightningModule: a denoiser, a diffusion and a frozen codec, trained and sampled."""

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from latte_pl.codecs import Codec, TextEncoder, to_uint8
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.diffusion import Diffusion, Guidance
from latte_pl.nn.denoiser import Denoiser
from latte_pl.streams import key, normal, run_seed, torch_stream, uniform
from latte_pl.training import average
from latte_pl.training.settings import Pretrained, Sampling, check_parts
from latte_pl.types import Text, VideoBatch

# Held-out losses are compared across runs, so their draws never follow the run's own seed.
HELD_OUT_SEED = 0
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class LatteModule(LightningModule):
    """Trains a Latte denoiser on the latents of a frozen codec.

    Every draw (timestep, noise, label dropout, posterior sample) is a function of the run's seed and the clip's
    number alone: a resumed run, other world sizes and the arms of a comparison see the same ones.

    Args:
        net: The denoiser; `forward(x, timesteps, labels, text, num_images)`.
        diffusion: Objective and samplers.
        codec: Frozen autoencoder; not a registered submodule, so in no checkpoint and no optimizer.
        sampling: How samples are drawn.
        pretrained: Weights that a new run starts from; read once, by `latte fit`.
        lr: Learning rate of AdamW.
        betas: Averaging coefficients of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        warmup_steps: Steps over which the rate rises linearly from 0.
        lr_schedule: Rate after the warm-up: constant, or a cosine down to 0 at the last step (`trainer.max_steps`).
        clip_from_step: First step at which `trainer.gradient_clip_val` acts.
        ema_decay: Decay of the moving average of the denoiser's weights, per step.
        ema_warmup: Cap the decay at (1 + n) / (10 + n) after n steps, for runs much shorter than 1 / (1 - ema_decay).
        compile: Compile the blocks of the denoiser with torch.compile.
        text_encoder: Frozen encoder of captions, for ``conditioning="text"``; like the codec, no submodule.
        average_every: Steps between snapshots of two power-function averages, from which `latte average` makes an
            average of any length after training; 0 keeps none. A snapshot takes the disk space of two models in
            float32, training the memory of two more models.
    """

    def __init__(
        self,
        net: Denoiser,
        diffusion: Diffusion,
        codec: Codec,
        sampling: Sampling = Sampling(),  # noqa: B008 -- never mutated; jsonargparse reads the default
        pretrained: Pretrained | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        clip_from_step: int = 0,
        ema_decay: float = 0.9999,
        ema_warmup: bool = False,
        compile: bool = False,
        text_encoder: TextEncoder | None = None,
        average_every: int = 0,
    ) -> None:
        super().__init__()
        check_parts(net, diffusion, sampling)
        if net.in_channels != codec.channels:
            raise ValueError(
                f"model.net.in_channels is {net.in_channels} and the codec's latents have {codec.channels} channels; "
                f"set model.net.init_args.in_channels to {codec.channels}"
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
                    f"model.net has text_dim {net.text_dim} and text_length {net.text_length}, model.text_encoder "
                    f"width {text_encoder.width} and length {text_encoder.length}; set both alike"
                )
        if average_every < 0:
            raise ValueError(f"model.average_every is {average_every}; it must be at least 0")
        if lr <= 0.0:
            raise ValueError(f"model.lr is {lr}; it must be positive")
        self.net = net
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        self.average_every, self.averages = average_every, nn.ModuleList()
        self.diffusion, self.sampling, self.pretrained = diffusion, sampling, pretrained
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.warmup_steps, self.lr_schedule, self.clip_from_step = warmup_steps, lr_schedule, clip_from_step
        self.ema_decay, self.ema_warmup, self.compile_blocks = ema_decay, ema_warmup, compile
        self.val_loss = MeanMetric()
        self._frozen = (codec, text_encoder)  # a tuple hides them from nn.Module
        self._window: list[dict[str, Tensor]] = []  # what the accumulated micro-batches of this step measured

    def init_weights(self, seed: int) -> None:
        """Draw the denoiser's weights anew, each parameter from its own stream, and start the average there."""
        self.net.init_weights(seed)
        self.ema.load_state_dict(self.net.state_dict())

    @property
    def codec(self) -> Codec:
        """The codec, on this module's device."""
        return self._frozen[0].to(self.device)

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder of a text-conditional model, on this module's device."""
        assert self._frozen[1] is not None
        return self._frozen[1].to(self.device)

    # ------------------------------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the model against the data.

        Raises:
            ValueError: When the two disagree, naming both values and the setting to change.
        """
        if stage == "fit" and self.trainer.precision in ("bf16-true", "16-true", "64-true"):
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}; train with 32-true, bf16-mixed or 16-mixed "
                "(a moving average in half precision would stand still)"
            )
        if stage == "fit" and self.average_every and not self.averages:  # only training needs their memory
            self.averages.extend(copy.deepcopy(self.ema) for _ in average.LENGTHS)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoDataModule) or stage == "predict":
            return
        latent = tuple(side // self.codec.factor for side in data.size)
        if any(side % self.codec.factor for side in data.size):
            raise ValueError(f"data.size {data.size} is not a multiple of {self.codec.factor}, the codec's cell")
        if latent != tuple(self.net.input_size):
            raise ValueError(
                f"model.net.input_size is {tuple(self.net.input_size)} and the data give latents of {latent}; "
                f"set model.net.init_args.input_size to [{latent[0]}, {latent[1]}]"
            )
        if data.num_frames != self.net.num_frames:
            raise ValueError(
                f"model.net.num_frames is {self.net.num_frames} and the clips have {data.num_frames} frames; "
                f"set model.net.init_args.num_frames to {data.num_frames}"
            )
        if self.net.conditioning == "class" and self.net.num_classes != len(data.class_names):
            raise ValueError(
                f"model.net.num_classes is {self.net.num_classes} and the data have {len(data.class_names)} classes; "
                f"set model.net.init_args.num_classes to {len(data.class_names)}, or conditioning to none"
            )

        if self.net.conditioning == "text" and not data.captions:
            raise ValueError("the model is text-conditional; set data.captions to true, for data that have captions")

    def configure_model(self) -> None:
        """Shard the denoiser under FSDP2 and compile its blocks."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
            for module in (self.net, self.ema, *self.averages):
                for block in module.blocks:
                    fully_shard(block, mesh=mesh)
                # the root would stay gathered after a forward pass without backward, as the average's always is
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if self.compile_blocks:
            self.net.compile_blocks()

    def configure_optimizers(self) -> Any:
        """Return AdamW and the learning-rate schedule."""
        # GradScaler unscales inside a fused step, after which Lightning refuses to clip
        fused = self.trainer.precision != "16-mixed"
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        total = self.trainer.max_steps
        if self.lr_schedule == "cosine" and total < 1:
            raise ValueError("model.lr_schedule cosine needs its last step; set trainer.max_steps")

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.lr_schedule == "constant":
                return 1.0
            progress = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    # --------------------------------------------------------------------------------------- training

    def latents(self, batch: VideoBatch, seed: int) -> Tensor:
        """Return the scaled latents (B, F + N, C, H, W) of a batch, sampled from the codec's posterior."""
        if "moments" in batch:
            mean, logvar = batch["moments"].float().chunk(2, dim=2)
        else:
            mean, logvar = self.codec.moments(batch["video"])
        noise = normal(seed, "posterior", batch["clip"], mean.shape[1:]).to(mean)
        return self.codec.latents(mean, logvar, noise)

    def labels(self, batch: VideoBatch, seed: int, dropout: float) -> Tensor | None:
        """Return the labels as the denoiser wants them, each dropped to the null class with this probability."""
        if self.net.conditioning != "class":
            return None
        return torch.where(self._dropped(batch, seed, dropout), self.net.null_label, batch["label"])

    def text(self, batch: VideoBatch, seed: int, dropout: float) -> Text | None:
        """Return the captions as the denoiser wants them, each dropped to the null caption with this probability."""
        if self.net.conditioning != "text":
            return None
        text = batch["text"] if "text" in batch else self.text_encoder.encode(batch["caption"])
        text = Text(text.embeddings.float(), text.mask)  # a cache has half precision
        return text.replaced(self._dropped(batch, seed, dropout), self.net.null_text(text))

    def _dropped(self, batch: VideoBatch, seed: int, dropout: float) -> Tensor:
        """Draw which labels or captions are dropped, (B,) or (B, 1 + N) bool."""
        label = batch["label"]
        draws = uniform(seed, "label", batch["clip"], label[0].numel()).view(label.shape)
        return (draws < dropout).to(label.device)

    def losses(
        self, net: nn.Module, batch: VideoBatch, u: Tensor, seed: int, dropout: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the timesteps (B,) of uniforms ``u`` and the diffusion's losses, each (B, F + N)."""
        x = self.latents(batch, seed)
        labels, text = self.labels(batch, seed, dropout), self.text(batch, seed, dropout)
        num_images = batch["label"].shape[1] - 1 if batch["label"].ndim == 2 else 0
        t = self.diffusion.timesteps(u).to(self.device)
        noise = normal(seed, "noise", batch["clip"], x.shape[1:]).to(x)
        return t, self.diffusion.loss(lambda x, t: net(x, t, labels, text, num_images), x, t, noise)

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of this rank's micro-batch."""
        seed = run_seed()
        u = uniform(seed, "timestep", batch["clip"])[:, 0]
        t, losses = self.losses(self.net, batch, u, seed, self.net.class_dropout)
        loss = losses["loss"].mean()
        self._window.append({"t": t.float(), **{name: value.detach() for name, value in losses.items()}})
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip from the configured step on."""
        if not gradient_clip_val or self.global_step < self.clip_from_step:
            return
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        # Lightning refuses to clip for a fused optimizer even where nothing is to be unscaled
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.net.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then move the average towards the new weights."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step  # steps before this one
        decay = min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1.0 - decay)
        average.update(self.averages, self.net, step + 1)
        if self.average_every and (step + 1) % self.average_every == 0 and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            average.write_snapshot(self.averages, Path(self.trainer.default_root_dir), step + 1)

    def drop_window(self) -> None:
        """Forget what the micro-batches of this step measured."""
        self._window.clear()

    def pop_window(self) -> dict[str, Tensor]:
        """Return what the micro-batches since the last call measured, over all ranks: t (B,), losses (B, F + N)."""
        window = {name: torch.cat([part[name] for part in self._window]) for name in self._window[0]}
        self._window.clear()
        return {name: self._gather(value) for name, value in window.items()}

    def _gather(self, value: Tensor) -> Tensor:
        """Concatenate equally long tensors of all ranks."""
        if self.trainer.world_size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    # -------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """Measure the averaged weights on fixed timesteps and noise."""
        clip = batch["clip"]
        # a low-discrepancy sequence: any number of clips covers the timesteps evenly
        u = torch.frac(0.5 + clip.cpu().double() * GOLDEN_RATIO).float()
        _, losses = self.losses(self.ema, batch, u, HELD_OUT_SEED, dropout=0.0)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        weight = (clip < min(data.val_clips, len(data.dataset("val")))).float()  # padding past the end counts nothing
        # the parts have no weights of training, so losses of differently weighted trainings are comparable
        parts = [value for name, value in losses.items() if name != "loss"]
        loss = sum(parts[1:], start=parts[0])
        self.val_loss.update(loss.mean(dim=1), weight)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out loss at the optimizer step that it belongs to."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss", loss, prog_bar=True, logger=False)
        if self.trainer.logger is not None and not self.trainer.sanity_checking:
            self.trainer.logger.log_metrics({"val/loss": float(loss)}, step=self.global_step)

    @torch.no_grad()
    def sample(
        self,
        numbers: list[int],
        labels: list[int] | None = None,
        seed: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        prompts: list[str] | None = None,
    ) -> Tensor:
        """Draw videos; number n of a seed is the same sample in any batch, on any device.

        Args:
            numbers: Sample numbers, B of them.
            labels: Class of each sample, for a class-conditional model.
            seed: Names the set of samples.
            progress: Wraps the iterable of steps, as tqdm does.
            prompts: Caption of each sample, for a text-conditional model.

        Returns:
            (B, F, 3, H, W) uint8.
        """
        net = self.ema if self.sampling.weights == "ema" else self.net
        if net.conditioning == "class":
            if labels is None:
                raise ValueError("the model is class-conditional; say which class each sample shall have")
            wrong = [label for label in labels if not 0 <= label < net.num_classes]
            if wrong:
                raise ValueError(f"label {wrong[0]} is outside the model's classes 0..{net.num_classes - 1}")
        if net.conditioning == "text" and prompts is None:
            raise ValueError("the model is text-conditional; give a caption for each sample")
        training = net.training
        net.eval()
        target = torch.tensor(labels, device=self.device) if net.conditioning == "class" else None
        shape = (net.num_frames, net.in_channels, *net.input_size)
        clips = torch.tensor(numbers)
        text = self.text_encoder.encode(prompts) if net.conditioning == "text" and prompts is not None else None
        model = Guidance(net, target, self.sampling.guidance, self.sampling.guidance_interval, text=text)
        latents = self.diffusion.sample(
            model,
            normal(seed, "sample", clips, shape).to(self.device),
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            eta=self.sampling.eta,
            generator=[torch_stream(key(seed, "sampler"), n) for n in numbers],
            progress=progress,
        )
        net.train(training)
        return to_uint8(self.codec.decode(latents))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the samples (B, F, 3, H, W) uint8 of these numbers, labels and prompts."""
        return self.sample(batch["number"].tolist(), batch["label"].tolist(), run_seed(), prompts=batch["prompt"])
