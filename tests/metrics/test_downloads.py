import hashlib
import io
import urllib.error

import pytest

from latte_pl.metrics import I3D, downloads
from latte_pl.metrics.downloads import find_weights
from latte_pl.metrics.extractors import I3D_SHA256


def test_a_file_is_downloaded_once_and_verified(tmp_path, monkeypatch):
    data, calls = b"weights" * 1000, []

    def urlopen(url, timeout):
        calls.append(url)
        return io.BytesIO(data)

    monkeypatch.setenv("LATTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads.urllib.request, "urlopen", urlopen)
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        assert find_weights("w.pt", "https://host/w.pt", digest).read_bytes() == data
    assert calls == ["https://host/w.pt"]
    with pytest.raises(ValueError, match=r"the download of other\.pt"):
        find_weights("other.pt", "https://host/other.pt", "0" * 64)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["w.pt"]  # no incomplete or wrong file


def test_error_without_internet_names_file_address_and_checksum(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("LATTE_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads.urllib.request, "urlopen", urlopen)
    with pytest.raises(FileNotFoundError) as error:
        I3D()
    for part in (str(tmp_path / "i3d_torchscript.pt"), "dropbox.com", "no network", I3D_SHA256):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_broken_connection_leaves_no_file(tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, *args):
            if self.tell():
                raise ConnectionResetError("connection reset")
            return super().read(7)

    monkeypatch.setenv("LATTE_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda url, timeout: Broken(b"weights" * 1000))
    with pytest.raises(FileNotFoundError, match="connection reset"):
        find_weights("w.pt", "https://host/w.pt", None)
    assert not list(tmp_path.iterdir())
