"""Metrics as sums over batches and devices (torchmetrics): no value depends on how the clips were split."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from latte_pl.metrics.embedded import ShapesR3D
from latte_pl.metrics.extractors import I3D, Extractor, Inception, clip_features
from latte_pl.metrics.frechet import frechet_distance, kernel_distance, label_of, split_of


class FeatureMetric(Metric):
    """A metric over an extractor's features; the extractor is no submodule, so checkpoints don't hold its weights.

    After ``compute``, ``label`` says "smoke" when there were fewer rows than features (see ``frechet.Score``).
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, extractor: Extractor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._extractor = (extractor,)  # a tuple hides it from nn.Module
        self.label = ""

    @property
    def extractor(self) -> Extractor:
        """The network."""
        return self._extractor[0]

    def _apply(self, fn: Callable, exclude_state: Any = "") -> torch.nn.Module:
        # follows the device but never the dtype: half-precision trainers cast modules, and sums must stay float64
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)


class FrechetDistance(FeatureMetric):
    """Fréchet distance of two sets of clips, from float64 sums of features and of their products.

    Args:
        extractor: the network.
        ddof: 1 divides covariances by N - 1 (clean-fid), 0 by N (StyleGAN-V's FVD).
        reset_real: False keeps the reals when the metric is reset, for values during training.
    """

    higher_is_better = False
    real_sum: Tensor
    real_products: Tensor
    real_count: Tensor
    fake_sum: Tensor
    fake_products: Tensor
    fake_count: Tensor

    def __init__(self, extractor: Extractor, ddof: int = 1, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.ddof = ddof
        self.reset_real = reset_real
        size = extractor.num_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_sum", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, video: Tensor, real: bool) -> None:
        """Add clips (B, F, 3, H, W) uint8 to one side."""
        self.add_features(clip_features(self.extractor, video), real)

    def add_features(self, features: Tensor, real: bool) -> None:
        """Add features (B, k, D) or (N, D) to one side; of cached ones, each rank adds its own share."""
        rows = features.reshape(-1, features.shape[-1]).to(self.real_sum)  # (N, D)
        side = "real" if real else "fake"
        getattr(self, f"{side}_sum").add_(rows.sum(dim=0))
        getattr(self, f"{side}_products").add_(rows.T @ rows)
        getattr(self, f"{side}_count").add_(len(rows))
        self._update_count = max(self._update_count, 1)  # torchmetrics warns of a compute without an update
        self._computed = None

    def compute(self) -> Tensor:
        """Return the distance, float64.

        Raises:
            ValueError: a side has fewer than two rows.
        """
        counts = int(self.real_count), int(self.fake_count)
        if min(counts) < 2:
            raise ValueError(f"a Fréchet distance needs two rows a side, there are {counts[0]} real, {counts[1]} fake")
        real = self._moments(self.real_sum, self.real_products, counts[0])
        fake = self._moments(self.fake_sum, self.fake_products, counts[1])
        self.label = label_of(*counts, self.extractor.num_features)
        return torch.tensor(frechet_distance(*real, *fake, counts), dtype=torch.float64, device=self.device)

    def _moments(self, total: Tensor, products: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        mean = total / count  # (D,)
        cov = (products - count * torch.outer(mean, mean)) / (count - self.ddof)  # (D, D)
        return mean.cpu().numpy(), cov.cpu().numpy()

    def reset(self) -> None:
        """Forget the clips, but not the reals if they are kept."""
        kept = {} if self.reset_real else {k: getattr(self, k) for k in ("real_sum", "real_products", "real_count")}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)


class FrechetVideoDistance(FrechetDistance):
    """FVD as the paper measured it: StyleGAN-V's I3D, covariances divided by N.

    Args:
        extractor: the network; None is ``I3D()``.
        reset_real: False keeps the reals when the metric is reset.

    Raises:
        ValueError: the extractor is the embedded one, whose distance is no FVD.
    """

    def __init__(self, extractor: Extractor | None = None, reset_real: bool = True, **kwargs: Any) -> None:
        if extractor is not None and extractor.name == ShapesR3D.name:
            raise ValueError("features of shapes_r3d make no FVD; use EmbeddedVideoDistance")
        super().__init__(extractor or I3D(), ddof=0, reset_real=reset_real, **kwargs)


class FrechetInceptionDistance(FrechetDistance):
    """FID over all frames of the clips: clean-fid's Inception and arithmetic.

    Args:
        extractor: the network, (B, F, D); None is ``Inception()``.
        reset_real: False keeps the reals when the metric is reset.
    """

    def __init__(self, extractor: Extractor | None = None, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor or Inception(), ddof=1, reset_real=reset_real, **kwargs)


class EmbeddedVideoDistance(FrechetDistance):
    """Fréchet distance of the embedded extractor: offline, comparable with itself alone.

    Args:
        reset_real: False keeps the reals when the metric is reset.
    """

    def __init__(self, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(ShapesR3D(), ddof=1, reset_real=reset_real, **kwargs)


class KernelVideoDistance(FeatureMetric):
    """Unbiased squared MMD of clips with the cubic kernel of KID; keeps the features, since the kernel needs pairs.

    Args:
        extractor: the network; None is ``I3D()``.
    """

    higher_is_better = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, extractor: Extractor | None = None, **kwargs: Any) -> None:
        super().__init__(extractor or I3D(), **kwargs)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, video: Tensor, real: bool) -> None:
        """Add clips (B, F, 3, H, W) uint8 to one side."""
        (self.real if real else self.fake).append(clip_features(self.extractor, video).flatten(0, 1).double())

    def compute(self) -> Tensor:
        """Return the distance, float64; slightly negative values are possible."""
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)  # (N, D), (M, D)
        self.label = label_of(len(real), len(fake), self.extractor.num_features)
        value = kernel_distance(real.cpu().numpy(), fake.cpu().numpy())
        return torch.tensor(value, dtype=torch.float64, device=self.device)


class InceptionScore(FeatureMetric):
    """Inception score of generated clips, with the fixed deal of sample numbers to splits of the paper's code.

    Args:
        extractor: returns class probabilities (B, K): C3D for UCF101.
        num_samples: number of samples of the whole evaluation.
        splits: number of parts.
    """

    higher_is_better = True
    total: Tensor
    plogp: Tensor
    count: Tensor

    def __init__(self, extractor: Extractor, num_samples: int = 2048, splits: int = 10, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.num_samples = num_samples
        self.parts = torch.from_numpy(split_of(num_samples, splits))  # (num_samples,)
        zeros = torch.zeros(splits, extractor.num_features, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("plogp", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, video: Tensor, indices: Tensor) -> None:
        """Add clips (B, F, 3, H, W) uint8 with their sample numbers (B,), in any order."""
        rows = clip_features(self.extractor, video)[:, 0].double()  # (B, K)
        if (rows < -1e-6).any() or ((rows.sum(dim=1) - 1).abs() > 1e-3).any():
            raise ValueError(f"the inception score needs class probabilities; {self.extractor.name} returns others")
        part = self.parts[indices.cpu()].to(rows.device)  # (B,)
        self.total.index_add_(0, part, rows)
        self.plogp.index_add_(0, part, torch.special.xlogy(rows, rows).sum(dim=1))
        self.count.index_add_(0, part, torch.ones_like(part))

    def compute(self) -> Tensor:
        """Return the mean over splits, float64.

        Raises:
            ValueError: not every sample has come in exactly once.
        """
        if not torch.equal(self.count.cpu(), self.parts.bincount(minlength=len(self.count))):
            raise ValueError(f"{int(self.count.sum())} samples came in, the score is defined on {self.num_samples}")
        mean = self.total / self.count[:, None]  # (splits, K)
        entropy = torch.special.xlogy(mean, mean).sum(dim=1)  # (splits,)
        self.label = label_of(self.num_samples, self.num_samples, self.extractor.num_features)
        return (self.plogp / self.count - entropy).exp().mean()
