"""Experiments and ablations for Latte, the latent diffusion transformer for video, on PyTorch Lightning."""
