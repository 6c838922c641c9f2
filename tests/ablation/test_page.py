"""The page of a study: animated samples with their labels, motion by class, and links."""

import re

import pytest
import torch
from studies import ROOT, fabricate, study_in

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.page import motion_by_class, page, samples
from latte_pl.training.media import contact_sheet, gif_bytes

SEEDS = [0, 1, 2, 3]


@pytest.fixture
def comparison(tmp_path):
    """A study whose trials have an animation of ten samples of 16 x 24 pixels, in two lines."""
    study, trials = study_in(tmp_path, scale={"seeds": SEEDS})
    sheet = gif_bytes(contact_sheet(torch.zeros(10, 2, 3, 16, 24, dtype=torch.uint8)), 8)
    for trial in trials:
        held_out = {"loss": 0.5, "hash": "f" * 64, "clips": 6, "data": "Shapes", "interval": 3, "objective": "DDPM"}
        fabricate(trial, 0.5, 10.0, 0.6 + 0.1 * (trial.row == "uniform"), held_out=held_out | {"size": [16, 24]})
        (trial.path / "samples").mkdir()
        (trial.path / "samples/step=0000016.gif").write_bytes(sheet)
    return Comparison.load(study, "proxy", tmp_path / ROOT)


def test_tiles_cut_the_samples_out_of_the_animation(comparison):
    strips = samples(comparison, "uniform")
    assert [strip.seed for strip in strips] == [0, 1, 2]  # of four
    strip = strips[0]
    assert len(strip.tiles) == 10
    width, height = 8 * 26 + 2, 2 * 18 + 2  # gaps of two pixels
    assert (strip.aspect, strip.zoom) == (1.5, pytest.approx(100 * width / 24))
    label, x, y = strip.tiles[9]  # the second one of the second line
    assert label == "right"
    # CSS places p percent of the picture on p percent of the tile: the offset is p (picture - tile)
    assert x / 100 * (width - 24) == pytest.approx(2 + 26)
    assert y / 100 * (height - 16) == pytest.approx(2 + 18)


def test_motion_by_class_is_the_mean_over_seeds(comparison):
    found = motion_by_class(comparison)
    assert found["uniform"] == pytest.approx({"left": 0.8, "right": 0.6})
    assert found["compression"] == pytest.approx({"left": 0.7, "right": 0.5})


def test_page_needs_no_other_file_and_fits_a_phone(comparison):
    html = page(comparison)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert not re.search(r'(src|href)="(?!#)', html)
    assert html.count('class="seed"') == 6
    assert html.count('class="label">left') == 6 * 5
    for table in re.findall(r".*<table", html):
        assert '<div class="wide">' in table  # scrolls by itself
    assert '<a href="index.html">' in page(comparison, overview=True)
