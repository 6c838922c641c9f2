"""The networks whose features the metrics compare: I3D, C3D, Inception, and how files of weights are found."""

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from latte_pl.metrics.embedded import ShapesR3D

ExtractorName = Literal["i3d", "c3d", "inception", "shapes_r3d"]

I3D_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


class Extractor(Protocol):
    """What a metric needs of a network; an ``nn.Module`` is moved to the device of the clips."""

    name: str
    sha256: str
    """Of the file of weights; part of the protocol."""
    num_features: int

    def __call__(self, video: Tensor) -> Tensor:
        """Map clips (B, F, 3, H, W) uint8 to features (B, D), or (B, F, D) when it looks at frames."""


@torch.no_grad()
def clip_features(extractor: Extractor, video: Tensor) -> Tensor:
    """Return the features (B, k, D) float32 of clips, k rows a clip (1, or F for networks of frames).

    Each clip goes through alone and outside autocast: kernels choose their arithmetic by the shape of a batch, so this
    is what makes the features, to the last bit, independent of how clips were batched.

    Args:
        extractor: the network.
        video: (B, F, 3, H, W) uint8.

    Raises:
        ValueError: the clips have another shape or type, or the features have not the promised shape.
    """
    if video.ndim != 5 or video.shape[2] != 3 or video.dtype != torch.uint8:
        raise ValueError(f"metrics take uint8 clips (B, F, 3, H, W), not {video.dtype} {tuple(video.shape)}")
    if isinstance(extractor, nn.Module):
        extractor.to(video.device)
    rows = []
    with torch.autocast(video.device.type, enabled=False):
        for clip in video:
            features = extractor(clip[None])  # (1, D) or (1, F, D)
            rows.append(features.reshape(1, -1, features.shape[-1]).float())  # (1, k, D)
    if not rows:
        return torch.empty(0, 1, extractor.num_features, device=video.device)
    result = torch.cat(rows)  # (B, k, D)
    if result.shape[-1] != extractor.num_features:
        raise ValueError(f"{extractor.name} returned {result.shape[-1]} features, not {extractor.num_features}")
    return result


class I3D(nn.Module):
    """I3D trained on Kinetics-400, the TorchScript of StyleGAN-V behind the paper's FVD; 400 features.

    Args:
        path: the file; None looks in the cache folder and downloads it once.
        sha256: what the file must be.

    Raises:
        FileNotFoundError: there is no file and it can't be downloaded.
        ValueError: the file is another one.
    """

    name = "i3d"
    num_features = 400
    min_frames = 10

    def __init__(self, path: Path | str | None = None, sha256: str = I3D_SHA256) -> None:
        super().__init__()
        file = find_weights("i3d_torchscript.pt", I3D_URL, sha256, path)
        self.sha256 = sha256
        self.script = torch.jit.load(str(file), map_location="cpu").eval()

    def forward(self, video: Tensor) -> Tensor:
        """Return features (B, 400) of clips (B, F, 3, H, W) uint8; the script rescales and resizes by itself."""
        if video.shape[1] < self.min_frames:
            raise ValueError(f"I3D needs clips of {self.min_frames} frames or more, not {video.shape[1]}")
        pixels = video.transpose(1, 2).contiguous()  # (B, 3, F, H, W)
        return self.script(pixels, rescale=True, resize=True, return_features=True)  # (B, 400)


class C3D(nn.Module):
    """C3D fine-tuned on UCF101 (TGAN-v2's, as a TorchScript), whose class probabilities make the inception score.

    Args:
        path: the TorchScript, called with clips (B, 3, F, H, W) uint8; there is no official checksum, so the file's
            own goes into the protocol.
        num_features: number of classes.

    Raises:
        FileNotFoundError: there is no such file.
    """

    name = "c3d"

    def __init__(self, path: Path | str, num_features: int = 101) -> None:
        super().__init__()
        file = find_weights("c3d_ucf101.pt", None, None, path)
        self.num_features = num_features
        self.sha256 = file_sha256(file)
        self.script = torch.jit.load(str(file), map_location="cpu").eval()

    def forward(self, video: Tensor) -> Tensor:
        """Return probabilities (B, 101) of clips (B, F, 3, H, W) uint8."""
        return self.script(video.transpose(1, 2).contiguous())  # (B, 101)


class Inception(nn.Module):
    """clean-fid's Inception-v3 with its resizing (bicubic of Pillow, in float), frame by frame; 2048 features.

    Args:
        path: ``inception-2015-12-05.pt``; None looks in the cache folder and downloads it once.

    Raises:
        FileNotFoundError: there is no file and it can't be downloaded.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, path: Path | str | None = None) -> None:
        super().__init__()
        # imported here: clean-fid pulls in requests and SciPy's linear algebra, which nothing else needs
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        file = find_weights("inception-2015-12-05.pt", INCEPTION_URL, None, path)
        self.sha256 = file_sha256(file)
        self.resize = build_resizer("clean")
        self.net = InceptionV3W(str(file.parent), download=False).eval()

    def forward(self, video: Tensor) -> Tensor:
        """Return features (B, F, 2048) of clips (B, F, 3, H, W) uint8."""
        frames = video.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # (B F, H, W, 3)
        pixels = torch.stack([torch.from_numpy(self.resize(x)) for x in frames])  # (B F, 299, 299, 3) in [0, 255]
        features = self.net(pixels.permute(0, 3, 1, 2).to(video.device))  # (B F, 2048)
        return features.unflatten(0, video.shape[:2])  # (B, F, 2048)


def build_extractor(name: ExtractorName, path: Path | str | None = None) -> Extractor:
    """Return the extractor of this name.

    Args:
        name: "i3d", "c3d", "inception" or "shapes_r3d".
        path: its weights; None takes the cache folder's (downloading once), or the committed ones of "shapes_r3d".

    Raises:
        ValueError: the name is unknown, or "c3d" comes without a path.
    """
    if name == "i3d":
        return I3D(path)
    if name == "inception":
        return Inception(path)
    if name == "shapes_r3d":
        return ShapesR3D(path)
    if name == "c3d":
        if path is None:
            raise ValueError("c3d has no weights to download; give the path of its TorchScript (c3d_ucf101.pt)")
        return C3D(path)
    raise ValueError(f"extractor is {name!r}; choose one of {', '.join(get_args(ExtractorName))}")


def cache_folder() -> Path:
    """Return the folder of downloaded weights: ``$LATTE_CACHE``, or ``~/.cache/latte_pl``."""
    return Path(os.environ.get("LATTE_CACHE") or Path.home() / ".cache" / "latte_pl")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(name: str, url: str | None, sha256: str | None, path: Path | str | None = None) -> Path:
    """Return a checked file of weights: at ``path``, else in the cache folder, else downloaded there.

    A download goes to a temporary file beside its place and is moved there once it is whole and checked, so an
    interrupted one leaves nothing behind and several processes don't disturb each other.

    Args:
        name: of the file in the cache folder.
        url: where it comes from; None if it can't be downloaded.
        sha256: what it must be; None accepts any.
        path: the user's file.

    Raises:
        FileNotFoundError: there is no file and it can't be downloaded; names the file, the place and the address.
        ValueError: the checksum is another.
    """
    file = Path(path) if path is not None else cache_folder() / name
    if not file.is_file():
        if path is not None or url is None:
            raise FileNotFoundError(f"no file {file}; it should be {name}" + (f" from {url}" if url else ""))
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=60) as response:
                while block := response.read(1 << 20):
                    out.write(block)
            _check(Path(temporary), sha256, f"the download of {name} from {url}")
            os.replace(temporary, file)
        except OSError as error:  # urllib's errors are OSErrors
            raise FileNotFoundError(
                f"{file} is missing and {url} can't be downloaded ({error}); fetch {name} on a machine with a network"
                f" and put it there" + (f" (sha256 {sha256})" if sha256 else "")
            ) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
    _check(file, sha256, str(file))
    return file


def _check(file: Path, sha256: str | None, what: str) -> None:
    if sha256 is not None and (found := file_sha256(file)) != sha256:
        raise ValueError(f"{what} has sha256 {found}, expected {sha256}; delete it and fetch the right file")
