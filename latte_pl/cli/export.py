"""Write the EMA weights of a run, with their configuration, to one safetensors file; optionally upload it."""

from collections.abc import Sequence
from typing import Literal

from latte_pl.cli.functions import run


def export(
    ckpt_path: str,
    output: str,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    push: str | None = None,
    private: bool | None = None,
) -> None:
    """Write the EMA weights of a run, with their configuration, to one safetensors file; optionally upload it.

    Args:
        ckpt_path: A checkpoint or a run's folder.
        output: The file to write, ending in .safetensors.
        dtype: Storage type of the weights; they are used in float32.
        push: Repository OWNER/REPO of the Hugging Face Hub to upload the weights to, with a model card: configuration,
            records of `latte test` and samples of the run.
        private: Whether a new repository is private. Default: as the owner has set.
    """
    from latte_pl.training import weights

    path = weights.export(ckpt_path, output, dtype)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if push is not None:
        from latte_pl.interop.upload import upload

        print(f"uploaded to {upload(path, ckpt_path, push, private)}")


def main(args: Sequence[str]) -> None:
    """Run `latte export`."""
    run("latte export", export, args)
