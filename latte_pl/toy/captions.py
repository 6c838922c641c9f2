"""Parse captions of `MovingShapes` and measure the colour of clips, to score samples of a text-conditional model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latte_pl.toy.motion import classify_motion, salience
from latte_pl.toy.shapes import MOTIONS, PALETTE, VERBS, is_held_out


class Asked(NamedTuple):
    """The colour and the motion that a caption asks for."""

    colour: str
    motion: str


def parse(caption: str) -> Asked | None:
    """Parse a caption such as "a red square moves left"; return None if it has another form."""
    words = caption.strip().rstrip(".").lower().split()
    motion = next((motion for motion, verb in VERBS.items() if verb.split() == words[3:]), None)
    if motion is None or words[1] not in PALETTE:
        return None
    return Asked(words[1], motion)


def classify_colour(video: Tensor) -> str | None:
    """Return the colour of ``PALETTE`` that is nearest to the mean colour of the shape in a clip.

    Args:
        video: (F, 3, H, W) uint8.

    Returns:
        The name of the colour; None if no shape is found.
    """
    mass = salience(video)
    if mass is None:
        return None
    inside = torch.from_numpy(np.ascontiguousarray(mass)) >= 0.99  # edges are mixed with the background
    if not inside.any():
        return None
    colour = video.float().permute(0, 2, 3, 1)[inside].mean(dim=0)
    drawn = 0.95 * torch.tensor(
        list(PALETTE.values()), dtype=torch.float32
    )  # the brightness of a shape is 0.9 to 1 times its colour
    return list(PALETTE)[int((drawn - colour).norm(dim=1).argmin())]


def judge(videos: Tensor, prompts: Sequence[str], held_out: int = 0) -> str:
    """Describe how many samples move and are coloured as their captions ask.

    Combinations that were trained with and new combinations are counted separately.

    Args:
        videos: Samples (B, F, 3, H, W) uint8.
        prompts: Caption of each sample. Captions of another form are not scored; their number is reported.
        held_out: The argument of `MovingShapes`.
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
        lines.append(f'{left} prompts not scored: they do not have the form "a red square moves left"')
    return "\n".join(lines)
