"""The evaluation of the paper's code and this package's, on the same videos."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import official_tool
import pytest
import torch
from safetensors import safe_open

from latte_pl.data.folder import VideoFolder
from latte_pl.evaluation.extractors import EXTRACTORS
from latte_pl.evaluation.folders import evaluate_folders
from latte_pl.metrics import C3D, I3D, EvaluationProtocol, InceptionLegacy, clip_features
from latte_pl.metrics import frechet_from_features as frechet
from latte_pl.metrics.clips import RealClips, finished_clips, through_files, usable_videos
from latte_pl.metrics.downloads import file_sha256
from latte_pl.metrics.inception import inception_score
from latte_pl.metrics.lossy import write_mp4

FIXTURE = Path(__file__).parents[1] / "fixtures" / "official_metrics.safetensors"
SIZE = official_tool.SIZE


def read_results(path):
    """Return features, scores and choices that the official tool stored, by metric."""
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["facts"])
        return facts | {m: facts[m] | {"features": file.get_tensor(m)} for m in official_tool.METRICS}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return official_tool.write_stand_ins(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return official_tool.write_fixture_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def sides(folders):
    return open_sides(folders)


def open_sides(folders):
    """Return the real and the generated videos, and the protocol of the paper's code."""
    name = "files-paper-fvd2048-16f"
    real, fake = (VideoFolder(folder, size=SIZE, num_frames=16, interval=i) for folder, i in zip(folders, (3, 1)))
    count = len(usable_videos(real, EvaluationProtocol.stated(name)))
    given = {"dataset": "real", "fingerprint": "f", "split": "all", "height": SIZE, "width": SIZE}
    return real, fake, EvaluationProtocol.load(name, num_videos=count, num_generated=len(fake), **given)


def read_as_official(real, fake, protocol, choices, network):
    """Return our features (N, 400) of the clips that the official tool chose: video and first frame of each."""
    extractor = I3D(network, file_sha256(network))
    reals, rows = RealClips(real, protocol), []
    for number, (name, start) in enumerate(choices):
        if number < protocol.num_real:
            assert 0 <= start <= real.length(int(name)) - 46
            clip = reals.clip(int(name), start)
        else:
            assert start == 0
            (found,) = finished_clips(fake, protocol, [int(name)])
            clip = through_files(protocol, found[None])[0]
        rows.append(clip_features(extractor, clip[None])[0])
    return torch.cat(rows).numpy()


def test_features_and_value_of_fvd_are_those_of_the_official_tool(sides, networks):
    official = read_results(FIXTURE)["fvd2048_16f"]
    assert sides[2].num_real == 7  # of 8: the tool drops the video of 47 frames
    assert sorted(name for name, _ in official["choices"][:7]) == [f"{n:03d}" for n in range(1, 8)]
    features = read_as_official(*sides, official["choices"], networks["fvd2048_16f"])
    np.testing.assert_allclose(features, official["features"], rtol=0, atol=1e-6 * np.abs(features).max())
    value = frechet(features[:7], features[7:], ddof=0)
    # seven clips: the tool's matrix square root of a singular matrix has errors of this size, as the next test shows
    assert value == pytest.approx(official["scores"]["fvd2048_16f"], rel=1e-5)


def test_value_of_fvd_is_that_of_the_official_tool():
    real, fake = official_tool.draw_features()
    assert frechet(real, fake, ddof=0) == pytest.approx(read_results(FIXTURE)["distance"], rel=1e-6)
    assert frechet(real, fake, ddof=1) != pytest.approx(read_results(FIXTURE)["distance"], rel=1e-4)


def test_value_of_fid_is_that_of_the_official_tool(folders, networks, monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "inception_legacy", partial(InceptionLegacy, num_features=64))
    official = read_results(FIXTURE)["fid50k_full"]
    record = evaluate_folders(
        *map(str, folders), "files-paper-fid50k-full", size=SIZE, extractor_path=str(networks["fid50k_full"])
    )
    assert record.scores["fid_legacy"].value == pytest.approx(official["scores"]["fid50k_full"], rel=1e-6)
    assert len(official["features"]) == sum(official_tool.LENGTHS) + 16 * 8


def test_inception_score_is_that_of_the_official_tool(folders, networks, sides):
    _, fake, protocol = sides
    official = read_results(FIXTURE)["isv2048_ucf"]
    extractor = C3D(networks["isv2048_ucf"])
    order = [int(name) for name, _ in official["choices"]]
    clips = torch.stack([through_files(protocol, clip[None])[0] for clip in finished_clips(fake, protocol, order)])
    rows = clip_features(extractor, clips)[:, 0].numpy()
    np.testing.assert_allclose(rows, official["features"], rtol=0, atol=1e-6)
    assert inception_score(rows, splits=4) == pytest.approx(official["scores"]["mean"], rel=1e-6)


@pytest.mark.slow
def test_the_official_tool_and_ours_agree_on_more_clips_than_features(tmp_path, networks):
    """Set LATTE_OFFICIAL to a checkout of github.com/Vchitect/Latte."""
    checkout = os.environ.get("LATTE_OFFICIAL")
    if not checkout:
        pytest.skip("LATTE_OFFICIAL is not set")
    count, folders = 440, (tmp_path / "real", tmp_path / "fake")
    samples = []
    for folder in folders:
        folder.mkdir()
    for n in range(count):
        official_tool.write_lossless(folders[0] / f"{n:03d}.mkv", official_tool.draw_video(48, (36, 44), n))
        clip = torch.from_numpy(official_tool.draw_video(16, (SIZE, SIZE), 1000 + n)).permute(0, 3, 1, 2)
        with (folders[1] / f"{n:03d}.mp4").open("wb") as file:
            write_mp4(file, clip, 5)
        samples.append(clip)
    output = tmp_path / "scores.safetensors"
    script = [sys.executable, official_tool.__file__, "--official", checkout]
    subprocess.run([*script, "--real", folders[0], "--fake", folders[1], "--output", output], check=True, timeout=1000)
    official = read_results(output)["fvd2048_16f"]
    real, fake, protocol = open_sides(folders)
    features = read_as_official(real, fake, protocol, official["choices"], networks["fvd2048_16f"])
    np.testing.assert_allclose(features, official["features"], rtol=0, atol=1e-6 * np.abs(features).max())
    value = frechet(features[:count], features[count:], ddof=0)
    assert value == pytest.approx(official["scores"]["fvd2048_16f"], rel=1e-6)
    # samples of a model, which never were in a file, have the same features
    model = dataclasses.replace(protocol, weights="ema", generated_codec="mp4 h264 yuv420p crf 5")
    extractor = I3D(networks["fvd2048_16f"], file_sha256(networks["fvd2048_16f"]))
    order = [int(name) for name, _ in official["choices"][count:]]
    again = clip_features(extractor, through_files(model, torch.stack([samples[n] for n in order])))[:, 0].numpy()
    np.testing.assert_allclose(again, official["features"][count:], rtol=0, atol=1e-6 * np.abs(features).max())
