"""Downloads of data sets from the hub and from a page: interrupted, damaged, refused; on a server of this machine."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from fake_videos import write_video
from hub_server import serve

from latte_pl import cli
from latte_pl.data import download
from latte_pl.data.download import SOURCES, Source, fetch, is_part, unpack

TWICE = """
from latte_pl import cli

for _ in range(2):
    try:
        cli.main(["data", "download", "taichi", "root", "--accept-licence"])
    except SystemExit as stop:
        assert stop.code == 0
"""


@pytest.fixture
def server():
    with serve() as running:
        yield running


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def command(capsys, *args):
    """Run `latte data`, and return exit status, output and error."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", *args])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def test_the_licence_is_shown_before_anything_is_downloaded(tmp_path, capsys):
    code, out, err = command(capsys, "download", "faceforensics", str(tmp_path / "ffs"))
    assert code == 2
    assert "terms of use" in out
    assert err.strip() == "latte: error: add --accept-licence to agree, and to download"
    assert not (tmp_path / "ffs").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shapes", "there is nothing to download"),
        ("folder", "put your own videos into a folder"),
        ("kinetics", "unknown data set kinetics; those that can be downloaded are ucf101, faceforensics"),
    ],
)
def test_other_data_sets_say_what_to_do(name, said, tmp_path, capsys):
    assert said in command(capsys, "download", name, str(tmp_path), "--accept-licence")[2]


def test_a_copy_of_the_hub_is_unpacked_and_checked(server, tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=50)
    video = (tmp_path / "a.mp4").read_bytes()
    archive = zipped(**{"taichi/train/a.mp4": video, "taichi/test/b.mp4": video})
    server.files["datasets/maxin-cn/Taichi-HD"] = {"taichi.zip": archive, "README.md": b"x", ".gitattributes": b""}
    server.broken["taichi.zip"] = 1
    environment = os.environ | server.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 usable videos") == 2
    assert (tmp_path / "root/taichi/train/a.mp4").read_bytes() == video
    assert sorted(path.name for path in (tmp_path / "root/.download").glob("*.*")) == [".cache", "taichi.zip.done"]
    fetched = [path for method, path, _ in server.requests if method == "GET" and path.endswith("taichi.zip")]
    assert len(fetched) == 2  # the first answer broke


def test_an_interrupted_download_resumes_and_is_whole(server, tmp_path):
    body = bytes(range(256)) * 20_000
    server.plain["UCF101.rar"] = body
    server.broken["UCF101.rar"] = 1
    with pytest.raises(
        FileNotFoundError, match=r"2,560,000 of 5,120,000 bytes\); run the same command again to resume"
    ):
        fetch(f"{server.url}/UCF101.rar", tmp_path / "UCF101.rar")
    assert not (tmp_path / "UCF101.rar").exists()
    fetch(f"{server.url}/UCF101.rar", tmp_path / "UCF101.rar")
    assert (tmp_path / "UCF101.rar").read_bytes() == body
    assert [part for _, _, part in server.requests] == ["", "bytes=2560000-"]
    fetch(f"{server.url}/UCF101.rar", tmp_path / "UCF101.rar")
    assert len(server.requests) == 2


def test_a_wrong_checksum_and_an_absent_server_are_named(server, tmp_path):
    server.plain["a"] = b"a"
    with pytest.raises(ValueError, match=f"expected {'0' * 64}; the file is deleted"):
        fetch(f"{server.url}/a", tmp_path / "a", "0" * 64)
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError, match="b cannot be downloaded"):
        fetch(f"{server.url}/b", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=f"put it at {tmp_path / 'c'}"):
        fetch("http://127.0.0.1:9/c", tmp_path / "c")


def test_programs_unpack_what_python_cannot(server, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/unrar"
    program.write_text(f'#!{sys.executable}\nimport sys, pathlib\n(pathlib.Path(sys.argv[-1]) / "UCF-101").mkdir()\n')
    program.chmod(0o755)
    lists = zipped(**{"ucfTrainTestlist/classInd.txt": "1 Swing\n"})
    server.plain |= {"UCF101.rar": b"Rar!", "Splits.zip": lists}
    urls = {f"{server.url}/UCF101.rar": None, f"{server.url}/Splits.zip": None}
    monkeypatch.setitem(SOURCES, "ucf101", Source("licence", urls=urls))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="needs one of the programs unrar, bsdtar, 7z; install one"):
        download.download("ucf101", tmp_path / "root")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    download.download("ucf101", tmp_path / "root")
    assert (tmp_path / "root/UCF-101").is_dir()
    assert (tmp_path / "root/ucfTrainTestlist/classInd.txt").is_file()
    assert len([path for _, path, _ in server.requests if path == "UCF101.rar"]) == 1


def test_archives_are_unpacked_below_the_root(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../outside")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(ValueError, match="is damaged"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "root")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "b.zip").write_bytes(zipped(x="1")[:40])
    with pytest.raises(ValueError, match="is damaged"):
        unpack(tmp_path / "b.zip", tmp_path / "root")


def test_parts_of_split_archives_are_known(tmp_path):
    assert is_part(tmp_path / "taichi.z01")
    assert not is_part(tmp_path / "taichi.zip")
    for name in ("taichi.z01", "taichi.zip"):
        (tmp_path / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(FileNotFoundError, match="7z, 7zz"):
            unpack(tmp_path / "taichi.zip", tmp_path)
