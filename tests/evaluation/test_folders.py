import json
from pathlib import Path

import pytest
import torch
import yaml
from fake_videos import write_xvid
from PIL import Image

from latte_pl.cli import main
from latte_pl.cli.evaluate import evaluate
from latte_pl.data.folder import VideoFolder
from latte_pl.evaluation.extractors import EXTRACTORS
from latte_pl.evaluation.folders import codec_of, dataset_name, evaluate_folders
from latte_pl.metrics import METRICS, EvaluationProtocol, Metric, Record, clip_features, frechet_from_features
from latte_pl.toy import MovingShapes
from latte_pl.toy.extractor import ShapesR3D
from latte_pl.training.media import gif_bytes, save_mp4, save_png

NUM = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders "real" and "fake" with NUM MP4 files each, "frames" with the real videos as frames, and data.yaml."""
    root = tmp_path_factory.mktemp("videos")
    for split, name in (("val", "real"), ("train", "fake")):
        (root / name).mkdir()
        videos = MovingShapes(split, size=(32, 48))
        for index in range(NUM):
            save_mp4(videos.read(index, 8, 2), root / name / f"{index:03d}.mp4", 8)
    for index in range(NUM):
        folder = root / "frames" / f"{index:03d}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(MovingShapes("val", size=(32, 48)).read(index, 8, 2)):
            save_png(frame, folder / f"{number:02d}.png")
    (root / "data.yaml").write_text(
        "data: {class_path: latte_pl.toy.Shapes, init_args: {size: [32, 48], num_frames: 8, interval: 2}}"
    )
    return root


def evaluated(folders, real, fake, *more):
    """Run the command and return its record."""
    path = folders / "record.json"
    main(["evaluate", f"--real={folders / real}", f"--fake={folders / fake}", f"--output={path}", *more])
    return Record.read(path)


def test_score_is_the_distance_of_the_decoded_videos(folders, capsys):
    record = evaluated(folders, "real", "fake")
    sides = []
    for name in ("real", "fake"):
        videos = VideoFolder(folders / name, size=(32, 48), num_frames=8, interval=1)
        clips = torch.stack([videos.read(index, 8, 1, None) for index in range(NUM)])
        sides.append(clip_features(ShapesR3D(), clips)[:, 0].numpy())
    value = record.scores["toy_video_distance"].value
    assert value == pytest.approx(frechet_from_features(*sides, ddof=1), rel=1e-9)
    assert record.protocol.name == "files-toy-8f"
    assert (record.protocol.height, record.protocol.width) == (32, 48)  # the size of the generated videos
    assert (record.protocol.num_real, record.protocol.num_generated, record.protocol.split) == (NUM, NUM, "all")
    output = capsys.readouterr()
    assert "smoke" in output.out
    assert "generated clips: 100%" in output.err


def test_the_command_says_what_it_read_and_what_is_not_comparable(folders, capsys):
    record = evaluated(folders, "real", "fake", "--size=64")
    lines = capsys.readouterr().out.splitlines()
    read = "32x48 pixels, 8 fps, interval 1 (0.125 s apart), mp4 h264 yuv420p crf 10"
    assert f"real       16 clips of 16 videos in {folders / 'real'}: {read}" in lines
    assert f"generated  16 clips of 16 videos in {folders / 'fake'}: {read}" in lines
    assert "not comparable with the paper's values:" in lines
    assert "  the metric is toy_video_distance, toy_kernel_distance; the paper's are FVD, FID and IS" in lines
    assert "[low, high]: 95% interval (8-fold jackknife) of the value at these numbers of clips" in lines
    assert record.about["real"]["sizes"] == {"32x48": 16}
    assert record.about["generated"]["seconds_between_frames"] == 0.125
    assert record.about["generated"]["files"] == {"mp4 h264 yuv420p crf 10": 16}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("ffs/train", "ffs"), ("ffs", "ffs"), ("ucf101/test/videos", "ucf101"), ("/data/train", "train")],
)
def test_name_of_a_data_set_is_not_that_of_its_split(folder, name):
    assert dataset_name(Path(folder)) == name


@pytest.mark.parametrize("kind", ["gif", "mp4", "frames"])
def test_sides_may_have_any_format_and_size(folders, tmp_path, kind):
    for index in range(4):
        clip = MovingShapes("train", size=(40 + 8 * index, 64)).read(index, 8, 2)
        if kind == "gif":
            (tmp_path / f"{index}.gif").write_bytes(gif_bytes(clip, 8))
        elif kind == "mp4":
            save_mp4(clip, tmp_path / f"{index}.mp4", 8)
        else:
            (tmp_path / str(index)).mkdir()
            for number, frame in enumerate(clip):
                save_png(frame, tmp_path / str(index) / f"{number}.png")
    for sides in ((folders / "real", tmp_path), (tmp_path, folders / "fake")):
        record = evaluate_folders(*map(str, sides), size=(32, 32))
        assert {record.protocol.num_real, record.protocol.num_generated} == {4, NUM}
        name = "generated" if sides[1] == tmp_path else "real"
        assert record.about[name]["sizes"] == {f"{40 + 8 * index}x64": 1 for index in range(4)}


def test_videos_in_several_formats_are_refused(folders, tmp_path):
    """A folder of 24 samples as MP4 and GIF and a contact sheet was counted as 49 clips: 96.98 instead of 89.96."""
    clip = MovingShapes("train", size=(32, 48)).read(0, 8, 2)
    save_mp4(clip, tmp_path / "0000_left.mp4", 8)
    (tmp_path / "0000_left.gif").write_bytes(gif_bytes(clip, 8))
    for sides in ((folders / "real", tmp_path), (tmp_path, folders / "fake")):
        with pytest.raises(ValueError, match=r"contains 1 videos in several formats, such as 0000_left\.\w+ and 0000_"):
            evaluate_folders(*map(str, sides))
    (tmp_path / "0000_left.gif").unlink()
    (tmp_path / "pngs" / "0000_left").mkdir(parents=True)
    save_png(clip[0], tmp_path / "pngs" / "0000_left" / "0.png")
    with pytest.raises(ValueError, match="keep one format in the folder"):
        evaluate_folders(str(folders / "real"), str(tmp_path))


def test_the_output_of_predict_is_its_videos(folders, tmp_path):
    (tmp_path / "videos").symlink_to(folders / "fake")
    (tmp_path / "previews").mkdir()
    clip = MovingShapes("train", size=(32, 48)).read(0, 8, 2)
    (tmp_path / "previews" / "000.gif").write_bytes(gif_bytes(clip, 8))
    (tmp_path / "contact_sheet.gif").write_bytes(gif_bytes(clip, 8))
    (tmp_path / "samples.json").write_text(json.dumps({"complete": True}))
    record = evaluate_folders(str(folders / "real"), str(tmp_path))
    assert record.scores == evaluate_folders(str(folders / "real"), str(folders / "fake")).scores
    (tmp_path / "samples.json").write_text(json.dumps({"complete": False}))
    with pytest.raises(ValueError, match="latte predict did not finish in"):
        evaluate_folders(str(folders / "real"), str(tmp_path))


@pytest.fixture(scope="module")
def faster(tmp_path_factory):
    """The first videos of "real" with twice as many frames a second, each frame twice."""
    root = tmp_path_factory.mktemp("faster")
    for index in range(4):
        save_mp4(MovingShapes("val", size=(32, 48)).read(index, 16, 1), root / f"{index:03d}.mp4", 16)
    return root


def test_sides_with_other_times_between_frames_are_refused(folders, faster):
    sides = str(faster), str(folders / "fake")
    message = r"are 0\.0625 s apart and those of the generated clips 0\.125 s, .* --interval \(1\)"
    with pytest.raises(ValueError, match=message):
        evaluate_folders(*sides)
    with pytest.raises(ValueError, match=r"clips 0\.0625 s"):
        evaluate_folders(*reversed(sides))
    by_interval = evaluate_folders(*sides, interval=2)
    assert by_interval.protocol.name == "files-toy-8f"
    by_time = evaluate_folders(*sides, fps=8)
    assert (by_time.protocol.fps, by_time.protocol.name) == (8, "files-toy-8f+fps=8.0")
    assert by_time.protocol.hash != by_interval.protocol.hash
    values = [r.scores["toy_video_distance"].value for r in (by_interval, by_time)]
    assert values[0] == values[1]  # every second frame in both
    ignored = evaluate_folders(*sides, rates="ignore")
    assert ignored.scores["toy_video_distance"].value != values[0]
    with pytest.raises(ValueError, match="rates is 'maybe'; it must be check or ignore"):
        evaluate_folders(*sides, rates="maybe")


def test_similar_times_are_compared(folders, tmp_path):
    """The authors' clips have 8 frames a second, and every third frame of their data 8.33."""
    for index in range(2):
        save_mp4(MovingShapes("val", size=(32, 48)).read(index, 16, 1), tmp_path / f"{index}.mp4", 25 / 3)
    assert evaluate_folders(str(tmp_path), str(folders / "fake")).about["real"]["seconds_between_frames"] == (
        pytest.approx(0.12, rel=1e-3)
    )


def test_what_files_lost_is_part_of_the_protocol(folders):
    """MP4 and PNG files of the same samples gave 92.73 and 89.96 under one hash."""
    mp4, png = (evaluate_folders(str(folders / "fake"), str(folders / name)) for name in ("real", "frames"))
    assert mp4.protocol.generated_codec == "mp4 h264 yuv420p crf 10"
    assert png.protocol.generated_codec == "none"
    assert mp4.protocol.name == png.protocol.name
    assert mp4.protocol.hash != png.protocol.hash
    assert "generated_codec" not in png.protocol.to_dict()  # so that earlier hashes of lossless files remain


def test_container_codec_and_quality_of_files_are_found(tmp_path):
    clip = MovingShapes("val", size=(32, 48)).read(0, 8, 2)
    save_mp4(clip, tmp_path / "a.mp4", 8)
    assert codec_of(tmp_path / "a.mp4") == "mp4 h264 yuv420p crf 10"
    (tmp_path / "a.gif").write_bytes(gif_bytes(clip, 8))
    assert codec_of(tmp_path / "a.gif") == "gif"
    write_xvid(tmp_path / "a.avi", 4)
    assert codec_of(tmp_path / "a.avi") == "avi mpeg4 yuv420p"
    for quality in (30, 75, 95):
        (tmp_path / str(quality)).mkdir()
        Image.fromarray(clip[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{quality}/0.jpg", quality=quality)
        assert codec_of(tmp_path / str(quality)) == f"jpeg q{quality}"
    (tmp_path / "png").mkdir()
    save_png(clip[0], tmp_path / "png" / "0.png")
    assert codec_of(tmp_path / "png") == "png"


def test_real_videos_are_not_repeated(folders):
    with pytest.raises(ValueError, match=r"num_real is 256, but .*real has 16 usable videos; every video is used once"):
        evaluate_folders(str(folders / "real"), str(folders / "fake"), num_real=256)
    record = evaluate_folders(str(folders / "real"), str(folders / "fake"), num_real=5)
    assert (record.protocol.num_real, record.about["real"]["clips"]) == (5, 5)


def test_folds_have_the_classes_of_the_folders(folders, tmp_path):
    for index in range(NUM):
        place = tmp_path / f"class{index % 4}"
        place.mkdir(exist_ok=True)
        (place / f"{index}.mp4").symlink_to(folders / "fake" / f"{index:03d}.mp4")
    flat = evaluate_folders(str(folders / "real"), str(folders / "fake"))
    classes = evaluate_folders(str(folders / "real"), str(tmp_path))
    flat, classes = (record.scores["toy_video_distance"] for record in (flat, classes))
    assert classes.value == pytest.approx(flat.value, rel=1e-9)
    assert classes.interval != flat.interval


def test_only_protocols_of_generated_videos_need_no_real_ones(folders, tmp_path, monkeypatch):
    class Classifier:
        name, sha256, num_features = "c3d", "0" * 64, 3

        def __init__(self, path=None):
            pass

        def __call__(self, video):
            return video.float().mean(dim=(1, 3, 4)).softmax(dim=-1)

    monkeypatch.setitem(EXTRACTORS, "c3d", Classifier)
    stated = EvaluationProtocol.stated("files-paper-is2048-ucf101")
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in stated.items() if k != "name"} | {"num_frames": 8}))
    record = evaluate_folders(None, str(folders / "fake"), str(path), size=32)
    assert 1 <= record.scores["inception_score"].value < 3
    assert record.protocol.name == "few+height=32+num_generated=16+width=32"
    with pytest.raises(ValueError, match="set --real to their folder"):
        evaluate_folders(None, str(folders / "fake"))


def test_frame_folders_and_videos_have_the_same_features(folders):
    same = evaluated(folders, "real", "frames").scores["toy_video_distance"].value  # apart from the compression
    assert 0 <= same < evaluated(folders, "fake", "frames").scores["toy_video_distance"].value / 10
    itself = evaluated(folders, "frames", "frames").scores["toy_video_distance"].value
    assert itself == pytest.approx(0, abs=1e-8)


def test_a_side_can_be_the_split_of_a_datamodule(folders):
    record = evaluated(folders, "data.yaml", "fake", "--num_real=20", "--split=train")
    protocol = record.protocol
    assert (protocol.dataset, protocol.split, protocol.num_real) == ("Shapes", "train", 20)
    assert (protocol.interval, protocol.generated_interval) == (2, 1)
    assert protocol.fingerprint == MovingShapes("train", size=(32, 48)).fingerprint()


def test_record_is_beside_the_videos_and_names_both_sides(folders):
    evaluate(str(folders / "fake"), str(folders / "real"), size=32)
    (path,) = folders.glob("fake_files-toy-8f_*.json")
    data = json.loads(path.read_text())
    assert (data["model"], data["about"]["real"]["source"]) == (str(folders / "fake"), str(folders / "real"))
    videos = VideoFolder(folders / "fake", size=32, num_frames=8, interval=1)
    assert data["about"]["generated"]["fingerprint"] == videos.fingerprint()
    assert (data["protocol"]["height"], data["protocol"]["width"]) == (32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "toy-256-8f"}, "is for models .use it in `latte test`."),
        ({"fake": "missing"}, "there is no folder missing"),
        ({"real": "missing.yaml"}, "there is no data configuration missing.yaml"),
        ({"real": "model/tiny.yaml"}, "model/tiny.yaml has no key data"),
        ({"real": "data/shapes.yaml"}, r"data/shapes.yaml have \(64, 64\) pixels, but \(32, 48\)"),
        ({"real": "data/shapes.yaml", "split": "all", "size": 64}, "a data configuration has train and val"),
        ({"generated_interval": 2}, "too short: 8 frames, .*interval 2 needs? 15"),
        ({"protocol": "files-fvd-16f", "extractor_path": "i3d.pt"}, r"there is no file i3d\.pt"),
    ],
)
def test_wrong_arguments_raise(folders, change, message):
    settings = {"real": str(folders / "real"), "fake": str(folders / "fake")} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_folders(**settings)


def test_a_folder_without_videos_raises(folders, tmp_path):
    with pytest.raises(ValueError, match="no usable video"):
        evaluate(str(tmp_path), str(folders / "real"))
    assert not list(Path(tmp_path).glob("*.json"))


def test_a_new_metric_is_one_entry_and_one_extractor(folders, tmp_path, monkeypatch):
    class MeanColour:
        name, sha256, num_features = "mean_colour", "0" * 64, 3

        def __init__(self, path=None):
            pass

        def __call__(self, video):
            return video.float().mean(dim=(1, 3, 4))  # (B, 3)

    def colour_difference(real, generated):
        return float(abs(real.mean(axis=0) - generated.mean(axis=0)).sum())

    monkeypatch.setitem(METRICS, "colour_difference", Metric(colour_difference, "mean_colour"))
    monkeypatch.setitem(EXTRACTORS, "mean_colour", MeanColour)
    stated = EvaluationProtocol.stated("files-toy-8f") | {"metrics": ["colour_difference"], "extractor": "mean_colour"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in stated.items() if key != "name"}))
    record = evaluate_folders(str(folders / "real"), str(folders / "fake"), protocol=str(path))
    means = []
    for name in ("real", "fake"):
        videos = VideoFolder(folders / name, size=(32, 48), num_frames=8, interval=1)
        clips = torch.stack([videos.read(index, 8, 1, None) for index in range(NUM)])
        means.append(clips.double().mean(dim=(0, 1, 3, 4)))
    assert record.protocol.name == "mine"
    assert record.scores["colour_difference"].value == pytest.approx(float((means[0] - means[1]).abs().sum()), rel=1e-4)
    assert record.scores["colour_difference"].interval.method == "8-fold jackknife"
