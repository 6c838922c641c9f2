"""Exported weights with a model card on the hub, and their use from there, against a server on this machine."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from hub_server import serve
from runs import write_config

from latte_pl import Latte, cli
from latte_pl.interop.upload import model_card, public
from latte_pl.metrics import EvaluationProtocol, Record, Score
from latte_pl.training.weights import Weights

PUSHED = """
import sys
from pathlib import Path
from latte_pl import Latte, cli, load
from latte_pl.interop import load_dit
cli.main(["export", "runs/x", "x.safetensors", "--push", "owner/shapes"])
module = load("hf://owner/shapes")
net = Latte.from_pretrained("owner/shapes")
start = Latte.from_pretrained("owner/shapes")
start.init_weights(7)
load_dit(start, "hf://owner/shapes", labels="keep")
assert (start.final_layer.linear.weight == net.final_layer.linear.weight).all()
assert all((a == b).all() for a, b in zip(module.ema.state_dict().values(), net.state_dict().values()))
print(net.push_to_hub("owner/net", private=True))
assert Latte.from_pretrained("hf://owner/net", activation_checkpointing=True).config.activation_checkpointing
cli.main(["predict", "--ckpt_path", "hf://owner/shapes", "--num_samples", "1", "--labels", "[left]", "--name", "hub"])
"""


def measured(name):
    values = {"dataset": "shapes", "fingerprint": "f" * 64, "interval": 1, "height": 16, "width": 24, "resize": "none"}
    values |= {"extractor_sha256": "e" * 64, "sampler": "heun", "steps": 20, "eta": 0.0, "guidance": 1.0}
    values |= {"guidance_interval": [0, 1000], "labels": "cycle", "precision": "32"}
    protocol = EvaluationProtocol.load("toy-256-8f", **values)
    scores = {metric: Score(12.5, "full", None) for metric in protocol.metrics}
    return Record.make(name, scores, protocol, 1.0)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Folder in which a run was pushed and used, and the hub after it."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch, serve() as hub:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=2", "--samples.every_n_steps=2", "--name=x"])
        for step in (1, 2):  # the record of another step is not uploaded
            measured(f"runs/x/checkpoints/step=000000{step}.ckpt").write(f"runs/x/test/{step}.json")
        environment = os.environ | hub.environment(folder)
        run = subprocess.run([sys.executable, "-c", PUSHED], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return folder, hub, run.stdout


def test_a_pushed_run_can_be_used_from_the_hub(pushed):
    folder, hub, said = pushed
    assert f"uploaded to {hub.url}/owner/shapes" in said
    assert (folder / "runs/hub/predict/videos/0000_left.mp4").is_file()
    assert set(hub.files["owner/shapes"]) == {
        *("README.md", "config.json", "model.safetensors", "samples.gif", "metrics/2.json")
    }
    assert set(hub.files["owner/net"]) == {"config.json", "model.safetensors"}


def test_the_card_has_configuration_metrics_with_protocol_and_samples(pushed):
    card = pushed[1].files["owner/shapes"]["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "latte_pl"
    assert "![Samples](samples.gif)" in text
    assert "toy-256-8f" in text
    assert "12.5" in text
    assert "step 2" in text
    assert "latte predict --ckpt_path hf://owner/shapes" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["model"]["net"]["init_args"]["depth"] == 2


def test_the_card_of_an_unmeasured_model_says_so():
    config = {"model": {"net": {"class_path": "latte_pl.nn.Latte", "init_args": {"conditioning": "text"}}}}
    card = model_card("owner/name", Weights({}, {}, config), [], None)
    assert "Not measured" in card
    assert "pipeline_tag: text-to-video" in card
    assert "![" not in card


def test_paths_of_this_machine_are_not_uploaded():
    config = {"data": {"root": "/home/me/videos", "size": [1, 2], "name": "a/b"}, "paths": ["~/x", 3, None]}
    assert public(config) == {"data": {"root": "videos", "size": [1, 2], "name": "a/b"}, "paths": ["x", 3, None]}


def test_a_model_is_read_back_from_a_folder(tmp_path):
    net = Latte(
        hidden_size=16, depth=2, num_heads=2, input_size=(4, 6), num_frames=2, conditioning="class", num_classes=3
    )
    torch.nn.init.normal_(net.final_layer.linear.weight)
    net.save_pretrained(tmp_path / "net")
    again = Latte.from_pretrained(tmp_path / "net")
    assert again.config == net.config
    x, t, labels = torch.randn(1, 2, 4, 4, 6), torch.tensor([5]), torch.tensor([2])
    assert torch.equal(again(x, t, labels), net(x, t, labels))
    with pytest.raises(ValueError, match="do not fit the options"):
        Latte.from_pretrained(tmp_path / "net", depth=4)
    (tmp_path / "net/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="contains no Latte"):
        Latte.from_pretrained(tmp_path / "net")
