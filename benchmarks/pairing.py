"""What sharing timesteps and noise is worth when two trained models are compared on held-out clips.

Each draw k gives every clip another timestep and noise. Two models that share a draw differ by what they learnt;
with a draw each, also by what was drawn. Needs the runs of two arms::

    python benchmarks/pairing.py runs/ablations/trials/148329ed82b6 runs/ablations/trials/e7202610be15
"""

import argparse
import math

import numpy as np
import torch
from torch.utils.data import DataLoader

from latte_pl.data import Shapes
from latte_pl.data.stream import FixedClips
from latte_pl.streams import uniform
from latte_pl.training import load
from latte_pl.training.weights import read


def losses(run: str, draws: int, clips: int) -> np.ndarray:
    """Return the held-out loss (draws,) of a run's averaged weights under each draw."""
    module = load(run)
    settings = read(run).config["data"]["init_args"]
    data = Shapes(**settings | {"latents": None, "num_workers": 0})
    held_out = FixedClips(data.dataset("val"), data.num_frames, data.val_interval, clips)
    found = np.zeros(draws)
    for batch in DataLoader([held_out[n] for n in range(clips)], batch_size=32):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for k in range(draws):
                u = uniform(k, "timestep", batch["clip"])[:, 0]
                _, parts = module.losses(module.ema, batch, u, k, dropout=0.0)
                loss = sum(value for name, value in parts.items() if name != "loss")
                found[k] += float(loss.mean(dim=1).sum()) / clips
    return found


def main() -> None:
    """Print the spread of the difference with shared and with separate draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, metavar="RUN")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--clips", type=int, default=256)
    options = parser.parse_args()
    left, right = (losses(run, options.draws, options.clips) for run in options.runs)
    shared = float(np.std(left - right, ddof=1))
    separate = math.hypot(float(np.std(left, ddof=1)), float(np.std(right, ddof=1)))
    print(f"{options.draws} draws of {options.clips} clips: held-out loss {left.mean():.4f} and {right.mean():.4f}")
    print(f"standard deviation of the difference: {shared:.5f} with shared draws, {separate:.5f} with separate ones")
    print(f"sharing narrows it {separate / shared:.1f} times")


if __name__ == "__main__":
    main()
