"""The evaluation protocol: everything a value depends on, as a file, with a hash."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

# name of a value -> (how it is computed, whose features, ddof): a value never goes by the name of another network
METRICS: dict[str, tuple[Literal["frechet", "kernel", "inception_score"], str, int]] = {
    "fvd": ("frechet", "i3d", 0),  # StyleGAN-V divides covariances by N
    "kvd": ("kernel", "i3d", 0),
    "fid": ("frechet", "inception", 1),  # clean-fid by N - 1
    "kid": ("kernel", "inception", 1),
    "inception_score": ("inception_score", "c3d", 0),
    "embedded_video_distance": ("frechet", "shapes_r3d", 1),
    "embedded_kernel_distance": ("kernel", "shapes_r3d", 1),
}
FOLDER = resources.files("latte_pl") / "configs" / "protocol"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How reals are read, samples are made, and both are compared.

    There are no defaults: a file that leaves a key out leaves it to the caller (the data set, say), and without it
    there is no protocol.
    """

    name: str
    metrics: tuple[str, ...]
    """Names of ``METRICS``, all of one extractor."""

    # reals
    dataset: str
    fingerprint: str
    """Of the data set's files."""
    split: str
    interval: int
    """Source frames from one frame of a real clip to the next."""
    num_frames: int
    height: int
    width: int
    resize: Literal["centre-crop", "squash", "none"]
    view: Literal["random", "first"]
    """Reals start anywhere and are mirrored as in training (drawn from ``real_seed``), or are read from the start."""
    num_real: int
    real_seed: int

    # features
    extractor: str
    extractor_sha256: str

    # samples
    num_generated: int
    generated_interval: int
    """As ``interval``, of generated videos; samplers make 1."""
    weights: Literal["ema", "raw", "files"]
    """Which weights sampled; "files" when finished videos are scored."""
    sampler: str
    steps: int
    eta: float
    guidance: float
    guidance_interval: tuple[float, float]
    """Timesteps of 0 to 1000 in which guidance acts."""
    labels: Literal["none", "uniform", "cycle", "captions", "files"]
    """Classes of the samples: none, drawn uniformly from the seed, or sample number modulo classes; or captions, those
    of the reals' videos in turn."""
    precision: str
    seed: int

    folds: int
    """K of the K-fold interval; 0 leaves it out."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field.name, field.type, getattr(self, field.name)))
        for key in ("interval", "num_frames", "height", "width", "num_generated", "generated_interval"):
            if getattr(self, key) < 1:
                raise ValueError(f"protocol {self.name}: {key} must be 1 or more, not {getattr(self, key)}")
        if min(self.num_real, self.steps, self.folds) < 0 or self.folds == 1:
            raise ValueError(f"protocol {self.name}: num_real, steps and folds can't be negative, nor folds 1")
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(f"protocol {self.name}: metric {metric!r} is none of {', '.join(METRICS)}")
            if METRICS[metric][1] != self.extractor:
                raise ValueError(
                    f"protocol {self.name}: {metric} is defined on {METRICS[metric][1]}, not on {self.extractor}"
                )
        if not self.metrics:
            raise ValueError(f"protocol {self.name} names no metrics; choose from {', '.join(METRICS)}")

    @staticmethod
    def stated(source: str | Path) -> dict[str, Any]:
        """Return what a file states, its name included; the rest is left to the caller of ``load``.

        Args:
            source: a shipped name such as "paper-fvd2048-16f", or the path of a YAML file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no YAML mapping.
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
            raise FileNotFoundError(f"no protocol file {file}")
        stated = yaml.safe_load(text)
        if not isinstance(stated, dict):
            raise ValueError(f"{source} holds no keys; a protocol is a YAML mapping")
        return {"name": file.stem if file else str(source)} | stated

    @classmethod
    def load(cls, source: str | Path, **values: Any) -> "Protocol":
        """Read a protocol.

        Args:
            source: a shipped name such as "paper-fvd2048-16f", or the path of a YAML file.
            values: what the file leaves open. A value that contradicts the file makes another protocol, whose name
                says so: ``paper-fvd2048-16f+steps=50``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a key is unknown, missing, or has a wrong value.
        """
        stated = cls.stated(source)
        changed = [k for k in values if k in stated and k != "name" and _plain(stated[k]) != _plain(values[k])]
        data = stated | values
        if changed:
            data["name"] = "+".join([data["name"], *(f"{key}={values[key]}" for key in sorted(changed))])
        return cls.from_dict(data, str(source))

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "the protocol") -> "Protocol":
        """Make a protocol of plain values; ``source`` is named in errors.

        Raises:
            ValueError: a key is unknown, missing, or has a wrong value.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(keys)):
            raise ValueError(f"{source}: unknown {', '.join(unknown)}; the keys are {', '.join(keys)}")
        if missing := [key for key in keys if key not in data]:
            raise ValueError(f"{source}: missing {', '.join(missing)}; a value depends on each, so none has a default")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``from_dict`` takes."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of everything but the name."""
        return _digest({key: value for key, value in self.to_dict().items() if key != "name"})

    @property
    def real_hash(self) -> str:
        """SHA-256 of ``real_part``."""
        return _digest(self.real_part())

    def real_part(self) -> dict[str, Any]:
        """Return what the features of the reals depend on."""
        keys = ["dataset", "fingerprint", "split", "interval", "num_frames", "height", "width", "resize", "view"]
        keys += ["num_real", "real_seed", "extractor", "extractor_sha256"]
        return {key: getattr(self, key) for key in keys}


def shipped() -> list[str]:
    """Return the names of the protocols that come with the package."""
    return sorted(Path(file.name).stem for file in FOLDER.iterdir() if file.name.endswith(".yaml"))


def canonical_json(data: dict[str, Any]) -> str:
    """Return JSON that is the same for the same values: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checked(key: str, kind: Any, value: Any) -> Any:
    """Return the value in the field's type, so that 1 and 1.0 hash alike; refuse another type."""
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"protocol key {key} is a list of names, not {value!r}")
        return tuple(value)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            raise ValueError(f"protocol key {key} is {value!r}; it must be {len(get_args(kind))} numbers")
        return tuple(_checked(key, part, item) for part, item in zip(get_args(kind), value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"protocol key {key} is {value!r}; choose one of {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"protocol key {key} is {value!r}; it must be of type {kind.__name__}")
    return value
