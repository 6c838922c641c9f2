"""`latte encode` in several processes writes the cache of one."""

import os
import re
from pathlib import Path

import pytest
from runs import write_videos

from latte_pl import cli
from latte_pl.data.latents import Manifest
from latte_pl.data.shards import checksum, shard_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos and the cache of one process, "one"."""
    folder = tmp_path_factory.mktemp("encode")
    command = write_videos(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main([*command, "--output=one"])
    return folder


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["encode", "-c", "encode.yaml", "--shard_frames=24", "--device=cpu"]


def test_two_processes_write_the_cache_of_one(
    command: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.main([*command, "--output=two", "--devices=2"])
    one, two = (Manifest.read(folder / name) for name in ("one", "two"))
    assert len(one.checksums) == 3
    assert two == one
    assert "train with --data.latents two" in capfd.readouterr().out
    path = folder / "two" / shard_name(1)
    content, before = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[-1] ^= 1
    path.write_bytes(content)
    (folder / "two" / shard_name(2)).unlink()
    kept = (folder / "two" / shard_name(0)).stat().st_mtime_ns
    cli.main([*command, "--output=two", "--devices=2"])
    assert [checksum(folder / "two" / shard_name(n)) for n in range(3)] == one.checksums
    assert (folder / "two" / shard_name(0)).stat().st_mtime_ns == kept
    assert path.stat().st_mtime_ns > before
    logs = [(folder / f"two/encode-{n}.log").read_text() for n in range(2)]
    assert re.search(r"shard-00001\.safetensors is damaged and is encoded again", logs[1])  # its own share
    assert "damaged" not in logs[0]


def test_failed_processes_are_named_in_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(
            [*command, "--output=failed", "--devices=2", "--data.size=[15, 24]", "--model.autoencoder=KLAutoencoder"]
        )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"2 of 2 processes failed \(failed/encode-0\.log: latte: error: .*\); the same command resumes", error
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--devices=0"], "devices is 0; it must be at least 1"),
        (["--shard_frames=0"], "shard_frames is 0"),
        (["--slurm.jobs=-1"], "slurm.jobs is -1"),
        (["--share=[2, 2]"], r"share is \[2, 2\]; the index must lie in 0..1"),
        (["--devices=2", "--device=cuda:0"], "use --device cuda or cpu for several processes"),
        (["--devices=99", "--device=cuda"], "devices is 99, but this machine has"),
    ],
)
def test_mistake_ends_with_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*command, "--output=none", *more])
    assert re.search(message, capsys.readouterr().err.strip().splitlines()[-1])
    assert not os.path.exists("none")
