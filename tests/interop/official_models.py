"""Models that the official code can express."""

import torch

from latte_pl.nn import Latte


def official_model(num_classes: int, seed: int = 0, **options) -> Latte:
    """Build a small model of a known width, without zero weights."""
    shape = {"hidden_size": 384, "depth": 2, "num_heads": 6, "input_size": 4, "num_frames": 2}
    classes = {"conditioning": "class", "num_classes": num_classes} if num_classes else {}
    net = Latte(**shape | classes | options)
    net.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return net
