import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from latte_pl.files import read_json, replaced, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_created_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "record.json"
    for text in ("first", "second, ñ"):
        write_text(str(path), text)
        assert path.read_bytes() == text.encode()
        assert names(path.parent) == ["record.json"]


def test_the_previous_file_is_visible_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replaced(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_previous_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with replaced(path) as temporary:
            temporary.write_text("half of the n")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_keeps_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    code = """
import sys, time
from latte_pl.files import replaced
with replaced(sys.argv[1]) as temporary, temporary.open("w") as file:
    file.write("half of the n")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


@contextmanager
def full_disk():
    """Let no file of this process grow beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch.save": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: save_file({"x": torch.zeros(100_000)}, path),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")

    def replace():
        with replaced(path) as temporary:
            write(temporary)

    with full_disk(), pytest.raises(OSError, match=r"cannot write .*file: .*; the previous file") as error:
        replace()
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_os_error_that_names_the_file(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"cannot write .*file: Permission denied"):
        write_text(tmp_path / "file", "new")


def test_a_file_in_place_of_a_folder_is_an_os_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=r"cannot write .*file/record\.json: "):
        write_text(tmp_path / "file" / "record.json", "new")


def test_concurrent_writers_never_mix_their_contents(tmp_path):
    path = tmp_path / "file"
    contents = [letter * 50_000 for letter in "abcd"]
    write_text(path, contents[0])

    def write(text):
        for _ in range(25):
            write_text(path, text)

    with ThreadPoolExecutor(len(contents)) as pool:
        writers = [pool.submit(write, text) for text in contents]
        while not all(writer.done() for writer in writers):
            assert path.read_text() in contents
        for writer in writers:
            writer.result()
    assert names(tmp_path) == ["file"]


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "result.json"
    content = {"ñ": [1.5, float("1e-300")], "pair": (1, None), "steps": {10: "a", 9: "b"}}
    write_json(path, content)
    assert read_json(path) == {"ñ": [1.5, 1e-300], "pair": [1, None], "steps": {"10": "a", "9": "b"}}
    path.write_text(json.dumps(json.loads(path.read_text()), indent=8, sort_keys=True))  # another layout is no damage
    assert read_json(path)["pair"] == [1, None]


@pytest.mark.parametrize("change", [("1.5", "1.6"), ("null", "0"), ('"a"', '"A"'), ('"9"', '"8"')])
def test_changed_json_is_refused(tmp_path, change):
    path = tmp_path / "result.json"
    write_json(path, {"values": [1.5, None], "steps": {9: "a"}})
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=r"result\.json was modified or damaged"):
        read_json(path)


def test_json_without_a_digest_is_read(tmp_path):
    (tmp_path / "result.json").write_text('{"value": 1}')
    assert read_json(tmp_path / "result.json") == {"value": 1}
