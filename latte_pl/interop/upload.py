"""Upload exported weights to the hub, with a model card: configuration, metrics with their protocols, samples."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors.torch import load_file

from latte_pl import hub
from latte_pl.files import write_text
from latte_pl.metrics import Record, text
from latte_pl.nn import LatteConfig
from latte_pl.training import weights
from latte_pl.training.weights import Weights

PICTURES = ("predict/contact_sheet.gif", "predict/contact_sheet.png")
"""Samples of `latte predict` in the folder of a run; those that were drawn in training follow."""
USE = """```python
from latte_pl import Latte, load

module = load("hf://{repo}")  # with autoencoder and samplers
net = Latte.from_pretrained("{repo}")  # the denoiser alone
```"""


def upload(file: Path, ckpt_path: str, repo: str, private: bool | None = None) -> str:
    """Upload exported weights to a repository of the hub, and return its address.

    The repository gets ``model.safetensors`` (for `latte predict` and `latte_pl.load`), ``config.json`` (for
    `Latte.from_pretrained`), the records of `latte test` of this checkpoint, one picture of the run's samples, and a
    model card. Absolute paths in the configuration are shortened to their last part.

    Args:
        file: What `latte export` wrote.
        ckpt_path: Checkpoint or run that it was exported from.
        repo: OWNER/REPO.
        private: Whether a new repository is private; None is the default of the owner.

    Raises:
        OSError: The upload fails.
        ValueError: The name of the repository is wrong.
    """
    trained = weights.read(file)
    trained = dataclasses.replace(trained, config=public(trained.config))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights.write_export(trained, load_file(file), folder / hub.WEIGHTS)
        net = trained.config["model"]["net"]
        if net["class_path"].endswith(".Latte"):
            LatteConfig(**net["init_args"]).save(folder)
        run, name = weights.run_of(ckpt_path), weights.intact(ckpt_path).name
        records = []
        for path in sorted(run.glob("test/*.json")) if run else []:
            record = Record.read(path)
            if Path(record.model).name == name:
                records.append(dataclasses.replace(record, model=f"step {trained.step}"))
                records[-1].write(folder / "metrics" / path.name)
        picture = samples_of(run) if run else None
        if picture is not None:
            shutil.copy(picture, folder / f"samples{picture.suffix}")
        card = model_card(repo, trained, records, f"samples{picture.suffix}" if picture else None)
        write_text(folder / "README.md", card)
        return hub.push(folder, repo, f"Weights of step {trained.step}", private)


def public(config: Any) -> Any:
    """Return a configuration whose absolute paths are shortened to their last part."""
    if isinstance(config, dict):
        return {name: public(value) for name, value in config.items()}
    if isinstance(config, list):
        return [public(value) for value in config]
    return Path(config).name if isinstance(config, str) and config.startswith(("/", "~")) else config


def samples_of(run: Path) -> Path | None:
    """Return a picture of samples in the folder of a run: of `latte predict`, else the newest of the training."""
    drawn = [run / name for name in PICTURES]
    found = [path for path in (*drawn, *sorted(run.glob("samples/step=*.gif"), reverse=True)) if path.is_file()]
    return found[0] if found else None


def model_card(repo: str, trained: Weights, records: Sequence[Record], picture: str | None) -> str:
    """Return the model card of trained weights as Markdown with the hub's front matter.

    Args:
        repo: OWNER/REPO.
        trained: The weights with their configuration.
        records: What was measured; records of different protocols get tables of their own.
        picture: File of samples in the repository; None if there are none.
    """
    net = trained.config["model"]["net"]["init_args"]
    conditioning = net.get("conditioning", "none")
    about: dict[str, Any] = {"library_name": "latte_pl", "tags": ["video-generation", "latent-diffusion", "latte"]}
    if conditioning == "text":
        about["pipeline_tag"] = "text-to-video"
    if trained.class_names:
        asked = f"Its {len(trained.class_names)} classes are {', '.join(trained.class_names)}."
    else:
        asked = {"text": "It is conditioned on captions."}.get(conditioning, "It is unconditional.")
    lines = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
        f"# {repo.partition('/')[2]}",
        "A video diffusion transformer ([Latte](https://arxiv.org/abs/2401.03048)), trained with latte_pl for "
        f"{trained.step:,} steps. {asked}",
        *([f"![Samples]({picture})"] if picture else []),
        "## Use",
        f"```bash\nlatte predict --ckpt_path hf://{repo} --num_samples 8\n```",
        USE.format(repo=repo),
        "## Metrics",
    ]
    for record in records:
        lines.append(f"```\n{text([record])}\n```")
    if not records:
        lines.append("Not measured. `latte test` measures a run; `latte export --push` then adds the result.")
    settings = {name: trained.config[name] for name in ("model", "data") if name in trained.config}
    lines += ["## Configuration", f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"]
    return "\n\n".join(lines) + "\n"
