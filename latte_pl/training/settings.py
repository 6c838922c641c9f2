"""Groups of settings of the training module, and the check that its parts fit together."""

from dataclasses import dataclass
from typing import Literal

from latte_pl.diffusion import Diffusion
from latte_pl.nn.denoiser import Denoiser


@dataclass
class Sampling:
    """How samples are drawn.

    Args:
        sampler: A sampler of the diffusion: "ddpm", "ddim" or "dpm++"; "euler" or "heun" for rectified flow.
        steps: Number of denoising steps.
        eta: Share of stochastic noise of "ddim", in [0, 1]; 0 is deterministic.
        guidance: Scale of classifier-free guidance; 1 is no guidance.
        guidance_interval: Timesteps [low, high] between 0 and 1000 in which guidance acts.
        weights: The weights that draw samples: the EMA, or the raw weights.
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

    `latte_pl.nn.Latte` starts from an image model, or from a video model of the same variant with another condition
    (see `latte_pl.interop.load_dit`). `latte_pl.interop.TextToVideo` starts from the released weights.

    Args:
        source: An official DiT file (.pt); or a run, checkpoint, exported file or shipped weights of a model with
            variant "spatial" or the model's own. For TextToVideo a folder of diffusers, or a hub name.
        labels: What happens to the label table: "new" draws it anew, "keep" copies it, "drop" is for a model without
            classes.
        temporal: How temporal layers start: "copy" copies the image model's blocks, "identity" makes them identities.
    """

    source: str
    labels: Literal["new", "keep", "drop"] = "new"
    temporal: Literal["copy", "identity"] = "copy"


def check_parts(net: Denoiser, diffusion: Diffusion, sampling: Sampling) -> None:
    """Check that a denoiser, an objective and a sampling fit together. The net may be on the meta device.

    Raises:
        ValueError: Two parts disagree, or the objective has no such sampling; the setting to change is named.
    """
    if net.learn_sigma != diffusion.learn_sigma:
        raise ValueError(
            f"model.net.learn_sigma is {net.learn_sigma}, but {type(diffusion).__name__} needs "
            f"{diffusion.learn_sigma}; set model.net.init_args.learn_sigma to {str(diffusion.learn_sigma).lower()}"
        )
    try:  # the message begins with the name of the setting
        diffusion.check(sampling.sampler, sampling.steps, sampling.eta)
    except ValueError as error:
        raise ValueError(f"model.sampling.{error}") from error
    if net.conditioning == "none" and sampling.guidance != 1.0:
        raise ValueError(
            f"model.sampling.guidance is {sampling.guidance}, but the model is unconditional; "
            "set model.sampling.guidance to 1, or model.net.init_args.conditioning to class or text"
        )
    low, high = sampling.guidance_interval
    if 0.0 < high <= 1.0:
        raise ValueError(
            f"model.sampling.guidance_interval is [{low:g}, {high:g}]; timesteps lie between 0 and 1000, not 0 and 1"
        )
    if sampling.guidance < 0.0 or low > high:
        raise ValueError(
            f"model.sampling.guidance is {sampling.guidance} in the interval [{low:g}, {high:g}]; guidance must be at "
            "least 0, and the interval must start with its lower end"
        )
