"""The commands on every data set, in its own folder layout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_videos
import pytest
import torch

from latte_pl.cli import main
from latte_pl.data.latents import Manifest
from latte_pl.metrics import Record

TINY = """
data:
  init_args:
    {size: [16, 24], num_frames: 4, interval: 3, global_batch_size: 4, val_clips: 3, num_workers: 0}
model:
  net:
    class_path: latte_pl.nn.Latte
    init_args: {hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  autoencoder: {class_path: latte_pl.autoencoders.PixelAutoencoder}
  sampling: {sampler: ddim, steps: 2}
  lr: 1.0e-3
trainer: {max_steps: 2, val_check_interval: 2, accelerator: cpu, devices: 1, enable_progress_bar: false}
samples: {num_samples: 1}
"""

PROTOCOL = """
metrics: [toy_video_distance]
split: train
num_frames: 4
view: random
num_real: 6
real_seed: 0
extractor: shapes_r3d
num_generated: 6
generated_interval: 1
weights: ema
seed: 0
folds: 2
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that trains a tiny model on a data set and returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "few.yaml").write_text(PROTOCOL)

    def fit(data: str, root: Path, *args: str, name: str = "run") -> Path:
        main(["fit", "-c", f"data/{data}.yaml", "-c", "tiny.yaml", "--data.root", str(root), "--name", name, *args])
        return tmp_path / "runs" / name

    return fit


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "step=0000002.ckpt", weights_only=True)


def folder_of_classes(root: Path) -> Path:
    fake_videos.write_xvid(root / "run" / "a.avi", 12, seed=1)
    fake_videos.write_video(root / "run" / "b.mp4", 24, codec="libx264", b_frames=2, seed=2)
    fake_videos.write_frames(root / "jump" / "c", 15, "{}.png", seed=3)
    return root


LAYOUTS: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "ucf101": ("ucf101", fake_videos.ucf101, ["--model.net.num_classes=3"]),
    "ucf101 fold 2": (
        "ucf101",
        fake_videos.ucf101,
        ["--model.net.num_classes=3", "--data.split=train", "--data.fold=2", "--data.sampling=classes"],
    ),
    "faceforensics videos": ("faceforensics", fake_videos.faceforensics, []),
    "faceforensics flat frames": ("faceforensics", lambda r: fake_videos.faceforensics(r, True, False), []),
    "skytimelapse": ("skytimelapse", fake_videos.skytimelapse, ["--data.sampling=clips"]),
    "taichi frames": ("taichi", fake_videos.taichi, []),
    "taichi videos": ("taichi", lambda r: fake_videos.taichi(r, False), []),
    "folder": ("folder", lambda r: fake_videos.faceforensics(r, False, False), []),
    "folder of classes": (
        "folder",
        folder_of_classes,
        ["--model.net.conditioning=class", "--data.num_images=2"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_fit_and_test(name: str, run: Callable[..., Path], tmp_path: Path) -> None:
    data, make, args = LAYOUTS[name]
    folder = run(data, make(tmp_path / "videos"), *args)
    state = checkpoint(folder)
    assert state["global_step"] == 2
    assert len(state["class_names"]) == {"ucf101": 3, "folder of classes": 2}.get(name.removesuffix(" fold 2"), 0)
    final = state["state_dict"]["net.final_layer.linear.weight"]
    assert final.isfinite().all()
    assert final.abs().max() > 0, "training changes the last layer, which starts at zero"
    main(["test", "--ckpt_path", str(folder), "--protocol=few.yaml", "--trainer.enable_progress_bar=false"])
    (record,) = (Record.read(path) for path in (folder / "test").glob("*.json"))
    assert record.scores["toy_video_distance"].value > 0
    assert record.protocol.dataset.startswith(state["config"]["data"]["class_path"].split(".")[-1])


def test_fit_on_real_clips(run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    kinds = ("bikes.mp4", "carphone_pristine.mp4", "demo.avi", "demo.webm", "demo.wmv")
    found = [path for path in fake_videos.real_clips() if path.name in kinds]
    assert len(found) >= 4
    for path in found:
        (tmp_path / "videos" / path.name).symlink_to(path)
    state = checkpoint(run("folder", tmp_path / "videos", "--data.num_workers=1"))
    assert state["state_dict"]["net.final_layer.linear.weight"].abs().max() > 0


def test_unusable_files_are_named_and_skipped(
    run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fake_videos.taichi(tmp_path / "videos", False)
    (root / "train" / "page.mp4").write_text("<html>")
    assert checkpoint(run("taichi", root))["global_step"] == 2
    assert "1 of 4 videos" in caplog.text
    assert "train/page.mp4: not a readable video" in caplog.text


def test_two_devices_index_once_and_do_not_change_the_weights(run: Callable[..., Path], tmp_path: Path) -> None:
    root = fake_videos.ucf101(tmp_path / "videos", per_class=2, num_frames=16)
    (root / "UCF-101" / "Archery" / "v_Archery_g09_c01.avi").write_bytes(b"")
    args = ["--model.net.num_classes=3", "--data.num_workers=1", "--data.num_images=1"]
    command = [sys.executable, "-m", "latte_pl", "fit", "-c", "data/ucf101.yaml", "-c", "tiny.yaml", "--name=two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    two = subprocess.run(
        [*command, f"--data.root={root}", *args, "--trainer.devices=2", "--trainer.strategy=ddp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("videos: 100%") == 1, "one process builds the index"
    assert two.stderr.count("v_Archery_g09_c01.avi: zero bytes") == 1
    left, right = (checkpoint(folder)["state_dict"] for folder in (tmp_path / "runs/two", run("ucf101", root, *args)))
    for name, value in left.items():
        # AdamW divides small gradients by their own size in the first steps, which amplifies rounding errors
        torch.testing.assert_close(right[name], value, rtol=2e-3, atol=2e-4)


def message(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latte: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("data", "make", "args", "seen"),
    [
        ("taichi", fake_videos.taichi, ["--model.net.conditioning=class", "--model.net.num_classes=3"], "0 classes"),
        ("ucf101", fake_videos.ucf101, [], "num_classes is 101, but the data have 3 classes"),
        ("ucf101", lambda r: r, ["--model.net.num_classes=3"], "videos does not exist; set the path of the data"),
        ("taichi", fake_videos.taichi, ["--data.sampling=classes"], "the videos have no classes"),
        ("taichi", fake_videos.taichi, ["--data.sampling=frames"], "sampling"),
        ("taichi", fake_videos.taichi, ["--data.fold=1"], "fold"),
        ("taichi", fake_videos.taichi, ["--data.num_frames=9"], "3 x too short"),
        ("taichi", fake_videos.taichi, ["--data.latents=nowhere"], "nowhere contains no latent cache"),
    ],
)
def test_mistake_ends_with_one_line(
    data: str,
    make: Callable[[Path], Path],
    args: list[str],
    seen: str,
    run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(data, make(tmp_path / "videos"), *args)
    assert ended.value.code == 2
    assert seen in message(capsys)


def encode(root: Path, *args: str) -> None:
    main(["encode", "-c", "data/ucf101.yaml", "-c", "tiny.yaml", "--data.root", str(root), "--output", "cache", *args])


@pytest.mark.parametrize("num_images", [0, 2])
def test_training_on_latents_equals_training_on_videos(
    num_images: int, run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fake_videos.ucf101(tmp_path / "videos", per_class=2, num_frames=16)
    args = ["--model.net.num_classes=3", "--data.split=train", f"--data.num_images={num_images}"]
    left = checkpoint(run("ucf101", root, *args, name="videos"))
    encode(root, "--data.split=train")
    assert "6 videos, 96 frames, 2 views" in capsys.readouterr().out
    shutil.rmtree(root)
    right = checkpoint(run("ucf101", root, *args, "--data.latents=cache", name="latents"))
    assert left["class_names"] == right["class_names"]
    for name, value in left["state_dict"].items():
        torch.testing.assert_close(right["state_dict"][name], value, rtol=0, atol=4e-4)
    final = left["state_dict"]["net.final_layer.linear.weight"]
    other = checkpoint(run("ucf101", root, *args, "--data.latents=cache", "--seed_everything=1", name="other"))
    assert (other["state_dict"]["net.final_layer.linear.weight"] - final).abs().max() > 1e-3, (
        "another seed makes a larger difference"
    )


def test_latents_of_other_settings_raise(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fake_videos.ucf101(tmp_path / "videos", per_class=2, num_frames=12)
    encode(root)
    cases = {
        "--data.size=[32, 24]": "encoded with size=[16, 24], but this run has [32, 24]",
        "--data.fold=2": "encoded with fold=1, but this run has 2",
        "--model.autoencoder=latte_pl.autoencoders.KLAutoencoder": "encoded with scale=1.0, but this run has",
    }
    for change, seen in cases.items():
        args = ["--model.net.num_classes=3", "--data.latents=cache", change]
        if "autoencoder" in change:
            args += ["--model.net.patch_size=1"]
        with pytest.raises(SystemExit):
            run("ucf101", root, *args)
        assert seen in message(capsys)


def test_encode_resumes_and_refuses_other_settings(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fake_videos.ucf101(tmp_path / "videos", ("Archery",), 2, 12)
    encode(root)
    before = Manifest.read(tmp_path / "cache")
    encode(root)
    assert Manifest.read(tmp_path / "cache") == before
    for args, seen in (
        (["--data.size=32"], "encoded with size=[16, 24], but this run has [32, 32]"),
        (["--data.flip=false"], "encoded with flipped=True, but this run has False"),
        (["--data.latents=cache"], "data.latents is cache; remove it"),
        (["--device=tpu3"], "device"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            encode(root, *args)
        assert seen in message(capsys)


@pytest.mark.parametrize(("files", "code", "seen"), [(0, 0, "every video can be used"), (1, 1, "zero bytes")])
def test_data_check(files: int, code: int, seen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fake_videos.ucf101(tmp_path / "videos", ("Archery", "Biking"), 2, 12)
    for number in range(files):
        (root / "UCF-101" / "Biking" / f"v_Biking_g09_c{number:02}.avi").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", "ucf101", str(root), "--num_frames", "4"])
    assert ended.value.code == code
    assert seen in capsys.readouterr().out
