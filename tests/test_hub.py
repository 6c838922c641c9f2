"""Files of the hub: addresses, downloads and their failures, against a server on this machine."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hub_server import COMMIT, serve

from latte_pl import hub
from latte_pl.hub import Address


@pytest.fixture(scope="module")
def server():
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(server):
    server.files, server.requests = {"owner/repo": {"weights.pt": b"w" * 100_000, "a/b.txt": b"b"}}, []
    server.broken, server.stated = Counter(), {}


def find(server, home, name, code="print(hub.find(name))", **environment):
    """Call `hub.find` in a process of its own, because the hub's library reads the variables when it is imported."""
    # the library waits up to 23 s between its attempts
    code = f"import sys, time; time.sleep = lambda s: None; from latte_pl import hub; name = sys.argv[1]; {code}"
    run = subprocess.run(
        [sys.executable, "-c", code, name],
        env=os.environ | server.environment(home) | environment,
        capture_output=True,
        text=True,
    )
    last = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()[-1]
    return Path(last) if run.returncode == 0 else last


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/repo", Address("owner/repo")),
        ("hf://owner/repo/weights.pt", Address("owner/repo", "weights.pt")),
        ("hf://owner/repo/a/b.pt@v1.0", Address("owner/repo", "a/b.pt", "v1.0")),
        ("hf://owner/repo@refs/pr/1", Address("owner/repo", revision="refs/pr/1")),
    ],
)
def test_addresses_are_parsed_and_written(text, address):
    assert Address.parse(text) == Address.parse(Path(text)) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["hf://repo", "hf://owner/", "hf://owner/repo/../secret", "hf://owner/repo/a@", "x"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="is no address of the hub"):
        Address.parse(text)


def test_local_files_come_before_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_remote("official/ffs")
    (tmp_path / "official").mkdir()
    (tmp_path / "official/ffs").touch()
    assert not hub.is_remote("official/ffs")
    assert hub.find("official/ffs") == Path("official/ffs")


def test_a_file_is_downloaded_once(server, tmp_path):
    path = find(server, tmp_path, "hf://owner/repo/weights.pt")
    assert path.name == "weights.pt"
    assert path.read_bytes() == b"w" * 100_000
    assert find(server, tmp_path, f"hf://owner/repo/weights.pt@{COMMIT}") == path
    assert [method for method, _, _ in server.requests].count("GET") == 1


def test_official_weights_have_names(server, tmp_path):
    server.files["maxin-cn/Latte"] = {"ffs.pt": b"faces"}
    assert find(server, tmp_path, "official/ffs").read_bytes() == b"faces"


def test_without_network_the_cache_is_used(server, tmp_path):
    path = find(server, tmp_path, "hf://owner/repo/weights.pt")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert find(server, tmp_path, "hf://owner/repo/weights.pt", **nowhere) == path
    assert find(server, tmp_path, "hf://owner/repo/weights.pt", HF_HUB_OFFLINE="1") == path
    said = find(server, tmp_path, "hf://owner/repo/a/b.txt", **nowhere)
    assert "http://127.0.0.1:9 cannot be reached and the file is not in the cache; check network and proxies" in said
    said = find(server, tmp_path, "hf://owner/repo/a/b.txt", HF_HUB_OFFLINE="1")
    assert said.endswith("HF_HUB_OFFLINE is set and the file is not in the cache")


def test_proxies_of_the_environment_are_used(server, tmp_path):
    said = find(server, tmp_path, "hf://owner/repo/weights.pt", HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="")
    assert "cannot be downloaded" in said
    assert not server.requests


def test_an_interrupted_download_resumes(server, tmp_path):
    server.files["owner/repo"]["weights.pt"] = b"w" * 30_000_000  # it is written in parts of 10 MB
    server.broken["weights.pt"] = 1
    path = find(server, tmp_path, "hf://owner/repo/weights.pt")
    if isinstance(path, str):  # older versions of the library resume when the command runs again
        path = find(server, tmp_path, "hf://owner/repo/weights.pt")
    assert path.stat().st_size == 30_000_000
    assert re.fullmatch(r"bytes=\d{8}-", next(part for _, _, part in server.requests if part))


def test_a_download_that_keeps_breaking_is_no_file(server, tmp_path):
    server.broken["weights.pt"] = 99
    assert "hf://owner/repo/weights.pt cannot be downloaded" in find(server, tmp_path, "hf://owner/repo/weights.pt")
    server.broken.clear()
    assert find(server, tmp_path, "hf://owner/repo/weights.pt").read_bytes() == b"w" * 100_000


def test_a_file_with_another_checksum_is_deleted(server, tmp_path):
    server.stated["weights.pt"] = "0" * 64
    said = find(server, tmp_path, "hf://owner/repo/weights.pt")
    assert said.endswith(f"expected {'0' * 64}; the file is deleted, download it again")
    server.stated.clear()
    assert find(server, tmp_path, "hf://owner/repo/weights.pt").read_bytes() == b"w" * 100_000
    known = f"print(hub.download(hub.Address.parse(name), '{'1' * 64}'))"
    assert f"expected {'1' * 64}" in find(server, tmp_path, "hf://owner/repo/weights.pt", known)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://owner/other/a", "there is no such repository, or it is private and needs a token (hf auth login)"),
        ("hf://owner/repo/a", "the repository has no such file"),
        ("hf://owner/repo/weights.pt@v9", "the repository has no such revision"),
    ],
)
def test_what_is_missing_is_named(server, tmp_path, name, said):
    assert find(server, tmp_path, name).endswith(f"{name} cannot be downloaded: {said}")


def test_files_are_listed_with_their_checksums(server, tmp_path):
    code = "print(sorted(hub.files(hub.Address.parse(name)).items())[1])"
    assert "('weights.pt', '" in str(find(server, tmp_path, "hf://owner/repo", code))


def test_a_folder_is_uploaded(server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/README.md").write_text("card")
    code = f"from pathlib import Path; print(hub.push(Path({str(tmp_path / 'folder')!r}), name, 'message'))"
    assert str(find(server, tmp_path, "owner/new", code)).endswith("/owner/new")
    assert server.files["owner/new"]["README.md"] == b"card"
    assert "cannot be uploaded" in find(server, tmp_path, "owner/new", code, HF_TOKEN="hf_wrong")
    assert "'new' is no repository of the hub; write OWNER/REPO" in find(server, tmp_path, "new", code)
