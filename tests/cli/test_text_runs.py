"""Text-conditional models with the command line: training, latent cache, samples of prompts, mistakes."""

import re
from collections.abc import Callable
from pathlib import Path

import fake_videos
import pytest
import torch
import yaml
from fake_text import write_t5
from safetensors.torch import load_file

from latte_pl import cli
from latte_pl.autoencoders import PixelAutoencoder, T5Encoder
from latte_pl.cli.config import CONFIGS
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.metrics import Record
from latte_pl.toy.encoding import EncodableShapes
from latte_pl.toy.shapes import MovingShapes
from latte_pl.training import load

CONFIG = """
model:
  net:
    class_path: latte_pl.nn.Latte
    init_args: {hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4, conditioning: text, text_dim: 12,
                text_length: 8}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  autoencoder: {class_path: latte_pl.autoencoders.PixelAutoencoder}
  text_encoder: {class_path: latte_pl.autoencoders.T5Encoder, init_args: {source: t5, length: 8}}
  sampling: {sampler: ddim, steps: 2, guidance: 3.0}
  lr: 1.0e-2
trainer: {max_steps: 3, val_check_interval: 2, accelerator: cpu, devices: 1, enable_progress_bar: false}
samples: {num_samples: 2}
data:
  class_path: %s
  init_args: {%s size: [16, 24], num_frames: 4, interval: 3, global_batch_size: 4, val_clips: 3, num_workers: 0,
              captions: true}
"""
PROTOCOL = """
metrics: [toy_video_distance]
split: val
num_frames: 4
view: first
num_real: 6
real_seed: 0
extractor: shapes_r3d
num_generated: 6
generated_interval: 1
weights: ema
seed: 0
folds: 2
"""


def videos(root: Path) -> Path:
    """Write four videos with captions, one of them as frames, and one video without a caption."""
    fake_videos.write_xvid(root / "a.avi", 12, seed=1)
    fake_videos.write_video(root / "b.mp4", 24, codec="libx264", seed=2)
    fake_videos.write_frames(root / "c.d", 15, "{}.png", seed=3)
    fake_videos.write_xvid(root / "e.avi", 12, seed=4)
    fake_videos.write_xvid(root / "f.avi", 12, seed=5)
    for name, words in {
        "a": "a red square",
        "b": "a blue star\n moves  left\n",
        "c.d": "moves right",
        "e": "a",
    }.items():
        (root / f"{name}.txt").write_text(words)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text encoder, configurations, and a run of three steps on the bundled shapes."""
    folder = tmp_path_factory.mktemp("home")
    write_t5(folder / "t5")
    (folder / "shapes.yaml").write_text(CONFIG % ("latte_pl.toy.Shapes", ""))
    (folder / "folder.yaml").write_text(CONFIG % ("latte_pl.data.Folder", "root: videos, holdout: 0.4,"))
    (folder / "few.yaml").write_text(PROTOCOL)
    (folder / "prompts.txt").write_text("# asked\n\na red square moves left\n  A Blue star; moves right!\n")
    videos(folder / "videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", "shapes.yaml", "--data.held_out=1", "--data.num_images=1", "--name=shapes"])
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def test_text_encoder_is_not_in_the_checkpoint(at_home: Path) -> None:
    assert (at_home / "runs/shapes/samples/step=0000003.gif").is_file()
    state = torch.load(at_home / "runs/shapes/checkpoints/step=0000003.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in state["state_dict"]} == {"net", "ema"}
    weight = state["state_dict"]["net.blocks.0.cross_attn.proj.weight"]
    assert weight.abs().max() > 0, "training changes the projection, which starts at zero"


def test_predict_draws_samples_of_prompts(at_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["predict", "--ckpt_path", "runs/shapes", "--trainer.accelerator=cpu", "--output", str(tmp_path / "out")]
    cli.main([*args, "--prompts=prompts.txt"])
    names = ["0000_a-red-square-moves-left", "0001_a-blue-star-moves-right"]
    assert sorted(p.name for p in (tmp_path / "out/videos").iterdir()) == [f"{name}.mp4" for name in names]
    assert sorted(p.name for p in (tmp_path / "out/previews").iterdir()) == [f"{name}.gif" for name in names]
    said = capsys.readouterr().out
    assert re.search(r"(trained|new) combinations: of 1 samples", said)
    assert "1 prompts not scored" in said  # because of its exclamation mark
    cli.main([*args, "--prompts=prompts.txt", "--num_samples=3", "--output", str(tmp_path / "more")])
    assert (tmp_path / "more/videos/0002_a-red-square-moves-left.mp4").is_file()
    cli.main([*args, "--num_samples=4", "--output", str(tmp_path / "own")])
    said = capsys.readouterr().out
    assert "trained combinations: of 2 samples" in said
    assert "new combinations: of 2 samples" in said


def test_sample_depends_on_the_prompt(at_home: Path) -> None:
    module = load("runs/shapes")
    with torch.no_grad():
        for parameter in module.ema.parameters():  # three steps train too little
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(0))
    both = module.sample([5, 5], prompts=["a red square moves left", "a red square moves right"])
    assert not torch.equal(both[0], both[1])
    alone = module.sample([5], prompts=["a red square moves right"])
    torch.testing.assert_close(both[1:].int(), alone.int(), atol=1, rtol=0)
    with pytest.raises(ValueError, match="give a caption for each sample"):
        module.sample([5])


def test_evaluation_draws_samples_of_the_captions_of_real_videos(at_home: Path) -> None:
    cli.main(["test", "--ckpt_path=runs/shapes", "--protocol=few.yaml", "--trainer.enable_progress_bar=false"])
    (record,) = (Record.read(path) for path in Path("runs/shapes/test").glob("*.json"))
    assert record.protocol.labels == "captions"
    assert record.protocol.guidance == 3.0


def test_captions_are_read_from_text_files(at_home: Path) -> None:
    dataset = VideoFolder("videos", (16, 24), 2, 1, captions=True)
    assert [dataset.path(n) for n in range(len(dataset))] == ["a.avi", "b.mp4", "c.d", "e.avi"]
    assert [dataset.caption(n) for n in range(4)] == ["a red square", "a blue star moves left", "moves right", "a"]
    assert dataset.skipped == [("f.avi", "no caption in f.txt beside it")]
    plain = VideoFolder("videos", (16, 24), 2, 1)
    assert len(plain) == 5
    assert plain.caption(4) == ""


def test_fingerprint_depends_on_the_captions(tmp_path: Path) -> None:
    fake_videos.write_xvid(tmp_path / "a.avi", 12)
    prints = set()
    for words in ("left", "right"):
        (tmp_path / "a.txt").write_text(words)
        prints |= {VideoFolder(tmp_path, 16, 2, 1, captions=wanted).fingerprint() for wanted in (False, True)}
    assert len(prints) == 3


def test_cached_embeddings_are_those_of_the_text_encoder(at_home: Path, tmp_path: Path) -> None:
    dataset, encoder = VideoFolder("videos", (16, 24), 1, 1, captions=True), T5Encoder("t5", 8)
    encode(dataset, PixelAutoencoder(), tmp_path, {}, False, torch.device("cpu"), shard_frames=30, text=encoder)
    cached = CachedLatents(tmp_path, "all", 2, 1, captions=True)
    expected = encoder.encode([dataset.caption(n) for n in range(4)])
    for n in range(4):
        embeddings, mask = cached.text(n)
        assert cached.caption(n) == dataset.caption(n)
        torch.testing.assert_close(embeddings.float(), expected.embeddings[n], rtol=2**-10, atol=1e-4)
        assert torch.equal(mask, expected.mask[n])
    stored = {name: t for path in tmp_path.glob("shard-*") for name, t in load_file(path).items()}
    assert stored["1.text"].shape == (6, 12), "one row for each token"
    with pytest.raises(ValueError, match=r"text=t5-\w+, but this run has None"):
        encode(dataset, PixelAutoencoder(), tmp_path, {}, False, torch.device("cpu"), shard_frames=30)


def test_shapes_are_cached_with_their_captions(at_home: Path, tmp_path: Path) -> None:
    splits = MovingShapes("train", (16, 24), 5, held_out=2), MovingShapes("val", (16, 24), 3, held_out=2)
    shapes, text = EncodableShapes(*splits), T5Encoder("t5", 8)
    encode(shapes, PixelAutoencoder(), tmp_path, {}, False, torch.device("cpu"), text=text)
    for split, videos in zip(("train", "val"), splits):
        cached = CachedLatents(tmp_path, split, 2, 1, captions=True)
        assert [cached.caption(n) for n in range(len(cached))] == [videos.caption(n) for n in range(len(videos))]
        assert torch.equal(cached.text(0).mask, T5Encoder("t5", 8).encode([videos.caption(0)]).mask[0])


def test_training_on_cached_captions_equals_training_on_videos(at_home: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["encode", "-c", "folder.yaml", "--output=latents", "--device=cpu"])
    assert "4 videos" in capsys.readouterr().out
    cli.main(["fit", "-c", "folder.yaml", "--name=files"])
    cli.main(["fit", "-c", "folder.yaml", "--name=cached", "--data.latents=latents"])
    files, cached = (load(f"runs/{name}").net.state_dict() for name in ("files", "cached"))
    for name, value in files.items():
        torch.testing.assert_close(cached[name], value, rtol=0.05, atol=0.01)
    assert files["blocks.0.cross_attn.proj.weight"].any()


LONGER = ["--model.text_encoder.length=9", "--model.net.text_length=9"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no captions": (["fit", "-c", "shapes.yaml", "--data.captions=false"], r"set data.captions to true"),
    "no encoder": (["fit", "-c", "shapes.yaml", "--model.text_encoder=null"], r"set model.text_encoder$"),
    "other width": (["fit", "-c", "shapes.yaml", "--model.net.text_dim=5"], r"text_dim 5 .*text_encoder has width 12"),
    "other length": (["fit", "-c", "shapes.yaml", "--model.net.text_length=5"], r"text_length 5, .* and length 8"),
    "missing text encoder": (
        ["fit", "-c", "shapes.yaml", "--model.text_encoder.source=nowhere"],
        r"'nowhere' is not a folder; use a folder or a Hub name",
    ),
    "all colours held out": (["fit", "-c", "shapes.yaml", "--data.held_out=8"], r"held_out is 8"),
    "missing file of prompts": (
        ["predict", "--ckpt_path=runs/shapes", "--prompts=no.txt"],
        r"no file of prompts at no.txt",
    ),
    "file without prompts": (
        ["predict", "--ckpt_path=runs/shapes", "--prompts=empty.txt"],
        r"empty.txt has no captions",
    ),
    "prompts that are no text": (["predict", "--ckpt_path=runs/shapes", "--prompts=bytes.txt"], r"no UTF-8 text"),
    "prompts for a class model": (
        ["predict", "--ckpt_path=shapes", "--prompts=prompts.txt"],
        r"is class, not text; remove --prompts",
    ),
    "labels for a text model": (
        ["predict", "--ckpt_path=runs/shapes", "--labels=[up]"],
        r"no classes; remove --labels",
    ),
    "cache of another text encoder": (
        ["fit", "-c", "folder.yaml", "--name=l", "--data.latents=captioned", *LONGER],
        r"encoded with text=t5-\w+, but this run has t5-\w+",
    ),
    "cache without captions": (
        ["fit", "-c", "folder.yaml", "--name=l", "--data.latents=plain"],
        r"contain no captions; encode into another folder",
    ),
    "encoding of captions without a text encoder": (
        ["encode", "-c", "folder.yaml", "--model.text_encoder=null", "--output=x", "--device=cpu"],
        r"set model.text_encoder",
    ),
}


@pytest.fixture(scope="module")
def caches(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, captions in (("captioned", "true"), ("plain", "false")):
            args = ["-c", "folder.yaml", f"--output={name}", "--device=cpu", f"--data.captions={captions}"]
            cli.main(["encode", *args])
    (home / "empty.txt").write_text("\n# nothing\n")
    (home / "bytes.txt").write_bytes(b"\xff\xfe\x00a")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_line(
    mistake: str, at_home: Path, caches: Callable, capsys: pytest.CaptureFixture
) -> None:
    args, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1]), lines[-1]
    assert lines[-1].startswith("latte: error: ")


def test_shipped_configuration_composes(capsys: pytest.CaptureFixture) -> None:
    config = yaml.safe_load((CONFIGS / "experiment/text.yaml").read_text())["model"]
    assert config["net"]["init_args"]["text_length"] == config["text_encoder"]["init_args"]["length"]
    cli.main(["info", "-c", "data/shapes.yaml", "-c", "model/tiny.yaml", "-c", "experiment/text.yaml"])
    assert re.search(r"cross-attention\s+444,672", capsys.readouterr().out)
