import dataclasses
import json

import pytest
import yaml

from latte_pl.metrics import EvaluationProtocol
from latte_pl.metrics.extractors import I3D_SHA256
from latte_pl.metrics.protocol import FOLDER, shipped

GIVEN = {
    "dataset": "shapes",
    "fingerprint": "f" * 64,
    "split": "val",
    "interval": 1,
    "height": 32,
    "width": 48,
    "resize": "none",
    "num_real": 64,
    "num_generated": 64,
    "generated_interval": 1,
    "extractor_sha256": "e" * 64,
    "sampler": "heun",
    "steps": 20,
    "eta": 0.0,
    "guidance": 1.0,
    "guidance_interval": [0, 1000],
    "labels": "cycle",
    "precision": "32",
}


# hash and real_hash of every shipped protocol, completed by GIVEN; results are stored under them
HASHES = {
    "files-fvd-16f": (
        "34f77a2165c4ffac000724cd65c500c33db3421ed82527b3442d335826330e78",
        "f596f42e2cf3c162c344fa393ec1a235b64ff915b0eaf99c11a972f837c33972",
    ),
    "files-paper-fid50k-full": (
        "c8bb0f90383d89d5a9dd0544c1dac0f4ca79029777c9459bdfadd5fd70776a4a",
        "0c55abb4957ac99c2c2afc94e94a10c80901ac1d7c44f12baf7af6ff5f35b5fa",
    ),
    "files-paper-fvd2048-16f": (
        "5dc33f15c67febc09112751d35f09a3e66338d3f68bd45547c4a99726c538565",
        "3b5412253807404d5b26110c66b7acc7147ccc43699d881560c7fc76b045bdd3",
    ),
    "files-paper-is2048-ucf101": (
        "9ad59c533cfb60568abffdb945d0266c4eb8539013c5da3053e2130c59c2f9b6",
        "2da6c2ebf8e716fe65ffc6ea408a366c66fb92d07d59685c338ff86e4c029bc9",
    ),
    "files-toy-8f": (
        "cce57c679135216cee32fb2b6aa2e89ad58fc5df685e0620da95fbffc4f7937f",
        "4851519a47bbe35736ce5a318f58e5d1c7cee9e86774770709e4f12b72215766",
    ),
    "frames-fid2048-16f": (
        "1afcb1cf39a43eb0042b7146fc64ce54afe02a18087a1f8485179b02434e69ca",
        "97ab7bbd7def5d05a90893738c29433a0fc8e9345c9d6c4d255f9b0fd3e75138",
    ),
    "fvd2048-16f": (
        "882ca3dc8e7a109f3184778ecb22285487fb8845f4b288d394695058eba9d7ec",
        "df770490eef3b6d7405015dcdb9c6a557d2e316010aeb06ede43142b41b76d8e",
    ),
    "paper-fid50k-full": (
        "0bc87a25b58421ca124375efe50951ff43846785e0aeea531c0c35b8b16929c4",
        "e6ae7325236cb8fdbf8d3f2cef501aa197b831c2786982028506a9673aaca9f3",
    ),
    "paper-fvd2048-16f": (
        "daffcd190872af5cb2a9b9eb5afa2e4fcbd87159b6c561addbdfea0a55bcaa6e",
        "a8ed4a0dfc42acd201f58406ab8fc434a8ac36822a3d4b277f19dda8e2c192a8",
    ),
    "paper-fvd2048-16f-ucf101": (
        "4657e1f2bd0f7c49b084d863ccd2b99cae02d94aa4e22901c8815023fe5d0994",
        "a8ed4a0dfc42acd201f58406ab8fc434a8ac36822a3d4b277f19dda8e2c192a8",
    ),
    "paper-is2048-ucf101": (
        "f354cfb17239ac6cd1d776f67f9071348d9f78dca8c14892777d677392ebb1f8",
        "64493b0d224facd7fdddece5fdf5bfbc7a9ad2aa83245a142bcd2ee4933e0c28",
    ),
    "toy-2048-16f": (
        "3468f3e20f25276d422a636677109afb6e38d833a7eee2ba661737d4eceaa9c8",
        "4f60ddfb461746940db0c57db5683236bb56224ca4a8905ca8e0ae6f53cb4ad8",
    ),
    "toy-256-8f": (
        "09d7140de7b2ad638716266a57bcb6b8b7f18d0a084b1857f043a8204fadc398",
        "4e0542e669b0971d6990c65c738b38c57c85abe28072a9448efa2a616f375900",
    ),
}


def load(name, **values):
    """Load a shipped protocol and complete it by GIVEN."""
    stated = EvaluationProtocol.stated(name)
    return EvaluationProtocol.load(name, **{k: v for k, v in GIVEN.items() if k not in stated} | values)


@pytest.mark.parametrize("name", shipped())
def test_hashes_of_shipped_protocols_are_stable(name):
    protocol = load(name)
    assert (protocol.hash, protocol.real_hash) == HASHES[name]


@pytest.mark.parametrize("name", shipped())
def test_shipped_protocols_survive_a_round_trip(name):
    protocol = load(name)
    assert protocol.name == name
    assert EvaluationProtocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize("name", shipped())
def test_headers_of_shipped_protocols_are_complete(name):
    header = "".join(line[2:] for line in (FOLDER / f"{name}.yaml").read_text().splitlines(True) if line[0] == "#")
    for part in ("Extractor: ", "Expected metric: ", "Hardware: ", "Command: latte "):
        assert part in header
    missing = set(GIVEN) - EvaluationProtocol.stated(name).keys()
    missing |= {"generated_codec"} if name.startswith("files-") else set()
    filled_in = header.partition("The command fills in ")[2].rstrip(".\n").replace("\n", " ").replace(" and ", ", ")
    assert set(filled_in.split(", ")) == missing


def test_fvd_protocol_of_the_paper_has_the_settings_of_its_code():
    for name in ("paper-fvd2048-16f", "files-paper-fvd2048-16f"):
        paper = load(name)
        assert (paper.view, paper.flip, paper.min_video_frames, paper.num_real, paper.interval) == (
            "random",
            False,
            48,
            2048,
            3,
        )
        assert (paper.resize, paper.resample, paper.jpeg_quality) == ("centre-crop", "lanczos", 75)
    assert load("paper-fvd2048-16f").generated_codec == "mp4 h264 yuv420p crf 5"
    recommended = load("fvd2048-16f")
    assert (recommended.min_video_frames, recommended.resample, recommended.jpeg_quality) == (0, "bilinear", 0)
    assert (recommended.generated_codec, recommended.view, recommended.flip) == ("none", "random", False)
    protocol = load("paper-fvd2048-16f")
    assert (protocol.num_real, protocol.num_generated, protocol.num_frames) == (2048, 2048, 16)
    assert (protocol.split, protocol.interval, protocol.height, protocol.width) == ("train", 3, 256, 256)
    assert (protocol.sampler, protocol.steps, protocol.weights) == ("ddpm", 250, "ema")
    assert (protocol.extractor, protocol.extractor_sha256) == ("i3d", I3D_SHA256)
    assert load("paper-fvd2048-16f-ucf101").guidance == 7


def test_fid_and_is_protocols_of_the_paper_have_the_settings_of_its_code():
    fid, clean, score = (load(name) for name in ("paper-fid50k-full", "frames-fid2048-16f", "paper-is2048-ucf101"))
    assert (fid.real_frames, fid.num_generated * fid.num_frames, fid.extractor) == ("all", 50_000, "inception_legacy")
    assert (fid.resample, fid.jpeg_quality, fid.generated_codec) == ("lanczos", 75, "mp4 h264 yuv420p crf 5")
    assert (clean.extractor, clean.resample, clean.jpeg_quality) == ("inception", "bilinear", 0)
    assert (score.num_real, score.num_generated, score.jpeg_quality) == (0, 2048, 75)


OTHER = {"metrics": ["toy_kernel_distance"], "resize": "centre-crop", "view": "random", "weights": "raw"}
OTHER |= {"labels": "uniform", "guidance_interval": [0, 500], "flip": True, "resample": "lanczos"}
OTHER |= {"generated_codec": "mp4 h264 yuv420p crf 5", "min_video_frames": 48, "fps": 8, "jpeg_quality": 75}
KEYS = [f.name for f in dataclasses.fields(EvaluationProtocol) if f.name not in ("name", "extractor", "real_frames")]
STEPS = {"flip", "min_video_frames", "fps", "resample", "jpeg_quality", "generated_codec", "real_frames"}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_changes_the_hash(key):
    protocol = load("toy-256-8f")
    value = getattr(protocol, key)
    other = OTHER.get(key) or (value + "x" if isinstance(value, str) else value + 2)
    assert dataclasses.replace(protocol, **{key: other}).hash != protocol.hash


def test_steps_that_are_left_out_are_not_part_of_hash_and_dictionary():
    protocol = load("toy-256-8f")
    stated = dataclasses.replace(protocol, flip=False, fps=0, resample="bilinear", generated_codec="none")
    assert stated.hash == protocol.hash
    assert not STEPS & protocol.to_dict().keys()
    assert protocol.to_dict().keys() | STEPS == {f.name for f in dataclasses.fields(EvaluationProtocol)}
    lossy = dataclasses.replace(protocol, jpeg_quality=75)
    assert EvaluationProtocol.from_dict(lossy.to_dict()) == lossy
    assert lossy.real_part()["jpeg_quality"] == 75


def test_every_video_is_counted_once():
    few, many = (load("toy-2048-16f", num_videos=count) for count in (1000, 5000))
    assert (few.name, few.num_real) == ("toy-2048-16f", 1000)
    assert (many.name, many.num_real) == ("toy-2048-16f", 2048)
    assert few.hash != many.hash
    assert load("toy-2048-16f", num_videos=5000, num_real=300).name == "toy-2048-16f+num_real=300"


def test_a_step_that_the_file_leaves_out_is_added_to_the_name():
    assert load("toy-256-8f", fps=8).name == "toy-256-8f+fps=8"
    assert load("files-toy-8f", generated_codec="gif").name == "files-toy-8f"  # it is what the files are


def test_name_and_number_format_do_not_change_the_hash():
    protocol = load("toy-256-8f")
    assert dataclasses.replace(protocol, name="other", guidance=1).hash == protocol.hash


def test_real_part_depends_on_the_real_clips_alone():
    protocol = load("toy-256-8f")
    assert dataclasses.replace(protocol, steps=7, seed=3).real_part() == protocol.real_part()
    assert dataclasses.replace(protocol, steps=7, seed=3).real_hash == protocol.real_hash
    assert dataclasses.replace(protocol, interval=2).real_part() != protocol.real_part()
    assert dataclasses.replace(protocol, interval=2).real_hash != protocol.real_hash


def test_a_value_that_differs_from_the_file_is_added_to_the_name():
    protocol = load("paper-fvd2048-16f", steps=50, interval=3)
    assert protocol.name == "paper-fvd2048-16f+steps=50"
    assert protocol.steps == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, "unknown keys stpes; the keys are name, metrics"),
        ({"steps": "many"}, "steps is 'many'; it must be of type int"),
        ({"steps": True}, "must be of type int"),
        ({"resize": "squash"}, "choose one of centre-crop, none"),
        ({"weights": "best"}, "choose one of ema, raw, files"),
        ({"metrics": ["fvd"]}, "fvd is defined on the features of i3d, not of shapes_r3d"),
        ({"metrics": ["fvd2"]}, "unknown metric 'fvd2'; choose from fvd"),
        ({"metrics": "fvd"}, "is 'fvd'; it must be a list of names"),
        ({"metrics": []}, "metrics is empty; choose from fvd"),
        ({"interval": 0}, "interval is 0; it must be at least 1"),
        ({"num_real": -1}, "num_real is -1; it must be at least 0"),
        ({"folds": 1}, "folds is 1; it must be 0"),
        ({"guidance_interval": [0]}, "it must be a list of 2 numbers"),
        ({"guidance_interval": ["low", "high"]}, "must be of type float"),
        ({"jpeg_quality": 101}, "jpeg_quality is 101; it must be at most 100"),
        ({"fps": -1}, r"fps is -1\.0; it must be at least 0"),
        ({"flip": 1}, "flip is 1; it must be of type bool"),
        ({"generated_codec": "gif"}, "samples can go through none or mp4 h264 yuv420p crf N"),
        ({"real_frames": "all"}, "real_frames is all, .* toy_video_distance needs the features"),
    ],
)
def test_wrong_keys_and_values_raise(change, message):
    data = load("toy-256-8f").to_dict()
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol.from_dict(data | change)


def test_a_protocol_of_the_user_is_a_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    shipped = load("toy-256-8f")
    path.write_text(yaml.safe_dump({k: v for k, v in shipped.to_dict().items() if k != "name"}))
    mine = EvaluationProtocol.load(path)
    assert mine.name == "mine"
    assert mine.hash == shipped.hash
    assert EvaluationProtocol.load(str(path), steps=50).name == "mine+steps=50"


def test_errors_name_missing_keys_and_files(tmp_path):
    with pytest.raises(ValueError, match="paper-fvd2048-16f: missing keys dataset, fingerprint; add them"):
        EvaluationProtocol.load("paper-fvd2048-16f")
    with pytest.raises(FileNotFoundError, match=r"no protocol 'paper'; choose files-fvd-16f, .*paper-fvd2048-16f"):
        EvaluationProtocol.load("paper")
    path = tmp_path / "mine.yaml"
    with pytest.raises(FileNotFoundError, match=r"there is no protocol file .*mine\.yaml"):
        EvaluationProtocol.load(path)
    path.write_text("- a\n")
    with pytest.raises(ValueError, match=r"mine\.yaml is not a YAML mapping"):
        EvaluationProtocol.load(path)
    path.write_text("a: [\n")
    with pytest.raises(ValueError, match=r"mine\.yaml is not valid YAML: [^\n]*line 2"):
        EvaluationProtocol.load(path)
