"""Measure how much shared timesteps and noise reduce the spread when two trained models are compared.

    python benchmarks/pairing.py runs/ablations/trials/2efd1fe6ca71 runs/ablations/trials/cf32e495bfd0

The held-out loss of each model is computed under several draws of timesteps and noise. The difference of two models
under the same draw varies less than under separate draws, where it also contains the difference of the draws. The
arguments are two runs on the toy data.
"""

import argparse
import math

import numpy as np
import torch
from torch.utils.data import DataLoader

from latte_pl.data.stream import FixedClips
from latte_pl.toy import Shapes
from latte_pl.training import weights


@torch.no_grad()
def held_out_losses(run: str, draws: int, num_clips: int) -> np.ndarray:
    """Return the held-out loss (draws,) of a run's EMA weights under each draw."""
    module = weights.load(run)
    data = Shapes(**weights.read_config(run)["data"]["init_args"])
    clips = FixedClips(data.dataset("val"), data.num_frames, data.val_interval, num_clips)
    found = np.zeros(draws)
    for batch in DataLoader([clips[n] for n in range(num_clips)], batch_size=32):
        for k in range(draws):
            _, parts = module.losses(module.ema, batch, module.draw(batch, k), dropout=0.0)
            loss = sum(value for name, value in parts.items() if name != "loss")  # (B, F)
            found[k] += float(loss.mean(dim=1).sum()) / num_clips
    return found


def main() -> None:
    """Print the spread of the difference with shared and with separate draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, metavar="RUN")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--clips", type=int, default=256)
    args = parser.parse_args()
    left, right = (held_out_losses(run, args.draws, args.clips) for run in args.runs)
    shared = float(np.std(left - right, ddof=1))
    separate = math.hypot(float(np.std(left, ddof=1)), float(np.std(right, ddof=1)))
    print(f"{args.draws} draws of {args.clips} clips: held-out losses {left.mean():.4f} and {right.mean():.4f}")
    print(f"standard deviation of the difference: {shared:.5f} with shared draws, {separate:.5f} with separate draws")
    print(f"sharing draws reduces it {separate / shared:.1f} times")


if __name__ == "__main__":
    main()
