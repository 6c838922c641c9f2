import pytest

from latte_pl.cli import main
from latte_pl.metrics import EvaluationProtocol, Record, Score, differences_from_paper, paper_values, published_values
from latte_pl.metrics.paper import STATUS


def protocol(name="paper-fvd2048-16f", **values):
    given = {"dataset": "UCF101", "fingerprint": "f", "split": "train", "num_real": 2048, "num_generated": 2048}
    given |= {"interval": 3, "height": 256, "width": 256, "resize": "centre-crop", "generated_interval": 1}
    given |= {"extractor_sha256": "e" * 64, "sampler": "ddpm", "steps": 250, "eta": 1.0, "guidance": 1.0}
    given |= {"guidance_interval": [0, 1000], "labels": "none", "precision": "16"}
    stated = EvaluationProtocol.stated(name)
    return EvaluationProtocol.load(name, **{k: v for k, v in given.items() if k not in stated} | values)


def test_every_value_of_the_paper_is_shipped_with_its_status():
    values = paper_values()
    assert len(values) == 70
    assert {value.status for value in values} == set(STATUS)
    latte = {(v.dataset, v.value) for v in values if v.system == "Latte" and v.metric == "FVD16"}
    assert latte == {("UCF101", 478.0), ("FaceForensics", 34.0), ("SkyTimelapse", 59.82), ("Taichi-HD", 159.6)}
    again = [v for v in values if v.table == "fvd-remeasured" and v.dataset == "UCF101"]
    assert [v.text() for v in again] == ["165.04 (measured again, quoted by Skip-DiT)"]


@pytest.mark.parametrize(
    ("dataset", "count"), [("UCF101", 11), ("ucf-101", 11), ("FFS", 10), ("TaichiHD", 6), ("Shapes", 0)]
)
def test_published_values_are_found_by_dataset_and_metric(dataset, count):
    found = published_values(protocol(dataset=dataset))
    assert len(found) == count
    assert {value.metric for value in found} <= {"FVD16"}
    scores = published_values(protocol("paper-is2048-ucf101", dataset=dataset))
    assert len(scores) == (8 if "UCF" in dataset.upper() else 0)
    assert published_values(protocol(dataset=dataset, num_frames=8)) == []


def test_published_values_have_a_column_of_their_own(tmp_path, capsys):
    paths = []
    for model in ("ours", "theirs"):
        scores = {"fvd": Score(512.5, "full"), "kvd": Score(1.5, "full")}
        paths.append(str(tmp_path / f"{model}.json"))
        Record.make(model, scores, protocol(), 1.0).write(paths[-1])
    main(["compare", *paths])
    lines = capsys.readouterr().out.splitlines()
    (head,) = (line for line in lines if line.startswith("model"))
    column, measured = head.index("published"), head.index("fvd")
    rows = {line.split("  ")[0]: line for line in lines[lines.index(head) + 1 :]}
    assert rows["ours"][measured:].startswith("512.5")
    assert not rows["ours"][column:]
    assert rows["Latte"][column:] == "478 (quoted by AR-Diffusion Table 1; OmniTokenizer Table 6)"
    assert not rows["Latte"][measured:column].strip()
    assert rows["Latte (released weights)"][column:] == "165.04 (measured again, quoted by Skip-DiT)"
    assert any(line.startswith("published: values of others") for line in lines)
    main(["compare", *paths, "--published=false"])
    assert "478" not in capsys.readouterr().out


def test_differences_from_the_paper_are_listed(tmp_path):
    assert differences_from_paper(protocol()) == []
    assert differences_from_paper(protocol("files-paper-fvd2048-16f", generated_codec="mp4 h264 yuv420p crf 5")) == []
    found = differences_from_paper(protocol("files-fvd-16f", interval=1, num_generated=24, num_real=40))
    assert found == [
        "real clips have interval 1, the paper's 3",
        "frames are rescaled by the bilinear filter, the paper's by lanczos",
        "frames go through JPEG of quality 0 (0: none), the paper's through 75",
        "generated clips are none, the paper's mp4 h264 yuv420p crf 5",
        "starts of real clips are first, the paper's random",
        "real videos have at least 0 frames (0: those of a clip), the paper's 48",
        "24 generated clips, the paper has 2048",
        "40 real clips; the paper has 2048, or one of each training video",
    ]
    assert differences_from_paper(protocol("paper-fid50k-full", num_real=704)) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_real": 700}, "700 real clips; the paper has 2048, or one of each training video"),
        ({"generated_interval": 3}, "generated clips have interval 3, the paper's 1"),
        ({"split": "test"}, "real clips are of the test split, the paper's of train"),
        ({"sampler": "ddim", "eta": 0.5}, "samples are drawn by ddim, the paper's by ddpm"),
        ({"steps": 50}, "samples take 50 steps, the paper's 250"),
        ({"weights": "raw"}, "samples are drawn from the raw weights, the paper's from the ema weights"),
    ],
)
def test_each_difference_from_the_paper_is_named(values, expected):
    assert expected in differences_from_paper(protocol(**values), num_videos=704)


def test_all_videos_of_a_small_data_set_are_as_many_as_the_papers():
    assert differences_from_paper(protocol(num_real=704), num_videos=704) == []
    (only,) = differences_from_paper(protocol("files-toy-8f"))
    assert only == "the metric is toy_video_distance, toy_kernel_distance; the paper's are FVD, FID and IS"
