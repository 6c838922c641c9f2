"""Fine-tune and sample text-to-video weights with the command line, from the folder of a pipeline."""

from pathlib import Path

import pytest
import torch
from fake_text import write_t5
from test_t2v import small

from latte_pl import cli
from latte_pl.autoencoders import T5Encoder
from latte_pl.training import load

CONFIG = """
data:
  class_path: latte_pl.toy.Shapes
  init_args: {size: [32, 48], num_frames: 3, interval: 4, global_batch_size: 2, num_images: 2, val_clips: 2,
              num_workers: 0, captions: true}
model:
  net:
    class_path: latte_pl.interop.TextToVideo
    init_args: {hidden_size: 32, depth: 2, num_heads: 4, input_size: [4, 6], sample_size: 4, num_frames: 3,
                text_dim: 12, text_length: 7, class_dropout: 0.5}
  text_encoder: {class_path: latte_pl.autoencoders.T5Encoder, init_args: {source: latte-1, length: 7}}
  diffusion: {class_path: latte_pl.diffusion.GaussianDiffusion}
  autoencoder: {class_path: latte_pl.autoencoders.KLAutoencoder, init_args: {source: toy}}
  pretrained: {source: latte-1}
  sampling: {sampler: ddim, steps: 2, guidance: 3.0}
trainer: {max_steps: 2, val_check_interval: 2, accelerator: cpu, devices: 1, enable_progress_bar: false}
samples: {every_n_steps: 2, num_samples: 1}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_t5(tmp_path / "latte-1", pipeline=True)
    small().transformer.save_pretrained(tmp_path / "latte-1/transformer")
    (tmp_path / "t2v.yaml").write_text(CONFIG)
    return tmp_path


def test_a_new_run_starts_from_the_released_weights(place, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr("lightning.Trainer.fit", lambda self, model, **_: seen.update(model=model))
    cli.main(["fit", "-c", "t2v.yaml"])
    assert "start from latte-1" in capsys.readouterr().out
    for net in (seen["model"].net, seen["model"].ema):
        for name, value in small().transformer.state_dict().items():
            assert torch.equal(net.transformer.state_dict()[name], value), name
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", "t2v.yaml", "--model.pretrained.source=latte-2"])
    assert "latte: error: the text-to-video model 'latte-2' is not a folder" in capsys.readouterr().err


def test_fine_tuned_weights_can_be_sampled(place):
    cli.main(["fit", "-c", "t2v.yaml", "--name=tuned", "--trainer.max_steps=2"])
    module = load("runs/tuned")
    start = small().transformer.state_dict()
    moved = [name for name, value in module.net.transformer.state_dict().items() if not torch.equal(value, start[name])]
    assert len(moved) == len(start)
    ema = module.ema.transformer.state_dict()
    assert all((ema[name] - start[name]).abs().max() < 1e-6 for name in start)  # the EMA decay is 0.9999
    empty = T5Encoder("latte-1", 7).tokens("")
    torch.testing.assert_close(module.ema.null_caption, empty, rtol=0, atol=1e-6)
    Path("prompts.txt").write_text("a red square moves left\na blue star\n")
    cli.main(["predict", "--ckpt_path=runs/tuned", "--prompts=prompts.txt", "--output=out"])
    assert sorted(path.name for path in Path("out/videos").glob("*.mp4")) == [
        "0000_a-red-square-moves-left.mp4",
        "0001_a-blue-star.mp4",
    ]
