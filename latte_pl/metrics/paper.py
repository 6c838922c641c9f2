"""The values of the paper and of others, with their status, and what a protocol does differently from the paper's."""

import csv
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from latte_pl.metrics.protocol import EvaluationProtocol

PAPER_METRICS = {"fvd": "FVD16", "fid": "FID", "fid_legacy": "FID", "inception_score": "IS"}
"""Name in the table of published values of each metric."""
STATUS = {
    "quoted": "quoted by",
    "issue": "reported in",
    "recalled": "recalled, not checked",
    "code": "counted from the code",
}
"""Words for the status of a value: how it is known."""
DATASETS = {
    "ucf101": "UCF101",
    "faceforensics": "FaceForensics",
    "ffs": "FaceForensics",
    "skytimelapse": "SkyTimelapse",
    "sky": "SkyTimelapse",
    "taichihd": "Taichi-HD",
    "taichi": "Taichi-HD",
}
"""Name in the table of published values of each dataset, whose own name is compared without signs and upper case."""
PAPER_PROTOCOLS = {
    "fvd": "paper-fvd2048-16f",
    "fid_legacy": "paper-fid50k-full",
    "inception_score": "paper-is2048-ucf101",
}
"""Protocol of the paper's code for each metric."""
COMPARED = {
    "interval": "real clips have interval {ours}, the paper's {theirs}",
    "num_frames": "clips have {ours} frames, the paper's {theirs}",
    "height": "clips are {ours} pixels high, the paper's {theirs}",
    "width": "clips are {ours} pixels wide, the paper's {theirs}",
    "resize": "real videos are resized by {ours}, the paper's by {theirs}",
    "resample": "frames are rescaled by the {ours} filter, the paper's by {theirs}",
    "jpeg_quality": "frames go through JPEG of quality {ours} (0: none), the paper's through {theirs}",
    "generated_codec": "generated clips are {ours}, the paper's {theirs}",
    "view": "starts of real clips are {ours}, the paper's {theirs}",
    "min_video_frames": "real videos have at least {ours} frames (0: those of a clip), the paper's {theirs}",
    "flip": "flips of real clips are {ours}, the paper's {theirs}",
    "fps": "clips are read at {ours} frames a second (0: by interval), the paper's at {theirs}",
    "real_frames": "the real frames are those of {ours}, the paper's of {theirs}",
    "num_generated": "{ours} generated clips, the paper has {theirs}",
    "generated_interval": "generated clips have interval {ours}, the paper's {theirs}",
}
"""What to say where a field differs from the paper's protocol."""
COMPARED_OF_MODELS = {
    "weights": "samples are drawn from the {ours} weights, the paper's from the {theirs} weights",
    "sampler": "samples are drawn by {ours}, the paper's by {theirs}",
    "steps": "samples take {ours} steps, the paper's {theirs}",
    "eta": "samples are drawn with eta {ours}, the paper's with {theirs}",
}
"""The same for the fields of samples that the package draws itself."""


class PublishedValue(NamedTuple):
    """A value that others published. It is never mixed with measured ones."""

    table: str
    """Table of the paper that it belongs to: "fvd", "is-fid", "size" or "variant"; "fvd-remeasured" and
    "fid-remeasured" are independent measurements of the released weights."""
    system: str
    """Model or variant."""
    dataset: str
    """Dataset; "" if it depends on none."""
    metric: str
    """Metric, such as "FVD16"."""
    value: float
    """The value."""
    status: str
    """How it is known: a key of ``STATUS``."""
    source: str
    """Where it is from."""

    def text(self) -> str:
        """Return the value with its status, such as "478 (quoted by AR-Diffusion Table 1)"."""
        about = f"{STATUS[self.status]} {self.source}".strip()
        return f"{self.value:g} ({'measured again, ' if self.table.endswith('remeasured') else ''}{about})"


@cache
def paper_values() -> tuple[PublishedValue, ...]:
    """Return all published values that the package contains (``paper_values.csv``)."""
    text = (resources.files("latte_pl") / "metrics/paper_values.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(PublishedValue(**row | {"value": float(row["value"])}) for row in rows)  # type: ignore[arg-type]


def published_values(protocol: EvaluationProtocol) -> list[PublishedValue]:
    """Return the published values of the dataset and the metrics of a protocol, those of clips of 16 frames."""
    dataset = DATASETS.get("".join(sign for sign in protocol.dataset.lower() if sign.isalnum()), "")
    metrics = [PAPER_METRICS[metric] for metric in protocol.metrics if metric in PAPER_METRICS]
    if protocol.num_frames != 16:
        return []
    return [value for value in paper_values() if value.dataset == dataset and value.metric in metrics]


def differences_from_paper(protocol: EvaluationProtocol, num_videos: int = 2048) -> list[str]:
    """Return what makes a value of a protocol not comparable with the paper's, one statement each; nothing if it is.

    Which real videos they are is not compared: the paper uses the training split of its datasets.

    Args:
        protocol: The protocol.
        num_videos: Number of real videos that can be used; the paper uses 2048, or all if there are fewer.
    """
    names: Sequence[str] = [PAPER_PROTOCOLS[metric] for metric in protocol.metrics if metric in PAPER_PROTOCOLS]
    if not names:
        return [f"the metric is {', '.join(protocol.metrics)}; the paper's are FVD, FID and IS"]
    paper = EvaluationProtocol.load(
        names[0],
        **{
            key: getattr(protocol, key)
            for key in ("dataset", "fingerprint", "num_real", "extractor_sha256")
            if key not in EvaluationProtocol.stated(names[0])
        },
    )
    found = [
        words.format(ours=getattr(protocol, key), theirs=getattr(paper, key))
        for key, words in (COMPARED | ({} if protocol.weights == "files" else COMPARED_OF_MODELS)).items()
        if getattr(protocol, key) != getattr(paper, key)
    ]
    if protocol.split in ("val", "test"):
        found.append(f"real clips are of the {protocol.split} split, the paper's of train")
    if paper.num_real and protocol.dataset != "none" and protocol.num_real < min(2048, paper.num_real, num_videos):
        found.append(f"{protocol.num_real} real clips; the paper has {paper.num_real}, or one of each training video")
    return found
