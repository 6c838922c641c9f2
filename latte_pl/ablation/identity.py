"""The identity of a trial: the settings that its result depends on, and the hash that names it."""

import dataclasses
import hashlib
from typing import Any

from latte_pl.ablation.user_files import contents_of
from latte_pl.cli.config import flatten
from latte_pl.metrics.protocol import canonical_json
from latte_pl.nn import LatteConfig

NET = "model.net.init_args."
SETTINGS_WITHOUT_EFFECT = (
    # how fast a training is
    "model.compile",
    "model.net.init_args.activation_checkpointing",
    "data.init_args.num_workers",
    # where files are
    "data.init_args.cache_dir",
    "data.init_args.latents",
    # the seed of the trial, which its identity names once
    "model.seed",
    "data.init_args.seed",
)
"""Settings of model and data that are not part of the identity, because no result depends on them."""
DEFAULTS_OF_NEW_SETTINGS: dict[str, Any] = {"data.init_args.scene": "varied"}
"""Settings that were added after the first committed results, with the value that all earlier trainings had.

A setting with this value is not part of the identity, so that earlier trials keep their names. Settings that are off
(false, 0, null, empty) and options of the denoiser need no entry.
"""
FIRST_OPTIONS = frozenset(
    (
        *("size", "hidden_size", "depth", "num_heads", "patch_size", "input_size", "in_channels", "num_frames"),
        *("mlp_ratio", "learn_sigma", "variant", "patch_embed", "temporal_stride", "injection", "token_placement"),
        *("temporal_position", "conditioning", "num_classes", "text_dim", "text_length", "class_dropout"),
    )
)
"""Options of the denoiser that every identity contains. Options added later count only if they differ from their
default, so that adding an option renames no trial."""
TRAINER_SETTINGS = (
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches"),
)
"""Settings of the trainer that a result depends on."""


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a training depends on, by dotted name.

    Settings that are off (false, 0, null, empty) are left out, so that a new setting that is off renames no trial.
    Files of the user count with their content, see `contents_of`.

    Args:
        config: The resolved configuration.
    """
    chosen = flatten({name: config[name] for name in ("model", "data")})
    trainer = {f"trainer.{name}": config["trainer"].get(name) for name in TRAINER_SETTINGS}
    unchanged = DEFAULTS_OF_NEW_SETTINGS | {
        f"{NET}{option.name}": option.default
        for option in dataclasses.fields(LatteConfig)
        if option.name not in FIRST_OPTIONS
    }
    chosen |= contents_of(config)
    captioned = chosen.get(f"{NET}conditioning") == "text"
    return {
        name: value
        for name, value in (chosen | trainer).items()
        if (value or name in unchanged)
        and name not in SETTINGS_WITHOUT_EFFECT
        and not (name in unchanged and value == unchanged[name])
        and (captioned or not name.startswith(f"{NET}text_"))  # other models have no captions
    }


def hash_of(identity: dict[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of an identity."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]
