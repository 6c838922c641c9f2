"""Model, data and trainer of the commands that use trained weights."""

from collections.abc import Sequence
from typing import Any

from lightning import Trainer

from latte_pl.cli.config import Arguments, LatteCLI
from latte_pl.cli.fit import as_list, run_folder
from latte_pl.interop import read_weights
from latte_pl.training.progress import SamplingProgressBar
from latte_pl.training.slurm import cluster_environments
from latte_pl.training.weights import Weights, run_of


class TrainedCLI(LatteCLI):
    """Build model, data and trainer of a command that uses the weights of ``--ckpt_path``."""

    draws = False
    """Whether the command draws samples."""

    def __init__(self, command: str, args: Sequence[str], description: str) -> None:
        if Arguments.split(args).ckpt_path is None and not {"-h", "--help"} & set(args):
            raise ValueError(
                f"latte {command} needs --ckpt_path: a checkpoint, a run's folder, an exported .safetensors file, "
                "an official .pt file, hf://OWNER/REPO/FILE, or the name of shipped or official weights"
            )
        super().__init__(command, args, description)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a trainer without logger and training callbacks; its folder is that of the run of the weights."""
        settings = {**self.config_init["trainer"], **kwargs}
        _, folder = run_folder(self.config.trainer.default_root_dir, self.config.name)
        folder = run_of(self.config.ckpt_path) or folder
        environment = cluster_environments(settings["accelerator"], settings["devices"], settings["num_nodes"])
        settings["plugins"] = [*as_list(settings["plugins"]), *environment]
        settings |= {"default_root_dir": str(folder), "logger": settings["logger"] or False}
        if self.draws and settings["enable_progress_bar"] is not False:
            settings["callbacks"] = [*as_list(settings["callbacks"]), SamplingProgressBar()]
        return self.trainer_class(**settings | {"enable_checkpointing": False})

    def load_weights(self) -> Weights:
        """Load the weights of ``--ckpt_path`` into the model and return them."""
        trained = read_weights(self.config.ckpt_path)
        trained.load_into(self.model)
        return trained
