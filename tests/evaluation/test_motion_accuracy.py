"""Motion accuracy counts the samples whose observed motion is their label."""

import pytest
import torch

from latte_pl.evaluation.motion import described, motion_accuracy
from latte_pl.toy import MovingShapes, Shapes
from latte_pl.toy.shapes import MOTIONS

NAMES = ["left", "right", "up", "down"]


def test_accuracy_is_the_share_of_samples_that_move_as_labelled():
    found = motion_accuracy([0, 0, -1, 2, 1, 2], [0, 0, 0, 2, 2, 2], NAMES)
    assert found["value"] == pytest.approx(4 / 6)
    assert found["by_class"] == {"left": pytest.approx(2 / 3), "up": pytest.approx(2 / 3)}
    assert (found["chance"], found["clips"]) == (0.25, 6)
    assert described(found) == "4 of 6 move as labelled (67%; chance 25.0%)"


def test_observed_motions_are_the_classes_of_drawn_clips():
    drawn = MovingShapes("val", size=(32, 48))
    videos = torch.stack([drawn.read(n, 8) for n in range(24)])
    labels = [drawn.label(n) for n in range(24)]
    observed = Shapes().observed_motions(videos)
    assert motion_accuracy(observed, labels, MOTIONS)["value"] > 0.9
    still = videos[:, :1].expand_as(videos)
    assert Shapes().observed_motions(still) == [-1] * 24
    assert Shapes().observed_motions(videos[:, :2]) is None  # two frames show no motion
