"""Score finished videos of any model: folders of video files or of frames, and splits of a datamodule."""

import json
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import open_index
from latte_pl.evaluation.extractors import build_extractor
from latte_pl.evaluation.writer import MANIFEST, VIDEOS
from latte_pl.metrics.clips import RealClips, finished_clips, usable_videos
from latte_pl.metrics.evaluation import evaluate_clips
from latte_pl.metrics.protocol import EvaluationProtocol
from latte_pl.metrics.record import Record
from latte_pl.rng import numpy_generator

LOSSLESS = frozenset((".png", ".apng", ".bmp", ".tif", ".tiff", ".ppm"))
"""Suffixes of images that keep every pixel."""
LUMINANCE = (16, 11, 10, 16, 24, 40, 51, 61)
"""First row of the quantisation table of JPEG's standard, which a quality scales."""
PARTS = frozenset(("train", "val", "test", "validation", "videos", "images", "frames", "data"))
"""Names of folders that say nothing about the data set."""
SIMILAR_TIMES = 0.1
"""Relative difference of the times between two frames up to which two sides are compared."""


def evaluate_folders(
    real: str | None,
    fake: str,
    protocol: str = "files-toy-8f",
    size: int | tuple[int, int] | None = None,
    interval: int | None = None,
    generated_interval: int | None = None,
    fps: float | None = None,
    rates: Literal["check", "ignore"] = "check",
    split: str | None = None,
    fake_split: str | None = None,
    num_real: int | None = None,
    extractor_path: str | None = None,
    device: str | None = None,
) -> Record:
    """Score generated videos against real ones.

    Args:
        real: Folder of the real videos, or data configuration such as ``data/shapes.yaml``; None for protocols of
            generated videos alone.
        fake: The same for the generated videos, or the output folder of `latte predict`. One clip is read from the
            start of each.
        protocol: Name of a shipped protocol with ``weights: files``, or path of a YAML file.
        size: Height and width that both sides are cropped and rescaled to; None uses the protocol's, or the size of the
            first generated video.
        interval: Distance between consecutive frames of a real clip; None uses the protocol's, the data
            configuration's, or 1.
        generated_interval: The same for a generated clip; None uses the protocol's, or 1.
        fps: Frames a second at which both sides are read, by time; None reads frames by the intervals.
        rates: "check" refuses two sides whose frames are not equally far apart in time; "ignore" only records it.
        split: Split of the real videos; None uses "all" for a folder and "val" for a data configuration.
        fake_split: Split of the generated videos; None as for ``split``.
        num_real: Number of real clips, each of another video; None uses the protocol's, or one clip of each video.
        extractor_path: Weights of the protocol's extractor; None as in ``build_extractor``.
        device: Device of the extractor; None uses the first GPU, or the CPU if there is none.

    Returns:
        The record of the scores. ``about["real"]`` and ``about["generated"]`` say what was read; see `Videos.report`.

    Raises:
        FileNotFoundError: A folder, the protocol or the extractor's weights do not exist.
        ValueError: The videos or the arguments do not match the protocol, a folder contains videos twice, or the two
            sides have different times between frames.
    """
    began = time.monotonic()
    stated = EvaluationProtocol.stated(protocol)
    if stated.get("weights") != "files":
        raise ValueError(f"protocol {protocol} is for models (use it in `latte test`); choose one with weights: files")
    if not isinstance(frames := stated.get("num_frames"), int):
        raise ValueError(f"protocol {protocol} needs the key num_frames, the number of frames of a clip")
    if rates not in ("check", "ignore"):
        raise ValueError(f"rates is {rates!r}; it must be check or ignore")
    extractor = build_extractor(stated.get("extractor", ""), extractor_path)
    fps = float(stated.get("fps", 0.0) if fps is None else fps)
    if size is None and "height" in stated and "width" in stated:
        size = (stated["height"], stated["width"])
    if generated_interval is None:
        generated_interval = 1 if fps else stated.get("generated_interval", 1)
    fakes = Videos(_predicted(fake), fake_split, size, frames, generated_interval, fps)
    values: dict[str, Any] = {"dataset": "none", "fingerprint": "none", "split": "none", "resize": "centre-crop"}
    if stated.get("num_real") != 0:
        if real is None:
            raise ValueError(f"protocol {protocol} compares with real videos; set --real to their folder")
        if interval is None:
            interval = 1 if fps else stated.get("interval")
        whole = stated.get("real_frames") == "all"  # single frames of videos of any length
        reals = Videos(
            real, split, fakes.size, 1 if whole else frames, interval, fps, stated.get("min_video_frames", 0)
        )
        if rates == "check" and not whole:
            check_times(reals, fakes)
        if num_real is not None and num_real > len(reals.usable):
            raise ValueError(
                f"num_real is {num_real}, but {real} has {len(reals.usable)} usable videos; every video is used once"
            )
        values |= {"dataset": reals.name, "fingerprint": reals.dataset.fingerprint(), "split": reals.split}
        values |= {"interval": reals.interval, "resize": reals.resize}
        values["num_real"] = stated.get("num_real", len(reals.usable)) if num_real is None else num_real
    chosen = _choice(fakes.usable, stated)
    if fps:
        values["fps"] = fps
    complete = EvaluationProtocol.load(
        protocol,
        num_videos=len(reals.usable) if values.get("num_real") else None,
        height=fakes.size[0],
        width=fakes.size[1],
        num_generated=len(chosen),
        generated_interval=fakes.interval,
        generated_codec=fakes.codec(chosen),
        extractor_sha256=extractor.sha256,
        **values,
    )
    about: dict[str, Any] = {"generated": fakes.report(chosen)}
    clips: Iterator[Tensor] = iter(())
    labels = None
    if complete.num_real:
        readable = RealClips(reals.dataset, complete)
        about["real"] = reals.report(readable.videos)
        labels = readable.labels()
        clips = (readable[n] for n in range(len(readable)))
        if complete.real_frames == "all":
            clips = (part for n in range(len(readable)) for part in readable.all_frames(n))
    scores = evaluate_clips(
        clips,
        finished_clips(fakes.dataset, complete, chosen),
        complete,
        extractor,
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        real_labels=labels,
        generated_labels=[fakes.dataset.label(index) for index in chosen],
    )
    about["generated"]["fingerprint"] = fakes.dataset.fingerprint()
    return Record.make(fake, scores, complete, time.monotonic() - began, **about)


class Videos:
    """One side of a comparison: a folder of videos, or a split of a datamodule.

    Args:
        source: A folder, or a YAML file with the key ``data``: the user's, or a shipped one such as
            ``data/shapes.yaml``.
        split: The split; None uses "all" for a folder and "val" for a datamodule.
        size: Height and width in pixels; None uses the size of the first video, or the datamodule's.
        num_frames: Frames of a clip.
        interval: Distance between consecutive frames; None uses the datamodule's, or 1.
        fps: Frames a second of a clip that is read by time; 0 reads it by ``interval``.
        min_video_frames: Shorter videos are not used.

    Attributes:
        dataset: The videos.
        usable: Indices of the videos that the protocol can use.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: There are no usable videos, a folder contains videos twice, or the datamodule has another size or
            reads cached latents.
    """

    def __init__(
        self,
        source: str,
        split: str | None,
        size: int | tuple[int, int] | None,
        num_frames: int,
        interval: int | None,
        fps: float = 0.0,
        min_video_frames: int = 0,
    ) -> None:
        wanted = (size, size) if isinstance(size, int) else size
        self.source = source
        self.dataset: Any
        self.size: tuple[int, int]
        if source.endswith((".yaml", ".yml")):
            data = _datamodule(source)
            self.name, self.split = type(data).__name__, split or "val"
            if self.split not in ("train", "val"):
                raise ValueError(f"the split of {source} is {self.split!r}; a data configuration has train and val")
            self.interval = interval or data.interval
            self.size = (data.size[0], data.size[1])
            if wanted not in (None, self.size):
                raise ValueError(
                    f"the videos of {source} have {self.size} pixels, but {wanted} are needed; "
                    "change its data.size, or set --size"
                )
            self.dataset = data.dataset(self.split)  # type: ignore[arg-type]
            if self.dataset.key != "video":
                raise ValueError(f"{source} reads cached latents, but metrics need videos; leave out data.latents")
        else:
            self.name, self.split, self.interval = dataset_name(Path(source)), split or "all", interval or 1
            self.size = wanted or first_size(Path(source))
            refuse_doubles(Path(source))
            least = 1 if fps else num_frames  # read by time, the length that is needed depends on the rate
            options: Any = {"split": self.split, "num_frames": least, "interval": self.interval}
            self.dataset = VideoFolder(source, size=self.size, **options)
        self.resize = self.dataset.resize
        self._fps = fps
        self._codecs: dict[int, str] = {}
        limits = {"num_frames": num_frames, "fps": fps, "min_video_frames": min_video_frames}
        self.usable = usable_videos(self.dataset, limits)
        if not self.usable:
            raise ValueError(f"no video of {source} is long enough for a clip of {num_frames} frames")

    def seconds_between_frames(self) -> float | None:
        """Return the time between two frames of a clip, the median over the videos; None if no file states it."""
        if self._fps:
            return 1 / self._fps
        known = [rate for index in self.usable if (rate := self._rate(index))]
        return self.interval / statistics.median(known) if known else None

    def codec(self, videos: Sequence[int]) -> str:
        """Return the protocol's ``generated_codec`` of these videos: what their files are, "none" if lossless."""
        lossless = {suffix[1:] for suffix in LOSSLESS} | {"drawn"}
        found = {codec for index in videos if not set((codec := self._codec(index)).split()) <= lossless}
        return " + ".join(sorted(found)) or "none"

    def report(self, videos: Sequence[int]) -> dict[str, Any]:
        """Return what is read of these videos, as JSON types.

        The keys are ``source``, ``clips``, ``videos`` (that can be used), ``skipped`` (that cannot), ``interval``,
        ``seconds_between_frames``, and the number of clips by source ``sizes`` (height x width), frame ``rates`` and
        ``files`` (container, codec, pixel format and quality, where the file states it).
        """
        sizes: Counter[str] = Counter()
        if hasattr(self.dataset, "source_size"):
            sizes.update("{}x{}".format(*self.dataset.source_size(index)) for index in videos)
        else:
            sizes["{}x{}".format(*self.size)] = len(videos)
        rates = Counter(f"{rate:.5g}" if (rate := self._rate(index)) else "unknown" for index in videos)
        return {
            "source": self.source,
            "clips": len(videos),
            "videos": len(self.usable),
            "skipped": len(getattr(self.dataset, "skipped", ())) + len(self.dataset) - len(self.usable),
            "interval": self.interval,
            "seconds_between_frames": self.seconds_between_frames(),
            "sizes": dict(sizes.most_common()),
            "rates": dict(rates.most_common()),
            "files": dict(Counter(map(self._codec, videos)).most_common()),
        }

    def _rate(self, index: int) -> float:
        return float(self.dataset.fps(index)) if callable(getattr(self.dataset, "fps", None)) else 0.0

    def _codec(self, index: int) -> str:
        if index not in self._codecs:
            drawn = not hasattr(self.dataset, "path")
            self._codecs[index] = "drawn" if drawn else codec_of(self.dataset.root / self.dataset.path(index))
        return self._codecs[index]


def codec_of(path: Path) -> str:
    """Return container, codec, pixel format and quality of a video file or folder of frames, as far as it states them.

    Examples are "mp4 h264 yuv420p crf 10", "gif", "jpeg q75" and "png".
    """
    if path.is_dir():
        suffixes = sorted({file.suffix.lower() for file in path.iterdir() if not file.name.startswith(".")})
        images = [suffix for suffix in suffixes if suffix in LOSSLESS | {".jpg", ".jpeg", ".webp"}]
        if set(images) & {".jpg", ".jpeg"}:
            first = min(file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
            return f"jpeg{_jpeg_quality(first)}"
        return " ".join(suffix[1:] for suffix in images)
    if path.suffix.lower() in (".gif", ".webp", ".png", ".apng"):
        return path.suffix[1:].lower()
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        name = f"{path.suffix[1:].lower()} {stream.codec_context.name} {stream.codec_context.pix_fmt}"
        packet = next(container.demux(stream), None)
        # x264 and x265 write their settings into the first packet
        setting = re.search(rb"x26[45].{0,200}options:.{0,2000}? crf=([\d.]+)", bytes(packet or b""), re.DOTALL)
    return f"{name} crf {float(setting[1]):g}" if setting else name


def _jpeg_quality(path: Path) -> str:
    """Return " q75" if the quantisation table is the standard one at this quality, else ""."""
    from PIL import Image

    with Image.open(path) as image:
        table = list(getattr(image, "quantization", {}).get(0, ()))[: len(LUMINANCE)]
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        if table == [min(max((entry * scale + 50) // 100, 1), 255) for entry in LUMINANCE]:
            return f" q{quality}"
    return ""


def refuse_doubles(root: Path) -> None:
    """Raise ValueError if videos of the same name are in a folder in several formats, such as MP4 and GIF."""
    formats: dict[str, dict[str, str]] = defaultdict(dict)
    for item in VideoFolder.layout(root).items:
        path = Path(item.found.path)
        kind, stem = ("frames", path.name) if item.found.names else (path.suffix.lower(), path.stem)
        formats[stem][kind] = item.found.path
    doubles = [list(places.values()) for places in formats.values() if len(places) > 1]
    if doubles:
        raise ValueError(
            f"{root} contains {len(doubles)} videos in several formats, such as {' and '.join(doubles[0][:2])}; "
            "they would be counted twice, so keep one format in the folder"
        )


def check_times(real: Videos, generated: Videos) -> None:
    """Compare the times between two frames of a clip, where both sides state them.

    Raises:
        ValueError: They differ by more than 10 %.
    """
    times = [side.seconds_between_frames() for side in (real, generated)]
    if times[0] is None or times[1] is None or abs(times[0] / times[1] - 1) <= SIMILAR_TIMES:
        return
    raise ValueError(
        f"frames of the real clips are {times[0]:.4g} s apart and those of the generated clips {times[1]:.4g} s, so "
        f"motion has another speed; change --interval ({real.interval}) or --generated_interval "
        f"({generated.interval}), read both sides by time with --fps, or set --rates ignore if the files state wrong "
        "frame rates"
    )


def dataset_name(folder: Path) -> str:
    """Return the name of a folder, or of the folder above if it only names a part of a data set, such as "train"."""
    whole = folder.resolve()
    return next((part for part in reversed(whole.parts[1:]) if part.lower() not in PARTS), whole.name)


def first_size(root: Path) -> tuple[int, int]:
    """Return height and width of the first usable video of a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder contains no usable video.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    for item in VideoFolder.layout(root).items:
        if (index := open_index(root, [item.found])[0].index) is not None:
            return index.height, index.width
    raise ValueError(f"no usable video in {root}; expected {VideoFolder.expected.format(root=root)}")


def _predicted(source: str) -> str:
    """Return the folder of the videos if ``source`` is an output folder of `latte predict`, else ``source``.

    Raises:
        ValueError: `latte predict` did not finish there.
    """
    manifest = Path(source, MANIFEST)
    if not manifest.is_file():
        return source
    if not json.loads(manifest.read_text(encoding="utf-8")).get("complete"):
        raise ValueError(f"latte predict did not finish in {source}, so samples are missing; run it again")
    return str(Path(source, VIDEOS))


def _choice(videos: list[int], stated: dict[str, Any]) -> list[int]:
    """Return the generated videos to use: all, or as many as the protocol states, drawn from its seed."""
    count = stated.get("num_generated", len(videos))
    if count >= len(videos):
        return videos
    order = numpy_generator(stated.get("seed", 0), "generated order").permutation(len(videos))
    return sorted(videos[place] for place in order[:count])


def _datamodule(source: str) -> VideoDataModule:
    """Build the datamodule of a YAML file: the user's, or one that the package contains."""
    from jsonargparse import ArgumentParser

    for file in (Path(source), resources.files("latte_pl") / "configs" / source):
        if file.is_file():
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(config, dict) or "data" not in config:
                raise ValueError(f"{source} has no key data; use a data configuration such as data/shapes.yaml")
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(VideoDataModule, "data")
            return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    raise FileNotFoundError(f"there is no data configuration {source}")
