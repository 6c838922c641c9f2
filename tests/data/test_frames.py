from pathlib import Path

import numpy as np
import pytest
from fake_videos import picture, write_frames
from PIL import Image

from latte_pl.data.frames import index_frames, order_frames, read_frames


def test_frames_are_ordered_by_number() -> None:
    assert order_frames(["f10.jpg", "f9.jpg", "f11.jpg", "f8.jpg"]) == ["f8.jpg", "f9.jpg", "f10.jpg", "f11.jpg"]


def test_frames_are_ordered_by_their_last_number() -> None:
    names = [f"07U1fSrk9oI_2_frames_{n:08}.jpg" for n in (99, 100, 101)]
    assert order_frames(reversed(names)) == names


def test_names_without_numbers_are_ordered_by_text() -> None:
    assert order_frames(["b.png", "a.png"]) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "names",
    [
        [f"frame{n:02}_face0.png" for n in range(12)],
        [f"{n}-01.png" for n in range(12)],
        [f"t{n:02}.00.png" for n in range(12)],
        [f"{n}x256.jpg" for n in range(12)],
        [f"cam1_{n}_1920x1080.jpg" for n in range(9, 21)],
        [f"{n}.0_left.png" for n in range(12)],
        [f"img_{n:05}_{1617181723 + 40 * n}.jpg" for n in range(12)],
        [f"frame-{n}-{0.04 * n:.2f}s.jpg" for n in range(12)],
        [f"t{n / 25:.3f}.png" for n in range(60)],
        [f"t{n / 30:.3f}.png" for n in range(60)],
        [f"{1305031102175 + 33 * n + n % 3}.png" for n in range(60)],
        [f"{n / 2:.1f}.png" for n in range(12)],
        [f"shot2.{n:04}.png" for n in range(12)],
        [f"1.{n}.png" for n in range(5, 15)],
    ],
    ids=lambda names: names[0],
)
def test_frames_are_ordered_by_the_number_that_varies(names: list[str]) -> None:
    assert order_frames(sorted(names)) == names


def test_constant_step_is_not_a_gap() -> None:
    assert order_frames([f"{n}.png" for n in (12, 3, 6, 9)]) == ["3.png", "6.png", "9.png", "12.png"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["1.png", "2.png", "5.png", "6.png"], "gap in frame numbers: 2 missing between 2 and 5"),
        (["0.png", "2.png", "5.png"], "gap in frame numbers: some missing between 2 and 5"),
        (["01.png", "1.png", "2.png"], "two files for frame 1: 01.png and 1.png"),
        (["1.jpg", "1.png"], "two files for frame 1: 1.jpg and 1.png"),
        (["a_1.png", "a_2.png", "b_1.png"], r"several videos \(a_\*, b_\*\)"),
        ([f"{1000 + 33 * n}.png" for n in (0, 1, 2, 5, 6, 7)], "gap in frame numbers: 2 missing between 1066 and 1165"),
        (["0.png", "12.png", "36.png"], "gap in frame numbers: 1 missing between 12 and 36"),
        (["1.png", "2.png", "cover.png"], "cover.png has no frame number"),
        ([f"frame{n}_face{f}.png" for n in range(3) for f in range(2)], r"several videos \(frame0_face\*, frame1_face"),
        ([f"{n}_{abs(2 - n)}.png" for n in range(5)], r"several videos \(0_\*, 1_\*\)"),
        (["p7_1.png", "p3_2.png", "p9_3.png"], r"several videos \(p3_\*, p7_\*\)"),
        (["a1_face0.png", "a2_face0.png", "a4_face0.png"], "gap in frame numbers: 1 missing between 2 and 4"),
        (["a1_face0.png", "a01_face0.png", "a2_face0.png"], "two files for frame 1: a01_face0.png and a1_face0.png"),
        (["a1_rgb2.png", "a2_mask2.png"], r"several videos \(a1_rgb\*, a2_mask\*\)"),
    ],
)
def test_names_without_an_order_raise(names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        order_frames(names)


def test_index_has_order_and_size(tmp_path: Path) -> None:
    write_frames(tmp_path, 12, "{}.jpg", first=5, size=(48, 80))
    found = index_frames(tmp_path, [p.name for p in tmp_path.iterdir()])
    assert found.names.split("/") == [f"{n}.jpg" for n in range(5, 17)]
    assert (found.num_frames, found.height, found.width) == (12, 48, 80)


def test_png_frames_are_exact_and_cropped_to_the_aspect_ratio(tmp_path: Path) -> None:
    write_frames(tmp_path, 4, "{}.png")
    frames = list(read_frames(tmp_path, ["1.png", "3.png"], (64, 64)))
    assert all(np.array_equal(frame, picture(n)[:, 8:56]) for frame, n in zip(frames, (1, 3)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_all_image_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(picture(3)).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode) if mode in ("P", "1") else grey.convert("RGB").convert(mode)
    name = "1.tif" if mode in ("CMYK", "I;16") else "1.png"
    image.save(tmp_path / name)
    (frame,) = read_frames(tmp_path, [name], (48, 64))
    expected = np.asarray(grey.convert("1").convert("L") if mode == "1" else grey)
    assert frame.shape == (48, 64, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - expected[..., None]).max() <= 0


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not an image at all",
            "cut": data[:middle],
            "altered": data[:middle] + bytes(8) + data[middle + 8 :],
        }[how]
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
@pytest.mark.parametrize("how", ["empty", "text", "cut"])
def test_unreadable_image_is_named(how: str, suffix: str, tmp_path: Path) -> None:
    write_frames(tmp_path, 4, "{}." + suffix)
    damage(tmp_path / f"2.{suffix}", how)
    reason = {"empty": "zero bytes", "text": "not an image", "cut": "(?i:truncated|too small)"}[how]
    with pytest.raises(ValueError, match=rf"unreadable image 2\.{suffix} \(.*({reason})"):
        index_frames(tmp_path, [f"{n}.{suffix}" for n in range(4)])


def test_damage_inside_a_png_is_found_without_decoding(tmp_path: Path) -> None:
    write_frames(tmp_path, 2, "{}.png")
    damage(tmp_path / "1.png", "altered")
    with pytest.raises(ValueError, match=r"unreadable image 1\.png"):
        index_frames(tmp_path, ["0.png", "1.png"])


def test_image_damaged_after_indexing_is_named_when_read(tmp_path: Path) -> None:
    write_frames(tmp_path, 2)
    damage(tmp_path / "0000001.jpg", "cut")
    with pytest.raises(ValueError, match=r"0000001\.jpg cannot be read .*latte data check"):
        list(read_frames(tmp_path, ["0000000.jpg", "0000001.jpg"], (48, 64)))
