"""Score finished videos of any model against real videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from latte_pl.cli.functions import run


def main(args: Sequence[str]) -> None:
    """Run `latte evaluate`."""
    run("latte evaluate", evaluate, args, positional=False)


def evaluate(
    fake: str,
    real: str | None = None,
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
    output: str | None = None,
) -> None:
    """Score finished videos of any model against real videos.

    The command prints what it read, the scores with intervals and labels, and what makes them not comparable with the
    paper's. It writes them with their evaluation protocol to a record, which `latte compare` reads.

    Args:
        fake: The generated videos: a folder of video files (MP4, GIF, ...) or of frame folders of any size, the output
            folder of `latte predict`, or a data configuration such as data/shapes.yaml. One clip is read from the start
            of each.
        real: The real videos, as for fake. Not needed by protocols of generated videos alone.
        protocol: Evaluation protocol for finished videos, such as files-toy-8f, files-fvd-16f or
            files-paper-fvd2048-16f, or the path of a YAML file.
        size: Height and width in pixels that both sides are cropped and rescaled to. Default: the protocol's, or the
            size of the first generated video.
        interval: Distance between consecutive frames of a real clip. Default: the protocol's, the data configuration's,
            or 1.
        generated_interval: Distance between consecutive frames of a generated clip. Default: the protocol's, or 1.
        fps: Read both sides at this number of frames a second, by time, and ignore the intervals.
        rates: "check" refuses two sides whose frames are not equally far apart in time (frame rate and interval);
            "ignore" compares them anyway.
        split: Split of the real videos: train, val, test or all. Default: all for a folder, val for a data
            configuration.
        fake_split: Split of the generated videos, as for split.
        num_real: Number of real clips, each of another video. Default: the protocol's, or one clip of each video.
        extractor_path: File with the weights of the protocol's extractor, or hf://OWNER/REPO/FILE. Default: shipped
            with the package, or downloaded once.
        device: Device of the extractor, such as cpu or cuda:1. Default: the first GPU, or the CPU if there is none.
        output: File of the record. Default: FAKE_PROTOCOL_HASH.json beside the folder of the generated videos.

    Raises:
        FileNotFoundError: A folder, the protocol or the extractor's weights do not exist.
        ValueError: The videos or the arguments do not match the protocol, a folder contains videos twice, or the two
            sides have different times between frames.
    """
    from latte_pl.evaluation.folders import evaluate_folders
    from latte_pl.metrics import differences_from_paper, text

    record = evaluate_folders(
        real,
        fake,
        protocol,
        size=size,
        interval=interval,
        generated_interval=generated_interval,
        fps=fps,
        rates=rates,
        split=split,
        fake_split=fake_split,
        num_real=num_real,
        extractor_path=extractor_path,
        device=device,
    )
    name = f"{Path(fake).stem}_{record.protocol.name.partition('+')[0]}_{record.protocol.hash[:12]}.json"
    path = Path(output) if output else Path(fake).parent / name if Path(fake).is_dir() else Path(name)
    record.write(path)
    sides = [f"{side:<11}{summary(record.about[side])}" for side in ("real", "generated") if side in record.about]
    videos = record.about["real"]["videos"] if "real" in record.about else 0
    different = differences_from_paper(record.protocol, videos)
    verdict = (
        "not comparable with the paper's values:"
        if different
        else ("measured as the paper's code does; the paper's real videos are those of the training split")
    )
    lines = ["", *sides, "", text([record]), "", verdict, *(f"  {words}" for words in different), "", f"record  {path}"]
    print("\n".join(lines))


def summary(side: dict[str, Any]) -> str:
    """Return what was read of one side as one line: clips, videos, sizes, frame rates and files."""

    def counted(counts: dict[str, int]) -> str:
        shown = [f"{name} ({count})" if len(counts) > 1 else name for name, count in list(counts.items())[:4]]
        return ", ".join(shown) + (f", and {len(counts) - 4} more" if len(counts) > 4 else "")

    seconds = side["seconds_between_frames"]
    apart = "times unknown" if seconds is None else f"{seconds:.4g} s apart"
    skipped = f", {side['skipped']} skipped" if side["skipped"] else ""
    return (
        f"{side['clips']} clips of {side['videos']} videos{skipped} in {side['source']}: "
        f"{counted(side['sizes'])} pixels, {counted(side['rates'])} fps, interval {side['interval']} ({apart}), "
        f"{counted(side['files'])}"
    )
