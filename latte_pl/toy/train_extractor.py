"""Train the bundled feature extractor.

    python -m latte_pl.toy.train_extractor

writes latte_pl/toy/weights/shapes_r3d.safetensors. The network learns to classify motion, shape, colour and background
of clips of the moving shapes, and to predict their speed. `latte_pl.toy.sensitivity` measures the distance of its
features.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from latte_pl.rng import numpy_generator
from latte_pl.toy.extractor import SIZE, WEIGHTS, ShapesR3D
from latte_pl.toy.shapes import BACKGROUNDS, MOTIONS, PALETTE, SHAPES, MovingShapes

LENGTH = 64  # source frames of a video; clips at intervals 2 to 9 show between a quarter and all of the motion
NUM_FRAMES = 8
INTERVAL = 4  # speed 1
TARGETS = {"motion": MOTIONS, "shape": SHAPES, "colour": tuple(PALETTE), "background": BACKGROUNDS}


def draw(dataset: MovingShapes, index: int, seed: int) -> tuple[Tensor, list[int], float]:
    """Return a clip with random start and interval, its four classes, and the logarithm of its speed."""
    rng = numpy_generator(seed, "extractor", index)
    interval = int(rng.integers(2, 10))
    names = dict(dataset.attributes(index))
    classes = [values.index(str(names[key])) for key, values in TARGETS.items()]
    return dataset.read(index, NUM_FRAMES, interval, rng), classes, float(np.log(interval / INTERVAL))


def train(seconds: float, batch_size: int, seed: int, path: Path) -> None:
    """Train on one thread, standardise the features, and write the weights as float16.

    Args:
        seconds: Training time.
        batch_size: Number of clips B of a step.
        seed: Seed of the initial weights and of the clips.
        path: The safetensors file.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = ShapesR3D("").train().requires_grad_(True).to(memory_format=torch.channels_last_3d)
    sizes = [len(values) for values in TARGETS.values()]
    heads = nn.Sequential(nn.BatchNorm1d(net.num_features), nn.Linear(net.num_features, sum(sizes) + 1))
    parameters = [*net.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=1e-2)
    dataset = MovingShapes("train", SIZE, length=LENGTH)
    start, step, bar = time.monotonic(), 0, tqdm(total=round(seconds), unit="s")
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * share))
        rows = [draw(dataset, i % len(dataset), seed) for i in range(step * batch_size, (step + 1) * batch_size)]
        clips = torch.stack([row[0] for row in rows])  # (B, F, 3, H, W)
        classes = torch.tensor([row[1] for row in rows])  # (B, 4)
        speed = torch.tensor([row[2] for row in rows])  # (B,)
        *logits, slope = heads(net.pooled(clips)).split([*sizes, 1], dim=1)
        losses = [nnf.cross_entropy(x, classes[:, k]) for k, x in enumerate(logits)]
        loss = torch.stack([*losses, nnf.mse_loss(slope[:, 0], speed)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        bar.n = round(min(share, 1) * seconds)
        shown = {"step": str(step)} | {key: f"{x.item():.2f}" for key, x in zip(TARGETS, losses)}
        bar.set_postfix(shown, refresh=step % 10 == 0)
    bar.close()

    net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    heads.eval()
    val = MovingShapes("val", SIZE, length=LENGTH)
    rows = [draw(val, i, seed + 1) for i in range(512)]
    with torch.no_grad():
        outputs = heads(torch.cat([net.pooled(row[0][None]) for row in rows])).split([*sizes, 1], dim=1)
        classes = torch.tensor([row[1] for row in rows])
        for k, key in enumerate(TARGETS):
            accuracy = (outputs[k].argmax(dim=1) == classes[:, k]).float().mean()
            print(f"{key}: accuracy {accuracy:.3f} on validation clips")
        features = torch.cat([net.pooled(draw(dataset, i, seed)[0][None]) for i in range(1024)])
    net.feature_mean.copy_(features.mean(dim=0))
    net.feature_std.copy_(features.std(dim=0).clamp(min=1e-3))
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"clips": str(step * batch_size)})
    path.chmod(0o644)  # safetensors makes files readable for their owner only
    print(f"{step * batch_size} clips, {path.stat().st_size} bytes")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=330, help="training time on one thread")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    train(args.seconds, args.batch_size, args.seed, args.out)


if __name__ == "__main__":
    main()
