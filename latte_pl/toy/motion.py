"""Classify the motion in a clip of `MovingShapes` from its pixels, without learning, to score samples.

A plane fitted to the colours is the background. Pixels that differ from it by more than about half of the clip's
contrast are the shape. The centroid of the shape and its size (the root of the area) over time determine the class. The
first rule that applies is used:

* none, if there is no contrast, or if in too many frames the shape is missing, scattered or most of the picture;
* grow or shrink, if the logarithm of the size changes steadily by more than 0.25 (none, if it does so unsteadily);
* an orbit, if the centroid follows a circle through more than 100 degrees, always in the same direction;
* a translation, if the centroid follows a line steadily along one axis, for 0.12 of the picture's side or more;
* none, for static, shuffled and incoherent clips.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating[Any]]

LEFT, RIGHT, UP, DOWN, CLOCKWISE, COUNTER_CLOCKWISE, GROW, SHRINK = range(8)
NONE = -1


def classify_motion(video: Tensor) -> int:
    """Return the class of the motion in a clip.

    Args:
        video: (F, 3, H, W) uint8, with at least three frames.

    Returns:
        An index into ``MovingShapes.class_names``; -1 if the clip shows none of these motions.

    Raises:
        ValueError: The shape is not (F, 3, H, W), or there are fewer than three frames.
    """
    if video.ndim != 4 or video.shape[1] != 3 or video.shape[0] < 3:
        raise ValueError(f"video has shape {tuple(video.shape)}; it must be (F, 3, H, W) with at least three frames")
    tracked = track(video)
    if tracked is None:
        return NONE
    times, path, size = tracked
    change, wobble = _line(times, np.log(size)[:, None])
    drift, scatter = _line(times, path)
    if abs(change[0]) > 0.25:
        return NONE if wobble > 0.15 * abs(change[0]) else GROW if change[0] > 0 else SHRINK
    turn = _turn(path)
    if abs(turn) > np.deg2rad(100):
        return CLOCKWISE if turn > 0 else COUNTER_CLOCKWISE
    along = int(np.abs(drift).argmax())
    distance, aside = abs(drift[along]), abs(drift[1 - along])
    if distance < 0.12 or aside > 0.4 * distance or scatter > 0.15 * distance:
        return NONE
    return ((LEFT, RIGHT), (UP, DOWN))[along][int(drift[along] > 0)]


def track(video: Tensor) -> tuple[Array, Array, Array] | None:
    """Track the shape of a clip (F, 3, H, W).

    Returns:
        For the K frames that show one shape: times in [0, 1] (K,), centroids (K, 2) as x and y (downwards), and roots
        of the area (K,). Lengths are relative to the shorter side of the picture. None if too few frames show one
        shape.
    """
    mass = salience(video)
    if mass is None:
        return None
    num_frames, height, width = mass.shape
    area = mass.sum(axis=(1, 2))
    y, x = np.arange(height, dtype=np.float32) + 0.5, np.arange(width, dtype=np.float32) + 0.5
    weight = mass / np.maximum(area, 1e-6)[:, None, None]
    path = np.stack([(weight * x).sum(axis=(1, 2)), (weight * y[:, None]).sum(axis=(1, 2))], axis=1)  # (F, 2)
    spread = (weight * ((x - path[:, :1, None]) ** 2 + (y[:, None] - path[:, 1:, None]) ** 2)).sum(axis=(1, 2))
    # a disc has spread = area / 2 pi, rings and crosses up to twice that, scattered pixels many times that
    good = (area > 0.003 * height * width) & (area < 0.5 * height * width) & (2 * np.pi * spread < 3 * area)
    if good.sum() < max(3, 0.75 * num_frames):
        return None
    side = min(height, width)
    times = np.linspace(0, 1, num_frames)
    return times[good], path[good] / side, np.sqrt(area[good]) / side


def salience(video: Tensor) -> Array | None:
    """Return how much each pixel of a clip (F, 3, H, W) belongs to the shape, (F, H, W) in [0, 1]; None without one."""
    frames = video.numpy().astype(np.float32)
    num_frames = len(frames)
    distance = np.linalg.norm(frames - _background(frames), axis=1)  # (F, H, W)
    flat = distance.reshape(num_frames, -1)
    top = max(4, flat.shape[1] // 200)
    contrast = float(np.median(np.partition(flat, -top, axis=1)[:, -top:].mean(axis=1)))
    if contrast < 30:
        return None
    return np.clip((distance / contrast - 0.35) / 0.3, 0, 1)  # soft edges, for sub-pixel areas and centroids


def _background(frames: Array) -> Array:
    """Fit a plane (3, H, W) to the colours, by least squares that give pixels of the shape little weight."""
    median = np.median(frames, axis=0)  # (3, H, W)
    height, width = median.shape[1:]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    basis = np.stack([np.ones_like(x), x, y]).reshape(3, -1)  # (3, HW)
    colours = median.reshape(3, -1)
    edge = np.ones((height, width), bool)
    edge[2:-2, 2:-2] = False
    fit = np.median(colours[:, edge.ravel()], axis=1)[:, None]  # start from the colour of the border
    for _ in range(4):
        weight = 1 / (1 + (np.square(colours - fit).sum(axis=0) / 30**2) ** 2)  # (HW,)
        coefficients = np.linalg.solve((basis * weight) @ basis.T, (basis * weight) @ colours.T)  # (3, 3)
        fit = coefficients.T @ basis
    return fit.reshape(median.shape)


def _line(times: Array, values: Array) -> tuple[Array, float]:
    """Fit lines to values (K, n) over times; return their change from time 0 to 1 (n,) and the RMS of the residuals."""
    centred = times - times.mean()
    slope = centred @ (values - values.mean(axis=0)) / (centred @ centred)
    rest = values - values.mean(axis=0) - centred[:, None] * slope
    return slope, float(np.sqrt(np.square(rest).sum(axis=1).mean()))


def _turn(path: Array) -> float:
    """Return the angle that a path (K, 2) covers on its circle, positive if clockwise; 0 if it follows no circle."""
    centred = path - path.mean(axis=0)
    long, short = np.linalg.svd(centred, compute_uv=False)
    if short < 0.12 * long:  # the path is straight (an arc of 100 degrees has 0.25), so that no circle can be fitted
        return 0.0
    design = np.column_stack([centred, np.ones(len(path))])
    a, b, c = np.linalg.lstsq(design, np.square(centred).sum(axis=1), rcond=None)[0]  # Kasa's algebraic fit
    offset = centred - (a / 2, b / 2)
    radius = np.sqrt(max(c + a * a / 4 + b * b / 4, 0))
    misfit = np.sqrt(np.square(np.linalg.norm(offset, axis=1) - radius).mean())
    if not 0.08 < radius < 0.5 or misfit > 0.25 * radius:
        return 0.0
    steps = np.diff(np.unwrap(np.arctan2(offset[:, 1], offset[:, 0])))
    total = steps.sum()
    return float(total) if (np.sign(steps) == np.sign(total)).mean() > 0.8 else 0.0
