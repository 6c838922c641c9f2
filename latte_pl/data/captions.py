"""Read captions of ``MovingShapes`` and the colour of its clips back, to score samples of captions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latte_pl.data.motion import classify_motion, salience
from latte_pl.data.shapes import MOTIONS, PALETTE, VERBS, is_held_out


class Asked(NamedTuple):
    """What a caption asks for."""

    colour: str
    motion: str


def parse(caption: str) -> Asked | None:
    """Return what a caption such as "a red square moves left" asks for, None when it is not of that form."""
    words = caption.strip().rstrip(".").lower().split()
    motion = next((motion for motion, verb in VERBS.items() if verb.split() == words[3:]), None)
    if motion is None or words[1] not in PALETTE:
        return None
    return Asked(words[1], motion)


def classify_colour(video: Tensor) -> str | None:
    """Return the colour of ``PALETTE`` nearest to a clip's shape, by the mean over its pixels; None without a shape.

    Args:
        video: (F, 3, H, W) uint8.
    """
    mass = salience(video)
    if mass is None:
        return None
    inside = torch.from_numpy(np.ascontiguousarray(mass)) >= 0.99  # an edge mixes in the background
    if not inside.any():
        return None
    colour = video.float().permute(0, 2, 3, 1)[inside].mean(dim=0)
    drawn = 0.95 * torch.tensor(list(PALETTE.values()), dtype=torch.float32)  # brightness varies from 0.9 to 1
    return list(PALETTE)[int((drawn - colour).norm(dim=1).argmin())]


def judge(videos: Tensor, prompts: Sequence[str], held_out: int = 0) -> str:
    """Say which share of samples moves and is coloured as asked, of trained and of new combinations apart.

    Args:
        videos: (B, F, 3, H, W) uint8.
        prompts: caption of each; those of another form are counted and not judged.
        held_out: as of ``MovingShapes``.
    """
    groups: dict[str, list[tuple[bool, bool]]] = {"trained combinations": [], "new combinations": []}
    for video, prompt in zip(videos, prompts):
        if (asked := parse(prompt)) is not None:
            motion = classify_motion(video)
            shown = MOTIONS[motion] == asked.motion if motion >= 0 else False, classify_colour(video) == asked.colour
            groups["new combinations" if is_held_out(*asked, held_out) else "trained combinations"].append(shown)
    lines = []
    for name, verdicts in groups.items():
        if total := len(verdicts):
            moves, coloured = (sum(verdict[k] for verdict in verdicts) for k in range(2))
            both = sum(all(verdict) for verdict in verdicts)
            lines.append(
                f"{name}: of {total} samples {moves} move ({moves / total:.0%}; chance {1 / len(MOTIONS):.1%}) and "
                f"{coloured} are coloured ({coloured / total:.0%}; chance {1 / len(PALETTE):.1%}) as asked, "
                f"{both} both ({both / total:.0%})"
            )
    if left := len(prompts) - sum(map(len, groups.values())):
        lines.append(f'{left} prompts not judged: not of the form "a red square moves left"')
    return "\n".join(lines)
