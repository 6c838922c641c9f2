"""Read clips with the official loaders (Vchitect/Latte, folder ``datasets``), and make the fixture of their outputs.

The loaders are imported from a checkout of https://github.com/Vchitect/Latte, and none of its files is changed. This
module replaces two functions that they call: ``decord``, which they import and do not use, and
``torchvision.io.read_video``, which newer releases of torchvision do not have. The frames of a video are lossless PNG
files in a folder of its name, so that the fixture does not depend on a decoder.

Make the fixture::

    python tests/data/official_loader.py CHECKOUT tests/fixtures/official_clips.safetensors
"""

import json
import random
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

SIZE = 16
DRAWS = 3
"""Clips that are read from each video."""
VIDEOS: dict[str, list[tuple[int, tuple[int, int]]]] = {
    "ucf101": [(70, (24, 32)), (50, (24, 32)), (48, (33, 24)), (49, (17, 40)), (29, (24, 32)), (16, (8, 11))],
    "ffs": [(61, (40, 40)), (31, (22, 27))],
    "sky": [(60, (18, 32)), (49, (23, 16)), (51, (32, 32))],
    "taichi": [(60, (SIZE, SIZE)), (48, (SIZE, SIZE))],
}
"""Number of frames and size of the videos of each data set."""


def picture(name: str, video: int, frame: int) -> NDArray[np.uint8]:
    """Return a frame: random colours that differ from frame to frame."""
    height, width = VIDEOS[name][video][1]
    seed = [sorted(VIDEOS).index(name), video, frame]
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_frames(folder: Path, name: str) -> list[Path]:
    """Write the videos of a data set as folders of frames, and return the folders."""
    folders = []
    for video, (length, _) in enumerate(VIDEOS[name]):
        place = folder / f"v_Class_g01_c{video:02}"
        place.mkdir(parents=True)
        for frame in range(length):
            Image.fromarray(picture(name, video, frame)).save(place / f"frame_{frame:04}.png")
        folders.append(place)
    return folders


def read_official(checkout: Path, name: str, folder: Path) -> tuple[list[dict[str, object]], list[Tensor]]:
    """Read clips with an official loader.

    Returns:
        Video, start, end of the window and coin of each clip, and the clips (F, 3, H, W) in [0, 1].
    """
    sys.path.insert(0, str(checkout))
    sys.modules.setdefault("decord", types.SimpleNamespace(cpu=lambda n: None, VideoReader=None))  # type: ignore[arg-type]
    import datasets  # type: ignore[import-not-found]  # of the checkout
    import torchvision

    torchvision.io.read_video = lambda filename, **_: (
        torch.stack([torch.from_numpy(np.array(Image.open(p))) for p in sorted(Path(filename).iterdir())]).permute(
            0, 3, 1, 2
        ),
        None,
        None,
    )
    folders = write_frames(folder / "Class", name)
    options = {"dataset": name, "data_path": str(folder), "num_frames": 16, "frame_interval": 3, "image_size": SIZE}
    dataset = datasets.get_dataset(types.SimpleNamespace(**options))
    if name in ("ucf101", "ffs"):
        dataset.video_lists = [str(place) for place in folders]
    else:
        dataset.data_all.sort(key=lambda frames: frames[0])
    facts: list[dict[str, object]] = []
    clips = []
    window = dataset.temporal_sample

    def recorded(total: int) -> tuple[int, int]:
        found = window(total)
        facts[-1] |= {"start": found[0], "end": found[1]}
        return found

    dataset.temporal_sample = recorded
    for video in range(len(dataset)):
        for draw in range(DRAWS):
            facts.append({"video": video})
            random.seed(10 * video + draw)
            clips.append(dataset[video]["video"].clone() / 2 + 0.5)
            random.seed(10 * video + draw)
            random.randint(0, max(0, VIDEOS[name][video][0] - 49))
            facts[-1]["coin"] = random.random()
    return facts, clips


def main(checkout: str, output: str) -> None:
    """Make the fixture."""
    tensors, facts = {}, {}
    for name in VIDEOS:
        with tempfile.TemporaryDirectory() as folder:
            facts[name], clips = read_official(Path(checkout), name, Path(folder))
        tensors[name] = torch.stack(clips).mul(255).round().to(torch.uint8).contiguous()
    save_file(tensors, output, {"facts": json.dumps(facts)})


if __name__ == "__main__":
    main(*sys.argv[1:])
