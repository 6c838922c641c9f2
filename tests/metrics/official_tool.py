"""Run the official evaluation tool (Vchitect/Latte, folder ``tools``) on the CPU, and make the fixture of its outputs.

The tool is imported from a checkout of https://github.com/Vchitect/Latte, and none of its files is changed. This module
adds what it needs:

- Stand-ins for the networks, because the tool downloads the real ones. They are TorchScripts with the same signatures,
  with random weights and float64 arithmetic, so that the features do not depend on the batch size.
- Small replacements of ``omegaconf`` and ``moviepy`` where they are not installed. The tool uses the first to hold one
  number, and the second to decode the frames of a file in order, which PyAV does here.
- One process to load the data, so that the choice of videos and starts can be recorded.
- The number of videos in ``isv2048_ucf``. The tool cuts its splits at 2048, so that splits are empty if there are fewer
  videos, and the score is not a number.
- The module ``training.dataset``, which ``fid50k_full`` imports and which the Latte repository does not contain
  (StyleGAN-V does). The same classes are in ``utils.dataset``.

Make the fixture::

    python tests/metrics/official_tool.py --official CHECKOUT --fixture tests/fixtures/official_metrics.safetensors

Run the tool on two folders of videos::

    python tests/metrics/official_tool.py --official CHECKOUT --real DIR --fake DIR --output scores.safetensors
"""

import argparse
import json
import random
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

METRICS = ("fvd2048_16f", "fid50k_full", "isv2048_ucf")
SIZE = 128  # the smallest that the tool accepts
LENGTHS = (47, 48, 49, 60, 55, 51, 48, 64)
"""Frames of the real videos of the fixture. The tool drops the first one, because 16 frames at interval 3 need 48."""


def _layer(layer: nn.Module, seed: int) -> nn.Module:
    """Draw the parameters of a layer from a seed, as float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer.requires_grad_(False)


class StandInI3D(nn.Module):
    """The signature of StyleGAN-V's ``i3d_torchscript.pt``: 400 features of clips (B, 3, F, H, W) uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _layer(nn.Conv3d(3, 16, (4, 8, 8), (2, 4, 4)), 1)
        self.linear = _layer(nn.Linear(16 * 2 * 4 * 4, 400), 2)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        """Return features (B, 400) float32."""
        x = x.double()
        if resize:
            frames = x.transpose(1, 2).flatten(0, 1)
            frames = nn.functional.interpolate(frames, size=[56, 56], mode="bilinear", align_corners=False)
            x = frames.unflatten(0, [x.shape[0], x.shape[2]]).transpose(1, 2)
        if rescale:
            x = x / 127.5 - 1
        x = nn.functional.adaptive_avg_pool3d(nn.functional.relu(self.conv(x)), [2, 4, 4])
        x = self.linear(x.flatten(1)) / 20
        # nearly independent features of equal variance, so that the tool's matrix square root is exact
        return x.sin().float() if return_features else x.softmax(dim=1).float()


class StandInInception(nn.Module):
    """The signature of NVIDIA's ``inception-2015-12-05.pt``, with 64 features of frames (B, 3, H, W) uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _layer(nn.Conv2d(3, 16, 8, 4), 3)
        self.linear = _layer(nn.Linear(16 * 4 * 4, 64), 4)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        """Return features (B, 64) float32."""
        x = nn.functional.interpolate(img.double(), size=[56, 56], mode="bilinear", align_corners=False) / 127.5 - 1
        x = nn.functional.adaptive_avg_pool2d(nn.functional.relu(self.conv(x)), [4, 4])
        x = self.linear(x.flatten(1)) / 20
        return x.float() if return_features else x.softmax(dim=1).float()


class StandInC3D(nn.Module):
    """The signature of StyleGAN-V's ``c3d_ucf101.pt``: probabilities of 101 classes of clips (B, 3, F, H, W) uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _layer(nn.Conv3d(3, 8, (4, 16, 16), (4, 8, 8)), 5)
        self.linear = _layer(nn.Linear(8 * 2 * 3 * 3, 101), 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (B, 101) float32."""
        x = nn.functional.adaptive_avg_pool3d(nn.functional.relu(self.conv(x.double() / 127.5 - 1)), [2, 3, 3])
        return (self.linear(x.flatten(1)) / 20).softmax(dim=1).float()


def write_stand_ins(folder: Path) -> dict[str, Path]:
    """Write the three networks as TorchScripts, and return their paths by metric."""
    networks = dict(zip(METRICS, (StandInI3D(), StandInInception(), StandInC3D())))
    paths = {metric: folder / f"{metric}.pt" for metric in networks}
    for metric, network in networks.items():
        torch.jit.script(network).save(str(paths[metric]))
    return paths


def draw_video(num_frames: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw a video of moving coloured waves (F, H, W, 3) uint8, the same on every machine up to rounding."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[: size[0], : size[1]] / 16.0
    waves = rng.uniform(-1, 1, (4, 4))  # frequency in x, y and t, and phase
    colours = rng.uniform(-45, 45, (4, 3))
    base = rng.uniform(60, 190, 3)
    t = np.arange(num_frames)[:, None, None]
    video = np.stack([np.sin(3 * (a * x + b * y) + c * t / 2 + 6 * d) for a, b, c, d in waves], -1) @ colours + base
    return video.round().clip(0, 255).astype(np.uint8)


def write_lossless(path: Path, video: np.ndarray, fps: int = 25) -> None:
    """Write a video (F, H, W, 3) uint8 as FFV1 in RGB, which every decoder returns unchanged."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "bgr0"
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_fixture_videos(folder: Path) -> tuple[Path, Path]:
    """Write the videos of the fixture, and return the folders of the real and of the generated ones."""
    real, fake = folder / "real", folder / "fake"
    for place in (real, fake):
        place.mkdir(parents=True)
    for n, length in enumerate(LENGTHS):  # the sizes differ, and odd margins test the rounding of the crop
        write_lossless(real / f"{n:03d}.mkv", draw_video(length, (135 + n, 176 + 3 * n), n))
        write_lossless(fake / f"{n:03d}.mkv", draw_video(16, (SIZE, SIZE), 100 + n), 8)
    return real, fake


class _VideoFileClip:
    """The part of ``moviepy.editor.VideoFileClip`` that the tool uses."""

    def __init__(self, path: str) -> None:
        self.path = path
        with av.open(path) as container:
            self.fps = float(container.streams.video[0].average_rate)

    def iter_frames(self, fps: float | None = None) -> Iterator[np.ndarray]:
        """Yield the frames (H, W, 3) uint8 in order."""
        with av.open(self.path) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


def _replacement(name: str, **members: Any) -> None:
    """Add a module with these members if it cannot be imported."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


class OfficialTool:
    """The official tool, imported from a checkout. Import it in a process of its own: its modules have common names.

    Args:
        checkout: Folder of the checkout of Vchitect/Latte.
        networks: TorchScript of each metric.
    """

    def __init__(self, checkout: Path, networks: dict[str, Path]) -> None:
        if not (checkout / "tools/metrics/metric_main.py").is_file():
            raise SystemExit(f"{checkout} is not a checkout of github.com/Vchitect/Latte")
        sys.path[:0] = [str(checkout / "tools"), str(checkout)]  # both contain modules named utils
        config = types.SimpleNamespace(create=lambda x: x, to_container=dict)
        _replacement("omegaconf", DictConfig=dict, OmegaConf=config)
        _replacement("moviepy")
        _replacement("moviepy.editor", VideoFileClip=_VideoFileClip)
        from tools import convert_videos_to_frames, dnnlib
        from tools.metrics import metric_main, metric_utils
        from utils import dataset

        sys.modules.setdefault("training", types.ModuleType("training"))
        sys.modules["training.dataset"] = dataset
        self.convert, self.main, self.utils = convert_videos_to_frames, metric_main, metric_utils
        self.score = metric_main.video_inception_score.compute_isv
        self.easy_dict = dnnlib.EasyDict
        self.choices: list[tuple[str, int]] = []
        self.features: list[np.ndarray] = []
        self._load_networks(networks)
        self._load_in_this_process()
        self._record(dataset)

    def _load_networks(self, networks: dict[str, Path]) -> None:
        loaded = {metric: torch.jit.load(str(path)).eval() for metric, path in networks.items()}
        by_name = {"i3d_torchscript": "fvd2048_16f", "inception-2015-12-05": "fid50k_full", "c3d_ucf101": "isv2048_ucf"}

        def detector(url: str, **_: Any) -> Any:
            return loaded[by_name[self.utils.get_feature_detector_name(url).partition(".pt")[0]]]

        self.utils.get_feature_detector = detector

    def _load_in_this_process(self) -> None:
        loader = torch.utils.data.DataLoader

        def plain(
            *args: Any, num_workers: int = 0, prefetch_factor: int = 0, pin_memory: bool = False, **more: Any
        ) -> Any:
            return loader(*args, **more)

        self.utils.torch.utils.data.DataLoader = plain

    def _record(self, dataset: Any) -> None:
        """Record which frames are read, and which features are computed from them."""
        read, append = dataset.VideoFramesFolderDataset._load_raw_frames, self.utils.FeatureStats.append

        def noted_read(data: Any, raw_idx: int, frames_idx: Any = None) -> Any:
            if len(frames_idx) > 1:  # the constructor reads one frame to find the size
                name = Path(data._video_idx2frames[raw_idx][0]).parent.name
                self.choices.append((name, int(frames_idx[0])))
            return read(data, raw_idx, frames_idx)

        def noted_append(stats: Any, x: Any) -> None:
            self.features.append(np.asarray(x, dtype=np.float32))
            append(stats, x)

        dataset.VideoFramesFolderDataset._load_raw_frames = noted_read
        self.utils.FeatureStats.append = noted_append

    def to_frames(self, videos: Path, target: Path, size: int) -> None:
        """Convert a folder of videos to folders of JPEG frames, as ``convert_videos_to_frames.py`` does."""
        for path in sorted(videos.iterdir()):
            self.convert.process_video(str(path), str(target), target_size=size)

    def measure(self, metric: str, real: Path, fake: Path, size: int, seed: int = 0) -> dict[str, Any]:
        """Compute a metric of two folders of frames.

        Returns:
            The scores by name, the ``features`` of all reads in order, and the ``choices``: video and first frame of
            each clip that was read.
        """
        self.choices, self.features = [], []
        if metric == "isv2048_ucf":
            count = len(list(fake.iterdir()))
            splits = {"num_gen": count, "num_splits": min(10, count // 2), "backbone": "c3d_ucf101"}
            self.main._metric_dict[metric] = lambda opts: dict(zip(("mean", "std"), self.score(opts, **splits)))
        random.seed(seed)
        np.random.seed(seed)
        common = {"class_name": "utils.dataset.VideoFramesFolderDataset", "resolution": size, "use_labels": False}
        common["cfg"] = self.easy_dict(max_num_frames=10000)
        result = self.main.calc_metric(
            metric=metric,
            dataset_kwargs=self.easy_dict(common, path=str(real), xflip=True),  # --mirror 1, as in eval_metrics.sh
            gen_dataset_kwargs=self.easy_dict(common, path=str(fake), xflip=False),
            generator_as_dataset=True,
            num_gpus=1,
            rank=0,
            device=torch.device("cpu"),
            progress=self.utils.ProgressMonitor(),
            cache=False,
        )
        return {"scores": dict(result.results), "features": np.concatenate(self.features), "choices": self.choices}

    def distance(self, real: np.ndarray, fake: np.ndarray) -> float:
        """Compute the Fréchet distance of features (N, D) by the sums and the formula of ``fvd2048_16f``."""
        measure, sides = self.utils.compute_feature_stats_for_dataset, iter((real, fake))

        def given(**_: Any) -> Any:
            stats = self.utils.FeatureStats(capture_mean_cov=True)
            for row in next(sides):
                stats.append(row[None])
            return stats

        self.utils.compute_feature_stats_for_dataset = given
        options = {"resolution": SIZE, "path": "", "cfg": {}}
        found = self.main.calc_metric(
            metric="fvd2048_16f",
            dataset_kwargs=self.easy_dict(options),
            gen_dataset_kwargs=self.easy_dict(options),
            generator_as_dataset=True,
            device=torch.device("cpu"),
        )
        self.utils.compute_feature_stats_for_dataset = measure
        return found.results.fvd2048_16f


def draw_features() -> tuple[np.ndarray, np.ndarray]:
    """Draw features (450, 400) and (440, 400) float32: more rows than features on both sides."""
    rng = np.random.RandomState(0)
    mix = rng.normal(size=(400, 400)) / 20
    return tuple((rng.normal(size=(n, 400)) @ mix + 0.1 * (n == 440)).astype(np.float32) for n in (450, 440))


def run(checkout: Path, networks: dict[str, Path], real: Path, fake: Path, size: int) -> tuple[dict, dict]:
    """Run the tool on two folders of videos, and return arrays and facts to store."""
    tool = OfficialTool(checkout, networks)
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        frames = [Path(folder, name) for name in ("real", "fake")]
        for videos, target in zip((real, fake), frames):
            tool.to_frames(videos, target, size)
        for metric in METRICS:
            found = tool.measure(metric, *frames, size)
            arrays[metric] = found["features"]
            facts[metric] = {"scores": found["scores"], "choices": found["choices"]}
        facts["distance"] = tool.distance(*draw_features())
    return arrays, facts


def main() -> None:
    """Run the tool as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--fixture", type=Path, help="safetensors file of the fixture to write")
    parser.add_argument("--real", type=Path, help="folder of real videos")
    parser.add_argument("--fake", type=Path, help="folder of generated videos")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the frames in pixels: 128 or 256")
    parser.add_argument("--output", type=Path, help="safetensors file of features and scores")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        networks = write_stand_ins(Path(folder))
        real, fake = (args.real, args.fake) if args.real else write_fixture_videos(Path(folder))
        arrays, facts = run(args.official, networks, real, fake, args.size)
    save_file(arrays, args.fixture or args.output, {"facts": json.dumps(facts)})
    for metric in METRICS:
        print(metric, facts[metric]["scores"], arrays[metric].shape)


if __name__ == "__main__":
    main()
