"""The metrics, and the evaluation protocol: a file with everything that their values depend on, and its hash."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from latte_pl.metrics.frechet import frechet_from_features
from latte_pl.metrics.inception import inception_score
from latte_pl.metrics.kernel import kernel_distance


@dataclass(frozen=True)
class Metric:
    """One entry of ``METRICS``: a function of features, and the extractor of these features."""

    compute: Callable[..., float]
    """Function of the features (N, D) of real and of generated clips, or of those of generated clips alone."""
    extractor: str
    """Name of the feature extractor, a key of ``latte_pl.evaluation.extractors.EXTRACTORS``."""
    needs_real: bool = True
    """Whether ``compute`` takes the features of real clips."""
    minimum: float | None = None
    """Smallest possible value, below which no confidence interval reaches; None if there is none."""
    accepts_moments: bool = False
    """Whether mean and covariance of the real features are enough, as ``real_frames: all`` requires."""


# A name belongs to one extractor: the same formula on other features is another metric with another name.
METRICS: dict[str, Metric] = {
    "fvd": Metric(partial(frechet_from_features, ddof=0), "i3d", minimum=0),  # ddof of StyleGAN-V
    "kvd": Metric(kernel_distance, "i3d"),
    "fid": Metric(partial(frechet_from_features, ddof=1), "inception", minimum=0),  # ddof of clean-fid
    "kid": Metric(kernel_distance, "inception"),
    "fid_legacy": Metric(  # ddof of StyleGAN-V
        partial(frechet_from_features, ddof=0), "inception_legacy", minimum=0, accepts_moments=True
    ),
    "inception_score": Metric(inception_score, "c3d", needs_real=False, minimum=1),
    "toy_video_distance": Metric(partial(frechet_from_features, ddof=1), "shapes_r3d", minimum=0),
    "toy_kernel_distance": Metric(kernel_distance, "shapes_r3d"),
}
FOLDER = resources.files("latte_pl") / "configs" / "protocol"
MP4 = re.compile(r"mp4 h264 yuv420p crf (\d+)")
"""The only compression that can be applied to samples; other values describe how existing files were compressed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How real clips are read, how samples are generated and how both are compared.

    Two values may be compared only if they have the same protocol. What a protocol file leaves out, such as the
    dataset, must be given to ``load``. Steps that few protocols have stand at the end of the list, with a default that
    leaves the step out. A field at its default is left out of the hash and of ``to_dict``, so a new step changes no old
    hash.
    """

    name: str
    """Name of the protocol: the file name without its ending. The only field that is not part of the hash."""
    metrics: tuple[str, ...]
    """Names in ``METRICS``, all of the same extractor."""

    # real clips
    dataset: str
    """Name of the dataset, or of the folder, that the real clips come from."""
    fingerprint: str
    """Hash of the dataset's files; see ``dataset_fingerprint``."""
    split: str
    """Split that the real clips come from."""
    interval: int
    """Distance between consecutive frames of a real clip, in frames of the video."""
    num_frames: int
    """Frames of a clip, real or generated."""
    height: int
    """Height of a clip in pixels."""
    width: int
    """Width of a clip in pixels."""
    resize: Literal["centre-crop", "none"]
    """How videos reach this size: "centre-crop" crops the centre to the aspect ratio and rescales it as ``resample``
    says, "none" reads videos of this size."""
    view: Literal["random", "first"]
    """"random" draws the start of each real clip from ``real_seed``; "first" reads each clip from the start of its
    video."""
    num_real: int
    """Number of real clips, each of another video; 0 for metrics of generated clips alone. If a protocol file states
    more than there are videos, ``load`` lowers the number to that of the videos."""
    real_seed: int
    """Seed of the choice of videos and, with ``view: random``, of the starts."""

    # features
    extractor: str
    """Name of the feature extractor."""
    extractor_sha256: str
    """SHA-256 of the extractor's weights file."""

    # generated clips
    num_generated: int
    """Number of generated clips."""
    generated_interval: int
    """Distance between consecutive frames of a generated clip, in frames of the video; 1 for clips from a sampler."""
    weights: Literal["ema", "raw", "files"]
    """Weights that generate the clips; "files" for finished videos."""
    sampler: str
    """Name of the sampler, such as "ddpm"; "files" for finished videos."""
    steps: int
    """Sampling steps."""
    eta: float
    """Noise of the sampler, in [0, 1]: free for "ddim", 1 for "ddpm", 0 for all others."""
    guidance: float
    """Classifier-free guidance scale; 1 is without guidance."""
    guidance_interval: tuple[float, float]
    """Timesteps in [0, 1000] between which guidance is applied."""
    labels: Literal["none", "uniform", "cycle", "captions", "files"]
    """Conditioning of the generated clips: "none"; "uniform" draws classes from ``seed``; "cycle" uses the sample index
    modulo the number of classes; "captions" uses the real videos' captions in turn; "files" for finished videos."""
    precision: str
    """Precision of the sampler, such as "32", "16" or "bf16-mixed"; "files" for finished videos."""
    seed: int
    """Seed of the samples."""

    folds: int
    """Number of folds of the jackknife interval; 0 computes no interval."""

    # steps that few protocols have; the defaults leave them out
    flip: bool = False
    """Whether half of the real clips are flipped horizontally, with ``view: random``."""
    min_video_frames: int = 0
    """Real videos with fewer frames are not used; 0 uses every video that is long enough for a clip."""
    fps: float = 0.0
    """Frames a second of the clips, real and generated: the frame nearest to each point in time is read, and both
    intervals are ignored. 0 reads frames by ``interval`` and ``generated_interval``."""
    resample: Literal["bilinear", "lanczos"] = "bilinear"
    """Filter of ``resize: centre-crop``: "bilinear" with antialiasing as in training, or PIL's "lanczos" as in
    StyleGAN-V's ``convert_videos_to_frames.py``."""
    jpeg_quality: int = 0
    """Quality in [1, 100] of the JPEG file that every frame, real or generated, is written to and read from by PIL; 0
    writes no file."""
    generated_codec: str = "none"
    """Lossy files that the generated clips go through, or went through: "none" for samples of a sampler and for
    lossless images; "mp4 h264 yuv420p crf 5" writes and reads each sample as an MP4. For finished videos it is what
    their files are, such as "gif" or "jpeg q75"."""
    real_frames: Literal["clip", "all"] = "clip"
    """Frames of each real video that are compared: those of one clip, or all frames of the video. "all" is for metrics
    of single frames."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field.name, field.type, getattr(self, field.name)))
        for key in ("interval", "num_frames", "height", "width", "num_generated", "generated_interval"):
            if getattr(self, key) < 1:
                raise ValueError(f"protocol {self.name}: {key} is {getattr(self, key)}; it must be at least 1")
        for key in ("num_real", "steps", "folds", "min_video_frames", "fps", "jpeg_quality"):
            if getattr(self, key) < 0:
                raise ValueError(f"protocol {self.name}: {key} is {getattr(self, key)}; it must be at least 0")
        if self.folds == 1:
            raise ValueError(f"protocol {self.name}: folds is 1; it must be 0 (no interval) or at least 2")
        if not self.metrics:
            raise ValueError(f"protocol {self.name}: metrics is empty; choose from {', '.join(METRICS)}")
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(f"protocol {self.name}: unknown metric {metric!r}; choose from {', '.join(METRICS)}")
            if METRICS[metric].extractor != self.extractor:
                raise ValueError(
                    f"protocol {self.name}: {metric} is defined on the features of {METRICS[metric].extractor}, "
                    f"not of {self.extractor}"
                )
        if self.jpeg_quality > 100:
            raise ValueError(f"protocol {self.name}: jpeg_quality is {self.jpeg_quality}; it must be at most 100")
        if self.weights != "files" and self.generated_codec != "none" and not MP4.fullmatch(self.generated_codec):
            raise ValueError(
                f"protocol {self.name}: generated_codec is {self.generated_codec!r}; samples can go through none or "
                "mp4 h264 yuv420p crf N"
            )
        if self.real_frames == "all":
            unfit = [metric for metric in self.metrics if not METRICS[metric].accepts_moments]
            if unfit or self.folds:
                raise ValueError(
                    f"protocol {self.name}: real_frames is all, which stores only mean and covariance of the real "
                    f"frames; {f'{unfit[0]} needs the features' if unfit else 'folds must be 0'}"
                )

    @staticmethod
    def stated(source: str | Path) -> dict[str, Any]:
        """Read a protocol file, without checking its keys.

        Args:
            source: Name of a shipped protocol such as "paper-fvd2048-16f", or path of a YAML file.

        Returns:
            The keys of the file and the protocol's ``name``.

        Raises:
            FileNotFoundError: There is no such protocol.
            ValueError: The file is not a YAML mapping.
        """
        file = Path(source) if str(source).endswith((".yaml", ".yml")) else None
        if file is None:
            if source not in shipped():
                raise FileNotFoundError(
                    f"no protocol {str(source)!r}; choose {', '.join(shipped())} or the path of a .yaml file"
                )
            text = (FOLDER / f"{source}.yaml").read_text(encoding="utf-8")
        elif file.is_file():
            text = file.read_text(encoding="utf-8")
        else:
            raise FileNotFoundError(f"there is no protocol file {file}")
        try:
            stated = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(stated, dict):
            raise ValueError(f"{source} is not a YAML mapping; write one `key: value` a line")
        return {"name": file.stem if file else str(source)} | stated

    @classmethod
    def load(cls, source: str | Path, num_videos: int | None = None, **values: Any) -> "EvaluationProtocol":
        """Read a protocol file and complete it.

        Args:
            source: Name of a shipped protocol such as "paper-fvd2048-16f", or path of a YAML file.
            num_videos: Number of real videos that can be used. ``num_real`` becomes at most this number, because every
                video is used once. Other numbers have other hashes, so their values are not compared.
            **values: Fields that the file leaves out. A value that differs from the file's makes another protocol, and
                is added to its name: ``paper-fvd2048-16f+steps=50``.

        Raises:
            FileNotFoundError: There is no such protocol.
            ValueError: A key is unknown or missing, or has a wrong value.
        """
        stated = cls.stated(source)
        known = {k: v for k, v in _defaults().items() if k != "generated_codec"} | stated  # it is found in the files
        changed = [k for k in values if k in known and k != "name" and _plain(known[k]) != _plain(values[k])]
        data = stated | values
        if num_videos is not None and isinstance(wanted := data.get("num_real"), int):
            data["num_real"] = min(wanted, num_videos)
        if changed:
            data["name"] = "+".join([data["name"], *(f"{key}={values[key]}" for key in sorted(changed))])
        return cls.from_dict(data, str(source))

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "the protocol") -> "EvaluationProtocol":
        """Build a protocol from the output of ``to_dict``.

        Args:
            data: Values of all fields, except those that have their default value.
            source: What to call the protocol in errors.

        Raises:
            ValueError: A key is unknown or missing, or has a wrong value.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(keys)):
            raise ValueError(f"{source}: unknown keys {', '.join(unknown)}; the keys are {', '.join(keys)}")
        if missing := [key for key in keys if key not in data and key not in _defaults()]:
            raise ValueError(f"{source}: missing keys {', '.join(missing)}; add them, they have no defaults")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, without those that have their default value."""
        defaults = _defaults()
        return {
            key: _plain(value) for key, value in vars(self).items() if key not in defaults or value != defaults[key]
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of ``to_dict`` without the name."""
        return _digest({key: value for key, value in self.to_dict().items() if key != "name"})

    @property
    def real_hash(self) -> str:
        """SHA-256 of the canonical JSON of ``real_part``."""
        return _digest(self.real_part())

    def real_part(self) -> dict[str, Any]:
        """Return the fields that the features of the real clips depend on."""
        keys = ["dataset", "fingerprint", "split", "interval", "num_frames", "height", "width", "resize", "view"]
        keys += ["num_real", "real_seed", "extractor", "extractor_sha256"]
        keys += ["flip", "min_video_frames", "fps", "resample", "jpeg_quality", "real_frames"]
        stated = self.to_dict()
        return {key: stated[key] for key in keys if key in stated}


def shipped() -> list[str]:
    """Return the names of the protocols that the package contains."""
    return sorted(Path(file.name).stem for file in FOLDER.iterdir() if file.name.endswith(".yaml"))


def canonical_json(data: dict[str, Any]) -> str:
    """Return JSON that is equal for equal values: keys are sorted, there are no spaces, NaN is not allowed."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _defaults() -> dict[str, Any]:
    """Return the fields that have a default."""
    return {f.name: f.default for f in dataclasses.fields(EvaluationProtocol) if f.default is not dataclasses.MISSING}


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checked(key: str, kind: Any, value: Any) -> Any:
    """Convert a value to the type of its field, so that 1 and 1.0 have the same hash.

    Raises:
        ValueError: The value has another type.
    """
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"protocol key {key} is {value!r}; it must be a list of names")
        return tuple(value)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            raise ValueError(f"protocol key {key} is {value!r}; it must be a list of {len(get_args(kind))} numbers")
        return tuple(_checked(key, part, item) for part, item in zip(get_args(kind), value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"protocol key {key} is {value!r}; choose one of {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"protocol key {key} is {value!r}; it must be of type {kind.__name__}")
    return value
