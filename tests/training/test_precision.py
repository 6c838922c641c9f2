"""Matrix products in the precision that a device is fast in."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from latte_pl.training import precision


def trainer_of(device, chosen):
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=chosen)


@pytest.mark.parametrize(("ratio", "warned"), [(7.13, True), (0.6, False)])
def test_slow_bf16_is_reported_with_its_factor(monkeypatch, ratio, warned):
    monkeypatch.setattr(precision, "bf16_ratio", lambda: ratio)
    text = precision.slow_bf16(trainer_of("cpu", "bf16-mixed"))
    assert ("7.1 times as long" in text and "--trainer.precision 32-true" in text) is warned


@pytest.mark.parametrize(("device", "chosen"), [("cpu", "32-true"), ("cuda", "bf16-mixed")])
def test_float32_and_gpus_are_not_measured(monkeypatch, device, chosen):
    monkeypatch.setattr(precision, "bf16_ratio", lambda: pytest.fail("measured"))
    assert precision.slow_bf16(trainer_of(device, chosen)) == ""


def test_weights_are_gathered_in_bf16_under_autocast_alone():
    policy = precision.gather_policy("bf16-mixed")
    assert (policy.param_dtype, policy.reduce_dtype, policy.cast_forward_inputs) == (
        torch.bfloat16,
        torch.float32,
        False,
    )
    assert precision.gather_policy("32-true").param_dtype is precision.gather_policy("16-mixed").param_dtype is None


def test_tf32_is_allowed_on_cuda_alone(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    precision.allow_tf32(trainer_of("cpu", "32-true"))
    assert chosen == []
    precision.allow_tf32(trainer_of("cuda", "32-true"))
    assert chosen == ["high"]


def test_emulated_bf16_is_slower_than_float32():
    code = "from latte_pl.training.precision import bf16_ratio; print(bf16_ratio(512))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert float(run.stdout) > 1.0
