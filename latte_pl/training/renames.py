"""Names that configurations of earlier versions used, so that their checkpoints and trials stay readable."""

from typing import Any

KEYS = {"model.codec": "model.autoencoder", "model.average_every": "model.ema_snapshot_every"}
"""Settings by dotted name: earlier name, name of today."""
VALUES = {
    "latte_pl.codecs.KLCodec": "latte_pl.autoencoders.KLAutoencoder",
    "latte_pl.codecs.PixelCodec": "latte_pl.autoencoders.PixelAutoencoder",
    "latte_pl.codecs.T5Encoder": "latte_pl.autoencoders.T5Encoder",
    "latte_pl.codecs.MiniLMEncoder": "latte_pl.autoencoders.MiniLMEncoder",
    "latte_pl.data.Shapes": "latte_pl.toy.Shapes",
    "embedded": "toy",
}
"""Values of settings (class paths, the name of the bundled autoencoder): earlier value, value of today."""


def upgrade(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration of any earlier version under the names of today.

    Args:
        config: A nested configuration as `latte fit` stores it in checkpoints.
        prefix: Dotted name of the section that ``config`` is; empty for the whole.
    """
    upgraded: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}".lstrip(".")
        new = KEYS.get(key, key).rpartition(".")[2]
        if isinstance(value, dict):
            upgraded[new] = upgrade(value, key)
        else:
            upgraded[new] = VALUES.get(value, value) if isinstance(value, str) else value
    return upgraded
