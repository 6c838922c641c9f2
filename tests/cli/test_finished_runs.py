"""Explicit values win over configuration files wherever they stand, and a finished run says that it is finished."""

import pytest
from runs import write_config

from latte_pl import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_config(tmp_path)
    (tmp_path / "other.yaml").write_text("name: other\ntrainer: {max_steps: 9}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_explicit_values_before_a_configuration_file_win(folder, capsys):
    args = ["fit", "-c", "tiny.yaml", "--name=first", "--trainer.max_steps=1", "-c", "other.yaml"]
    cli.main(args)
    assert [path.name for path in (folder / "runs").iterdir()] == ["first"]
    assert [path.name for path in (folder / "runs/first/checkpoints").iterdir()] == ["step=0000001.ckpt"]
    assert "is finished" not in capsys.readouterr().out

    cli.main(args)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is finished" in line]
    assert line.startswith("runs/first is finished: runs/first/checkpoints/step=0000001.ckpt has step 1")
    assert "raise trainer.max_steps to train further, or choose another --name" in line

    cli.main([*args, "--trainer.max_steps=2"])
    assert (folder / "runs/first/checkpoints/step=0000002.ckpt").is_file()
