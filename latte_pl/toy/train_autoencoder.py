"""Train the bundled KL autoencoder on frames of the moving shapes, and measure it on validation clips.

    python -m latte_pl.toy.train_autoencoder --out latte_pl/autoencoders/weights/shapes_kl_f8

Training takes eleven minutes on two CPU cores. The results are in latte_pl/autoencoders/weights/README.md.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latte_pl.autoencoders.patch import PatchAutoencoder
from latte_pl.rng import numpy_generator, torch_generator
from latte_pl.toy.shapes import MovingShapes
from latte_pl.types import Split

SIZES = ((64, 64),) * 8 + ((32, 32), (48, 96))  # mostly the default size; other sizes have other borders


def main() -> None:
    """Train, write the averaged weights as float16 safetensors, and print the PSNR on validation clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the weights")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32, help="frames of 64x64 pixels per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--kl", type=float, default=1e-3, help="weight of the KL divergence per latent value")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between two saves")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    vae = PatchAutoencoder()
    average = PatchAutoencoder().requires_grad_(False).eval()
    average.load_state_dict(vae.state_dict())
    datasets = {size: MovingShapes("train", size) for size in dict.fromkeys(SIZES)}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))
    )
    start = time.time()
    for step in range(args.steps):
        frames = draw(datasets, step, args.batch, args.seed)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(frames).latent_dist
            output = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
        error = output.float() - frames
        squares, pixels = error.square().mean(), error.abs().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        # squared errors are dominated by the shape, absolute errors by the background, which is most of the picture
        loss = 10 * squares + 0.2 * (pixels + edges) + args.kl * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decay = min(args.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1} squares {squares.item():.4f} pixels {pixels.item():.4f} edges {edges.item():.4f} "
                f"kl {kl.item():.3f} {time.time() - start:.0f} s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save(average, args.out)


def draw(datasets: dict[tuple[int, int], MovingShapes], step: int, batch: int, seed: int) -> Tensor:
    """Return augmented frames (N, 3, H, W) in [-1, 1], a pure function of (seed, step)."""
    rng = numpy_generator(seed, "autoencoder", step)
    size = SIZES[rng.integers(len(SIZES))]
    dataset = datasets[size]
    count = batch * 64 * 64 // (size[0] * size[1])
    frames = torch.cat([dataset.read(int(i), 2, 10, rng) for i in rng.integers(len(dataset), size=count // 2)])
    x = frames.float() / 127.5 - 1
    generator = torch_generator(seed, "autoencoder", step)
    # other colours and brightnesses and more than one shape, so that the autoencoder generalises to them
    x = torch.stack([f[torch.randperm(3, generator=generator)] if k % 3 == 0 else f for k, f in enumerate(x)])
    gain, shift = torch.rand(2, len(x), 1, 1, 1, generator=generator)
    x = (x * (0.8 + 0.3 * gain) + 0.3 * (shift - 0.5)).clamp(-1, 1)
    for k in range(0, len(x), 8):
        top, left = (int(rng.integers(side)) for side in size)
        x[k, :, top:, left:] = x[(k + 2) % len(x), :, top:, left:]
    return x[torch.randperm(len(x), generator=generator)]


@torch.no_grad()
def save(vae: PatchAutoencoder, out: Path) -> None:
    """Write the weights, with the scale that gives latents of the training split unit deviation, and print the PSNR."""

    def clips(split: Split, count: int) -> Tensor:
        dataset = MovingShapes(split)
        return torch.cat([dataset.read(i, 4, 5) for i in range(count)]).float() / 127.5 - 1

    latents = [
        vae.encode(x).latent_dist.sample(torch_generator(0, "scale", i))
        for i, x in enumerate(clips("train", 256).split(64))
    ]
    vae.register_to_config(scaling_factor=round(1 / torch.cat(latents).std().item(), 4))
    errors = [F.mse_loss(vae.forward(x).clamp(-1, 1), x) for x in clips("val", 256).split(64)]
    psnr = 10 * math.log10(4 / torch.stack(errors).mean().item())
    copy.deepcopy(vae).half().save_pretrained(out)
    print(f"validation PSNR {psnr:.2f} dB, scaling factor {vae.config['scaling_factor']}", flush=True)


if __name__ == "__main__":
    main()
