"""Groups of settings of the training module, and what its parts ask of each other."""

from dataclasses import dataclass
from typing import Literal

from latte_pl.diffusion import Diffusion
from latte_pl.nn.denoiser import Denoiser


@dataclass
class Sampling:
    """How samples are drawn.

    Args:
        sampler: Name of a sampler of the diffusion ("ddpm", "ddim", "dpm++"; "euler", "heun").
        steps: Number of denoising steps.
        eta: Share of DDIM's noise; 0 is deterministic.
        guidance: Scale of classifier-free guidance; 1 is without.
        guidance_interval: Timesteps [low, high] of 0..1000 in which guidance acts.
        weights: Which weights sample: the exponential moving average or the raw ones.
    """

    sampler: str = "ddpm"
    steps: int = 250
    eta: float = 0.0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1000.0)
    weights: Literal["ema", "raw"] = "ema"


@dataclass
class Pretrained:
    """Weights that a new run's denoiser starts from.

    For `latte_pl.nn.Latte` they are an image model's, or those of a video model of the same arrangement with another
    condition, see `latte_pl.interop.load_dit`; for `latte_pl.interop.TextToVideo` the released ones.

    Args:
        source: An official DiT file (.pt), or a run, checkpoint, release file or shipped weights of a model with
            variant "spatial" or the model's own; for TextToVideo a folder of diffusers, or a hub name.
        labels: The label table of an image model: drawn anew, kept, or dropped for an unconditional model.
        temporal: Temporal layers: copied from the image model's blocks, or starting as identities.
    """

    source: str
    labels: Literal["new", "keep", "drop"] = "new"
    temporal: Literal["copy", "identity"] = "copy"


def check_parts(net: Denoiser, diffusion: Diffusion, sampling: Sampling) -> None:
    """Refuse a denoiser, an objective and a sampling that do not fit together; the net may be on the meta device.

    Raises:
        ValueError: Two disagree, or the objective cannot sample so; the setting to change is named.
    """
    if net.learn_sigma != diffusion.learn_sigma:
        raise ValueError(
            f"model.net.learn_sigma is {net.learn_sigma} and {type(diffusion).__name__} needs "
            f"{diffusion.learn_sigma}; set model.net.init_args.learn_sigma to {str(diffusion.learn_sigma).lower()}"
        )
    try:  # its messages begin with the setting's name
        diffusion.check(sampling.sampler, sampling.steps, sampling.eta)
    except ValueError as error:
        raise ValueError(f"model.sampling.{error}") from error
    if net.conditioning == "none" and sampling.guidance != 1.0:
        raise ValueError(
            f"model.sampling.guidance is {sampling.guidance} and the model is unconditional; "
            "set model.sampling.guidance to 1, or model.net.init_args.conditioning to class or text"
        )
    low, high = sampling.guidance_interval
    if 0.0 < high <= 1.0:
        raise ValueError(
            f"model.sampling.guidance_interval is [{low:g}, {high:g}]; timesteps go from 0 to 1000, not to 1"
        )
    if sampling.guidance < 0.0 or low > high:
        raise ValueError(
            f"model.sampling.guidance is {sampling.guidance} in the interval [{low:g}, {high:g}]; guidance is at least "
            "0, and the lowest timestep comes first"
        )
