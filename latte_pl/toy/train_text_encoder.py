"""Train the bundled text encoder.

    python -m latte_pl.toy.train_text_encoder

writes latte_pl/autoencoders/weights/toy_text. The network reads captions of the moving shapes in many wordings, with
words that say nothing between them, and learns to name colour, shape and motion from each of its tokens.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from latte_pl.autoencoders.toy_text import BUCKETS, BUNDLED, WIDTH, WordTokenizer, WordTransformer
from latte_pl.rng import numpy_generator
from latte_pl.toy.shapes import MOTIONS, PALETTE, SHAPES, VERBS

TARGETS = (tuple(PALETTE), SHAPES, MOTIONS)
WORDINGS = (
    "{a} {colour} {shape} {verb}",
    "the {colour} {shape} {verb}",
    "{a} {colour} {shape} that {verb}",
    "{a} {shape} in {colour} {verb}",
    "{verb} {a} {colour} {shape}",
    "the {shape} is {colour} and {verb}",
    "{colour} {shape} {verb}",
    "a video of {a} {colour} {shape} which {verb}",
)
FILLERS = 5  # at most so many words without meaning in a caption


def vocabulary() -> list[str]:
    """Return all words of the wordings, sorted."""
    fixed = {word for wording in WORDINGS for word in wording.split() if not word.startswith("{")}
    named = {word for names in (PALETTE, SHAPES, VERBS.values()) for name in names for word in name.split()}
    return sorted(fixed | named | {"a", "an"})


def draw(seed: int, index: int) -> tuple[str, list[int]]:
    """Return a caption in one of the wordings, and its colour, shape and motion as indices."""
    rng = numpy_generator(seed, "caption", index)
    classes = [int(rng.integers(len(names))) for names in TARGETS]
    colour, shape, motion = (names[k] for names, k in zip(TARGETS, classes))
    article = "an" if colour[0] in "aeiou" else "a"
    wording = WORDINGS[rng.integers(len(WORDINGS))]
    words = wording.format(a=article, colour=colour, shape=shape, verb=VERBS[motion]).split()
    for _ in range(rng.integers(FILLERS + 1) if rng.random() < 0.5 else 0):
        words.insert(int(rng.integers(len(words) + 1)), f"word{rng.integers(10_000)}")
    return " ".join(words), classes


def batch(tokenizer: WordTokenizer, seed: int, first: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (B, n), where they are padding (B, n), and classes (B, 3)."""
    captions, classes = zip(*(draw(seed, index) for index in range(first, first + size)))
    ids = [torch.tensor(tokenizer(caption).input_ids) for caption in captions]
    padding = nn.utils.rnn.pad_sequence([torch.zeros_like(row) for row in ids], batch_first=True, padding_value=1)
    return nn.utils.rnn.pad_sequence(ids, batch_first=True), padding.bool(), torch.tensor(classes)


def train(steps: int, batch_size: int, seed: int, folder: Path) -> None:
    """Train on one thread, and write vocabulary and weights, the latter as float16.

    Args:
        steps: Optimizer steps.
        batch_size: Captions B of a step.
        seed: Seed of the initial weights and of the captions.
        folder: Folder of the files.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    words = vocabulary()
    tokenizer = WordTokenizer(words)
    net = WordTransformer(len(tokenizer.ids) + BUCKETS)
    sizes = [len(names) for names in TARGETS]
    heads = nn.Linear(WIDTH, sum(sizes))
    optimizer = torch.optim.AdamW([*net.parameters(), *heads.parameters()], lr=2e-3, weight_decay=1e-2)
    start, bar = time.monotonic(), trange(steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        ids, padding, classes = batch(tokenizer, seed, step * batch_size, batch_size)
        tokens = net(ids, padding).last_hidden_state[~padding]  # (tokens of all captions, E)
        of_token = classes.repeat_interleave((~padding).sum(dim=1), dim=0)
        logits = heads(tokens).split(sizes, dim=1)
        loss = sum(nnf.cross_entropy(x, of_token[:, k]) for k, x in enumerate(logits))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    seconds = time.monotonic() - start

    net.eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.json").write_text(json.dumps(words) + "\n", encoding="utf-8")
    save_file({name: value.half() for name, value in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    net.load_state_dict({name: value.half().float() for name, value in net.state_dict().items()})
    with torch.no_grad():
        ids, padding, classes = batch(tokenizer, seed + 1, 0, 4096)
        logits = heads(net(ids, padding).last_hidden_state).split(sizes, dim=2)
    right = torch.stack([(x.argmax(dim=2) == classes[:, k, None])[~padding] for k, x in enumerate(logits)])
    shown = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(("colour", "shape", "motion"), right.float().mean(1))
    )
    count = sum(parameter.numel() for parameter in net.parameters())
    print(f"{count:,} parameters, {steps:,} steps in {seconds:.0f} s; tokens of 4,096 new captions that name {shown}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    train(args.steps, args.batch_size, args.seed, args.out)
