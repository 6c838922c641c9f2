"""The loss of Gaussian diffusion."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latte_pl.diffusion import GaussianDiffusion

SHAPE = (3, 2, 4, 3, 5)  # B, F, C, H, W


def normals(number, dtype=torch.float64, seed=0):
    return torch.randn(number, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind(0)


def constant(*parts):
    return lambda x, t: torch.cat(parts, dim=2)


def test_timesteps_are_uniform_in_0_to_999():
    diffusion = GaussianDiffusion()
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(diffusion.timesteps(u), torch.arange(1000))
    limits = diffusion.timesteps(torch.tensor([0.0, 1.0 - 2.0**-24]))
    assert limits.dtype == torch.int64
    assert limits.tolist() == [0, 999]


def test_exact_noise_and_posterior_variance_have_zero_loss():
    x, noise = normals(2)
    t = torch.tensor([1, 500, 999])
    losses = GaussianDiffusion().loss(constant(noise, -torch.ones_like(noise)), x, t, noise)
    for name in ("loss", "mse", "vb"):
        assert losses[name].shape == SHAPE[:2]
        torch.testing.assert_close(losses[name], torch.zeros(SHAPE[:2], dtype=torch.float64), rtol=0, atol=1e-14)
    fixed = GaussianDiffusion(learn_sigma=False).loss(constant(noise), x, t, noise)
    assert set(fixed) == {"loss", "mse"}
    assert fixed["loss"].abs().max() == 0.0


def test_vb_of_the_first_step_is_a_discretised_likelihood():
    """With the exact mean, vb is minus log2 of the Gaussian's probability within 1/255 of its mean."""
    x, noise = (0.3 * z.clamp(-3, 3) for z in normals(2))
    losses = GaussianDiffusion().loss(constant(noise, -torch.ones_like(noise)), x, torch.zeros(3).long(), noise)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    a0, a1 = (1 - betas[0]).item(), ((1 - betas[0]) * (1 - betas[1])).item()
    std = math.sqrt(betas[1].item() * (1 - a0) / (1 - a1))
    bits = -math.log2(math.erf(1 / 255 / std / math.sqrt(2)))
    # the tanh approximation of the normal CDF has an error of 3e-4
    torch.testing.assert_close(losses["vb"], torch.full(SHAPE[:2], bits, dtype=torch.float64), rtol=0, atol=2e-3)


def test_outermost_intervals_extend_to_infinity():
    x = torch.full(SHAPE, 1.0, dtype=torch.float64)
    noise = torch.zeros_like(x)
    t = torch.zeros(3).long()
    outer = GaussianDiffusion().loss(constant(noise - 5.0, -torch.ones_like(x)), x, t, noise)["vb"]
    inner = GaussianDiffusion().loss(constant(noise - 5.0, -torch.ones_like(x)), 0.5 * x, t, noise)["vb"]
    # a mean far beyond the outermost interval is no error, far beyond an inner interval it is
    assert outer.max() < 1e-6
    assert inner.min() > 5.0


def test_vb_is_the_kl_divergence_of_the_two_gaussians():
    x, noise, eps, v = normals(4)
    v = 0.5 * v
    t = torch.tensor([1, 37, 999])
    vb = GaussianDiffusion().loss(constant(eps, v), x, t, noise)["vb"]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    for b, step in enumerate(t.tolist()):
        a, p, beta = abar[step], abar[step - 1], betas[step]
        x_t = a.sqrt() * x[b] + (1 - a).sqrt() * noise[b]
        posterior_variance = beta * (1 - p) / (1 - a)

        def mean(x0, a=a, p=p, beta=beta, x_t=x_t):
            return (p.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - p) * x_t) / (1 - a)

        true = Normal(mean(x[b]), posterior_variance.sqrt())
        fraction = (v[b] + 1) / 2
        std = (0.5 * (fraction * beta.log() + (1 - fraction) * posterior_variance.log())).exp()
        model = Normal(mean((x_t - (1 - a).sqrt() * eps[b]) / a.sqrt()), std)
        bits = kl_divergence(true, model).mean(dim=(1, 2, 3)) / math.log(2)
        torch.testing.assert_close(vb[b], bits, rtol=1e-8, atol=1e-10)


def snr(t):
    a = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t]
    return a / (1 - a)


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("steps", [[0, 37, 150], [400, 700, 999]])
def test_min_snr_weights_only_the_loss_of_steps_with_little_noise(steps, learn_sigma):
    x, noise, *outputs = normals(4)
    model, t = constant(*outputs[: 1 + learn_sigma]), torch.tensor(steps)
    plain = GaussianDiffusion(learn_sigma).loss(model, x, t, noise)
    losses = GaussianDiffusion(learn_sigma, min_snr_gamma=5.0).loss(model, x, t, noise)
    assert losses.keys() == plain.keys()
    for part in losses.keys() - {"loss"}:
        assert torch.equal(losses[part], plain[part])
    weight = (snr(t).clamp(max=5.0) / snr(t))[:, None]  # (B, 1)
    assert weight.min() < 0.1 or weight.min() == 1.0
    torch.testing.assert_close(losses["loss"], weight * plain["mse"] + plain.get("vb", 0.0))


def test_min_snr_weights_are_gamma_over_snr_for_small_gamma_and_one_for_large_gamma():
    x, noise, eps, v = normals(4)
    t = torch.tensor([0, 500, 999])
    plain = GaussianDiffusion().loss(constant(eps, v), x, t, noise)
    large = GaussianDiffusion(min_snr_gamma=1e6).loss(constant(eps, v), x, t, noise)
    assert torch.equal(large["loss"], plain["loss"])
    small = GaussianDiffusion(min_snr_gamma=1e-6).loss(constant(eps, v), x, t, noise)
    weights = (small["loss"] - small["vb"]) / small["mse"]
    torch.testing.assert_close(weights * snr(t)[:, None], torch.full_like(weights, 1e-6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.0, -5.0, math.nan])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match=r"min_snr_gamma is .*; it must be positive"):
        GaussianDiffusion(min_snr_gamma=gamma)


def test_vb_is_never_negative():
    x, noise, eps, v = normals(4, torch.float32)
    for t in ([0, 0, 0], [1, 2, 3], [100, 500, 999]):
        vb = GaussianDiffusion().loss(constant(noise + 0.01 * eps, 2.0 * v), x, torch.tensor(t), noise)["vb"]
        assert vb.min() >= 0.0


def test_vb_trains_only_the_variance_and_mse_only_the_noise():
    x, noise, eps, v = normals(4)
    eps.requires_grad_()
    v.requires_grad_()
    losses = GaussianDiffusion().loss(constant(eps, v), x, torch.tensor([0, 37, 999]), noise)
    eps_grad, v_grad = torch.autograd.grad(losses["vb"].sum(), [eps, v], retain_graph=True, allow_unused=True)
    assert eps_grad is None or eps_grad.abs().max() == 0.0
    assert all(v_grad[b].abs().max() > 0.0 for b in range(3))
    eps_grad, v_grad = torch.autograd.grad(losses["mse"].sum(), [eps, v], allow_unused=True)
    assert eps_grad.abs().max() > 0.0
    assert v_grad is None or v_grad.abs().max() == 0.0


def test_each_frame_has_its_own_loss():
    x, noise, eps, v = normals(4)
    t = torch.tensor([0, 37, 999])
    before = GaussianDiffusion().loss(constant(eps, v), x, t, noise)
    eps = eps.clone()
    eps[:, 1] += 0.1
    after = GaussianDiffusion().loss(constant(eps, v), x, t, noise)
    for name in ("mse", "vb"):
        assert torch.equal(before[name][:, 0], after[name][:, 0])
        assert (before[name][:, 1] != after[name][:, 1]).all()


def test_model_gets_noisy_latents_in_their_own_dtype():
    x, noise = normals(2, torch.bfloat16)
    t = torch.tensor([0, 500, 999])
    calls = []

    def model(x_t, steps):
        calls.append((x_t, steps))
        return torch.zeros(3, 2, 8, 3, 5, dtype=torch.bfloat16)

    losses = GaussianDiffusion().loss(model, x, t, noise)
    (x_t, steps), *rest = calls
    assert not rest  # one evaluation
    assert torch.equal(steps, t)
    assert x_t.dtype == torch.bfloat16
    torch.testing.assert_close(x_t[0].float(), x[0].float(), rtol=0, atol=0.1)
    torch.testing.assert_close(x_t[2].float(), noise[2].float(), rtol=0, atol=0.1)
    # the loss of half-precision latents is computed in float32
    assert losses["loss"].dtype == torch.float32
    torch.testing.assert_close(losses["mse"], noise.float().square().mean(dim=(2, 3, 4)))


@pytest.mark.parametrize(("learn_sigma", "channels"), [(True, 4), (False, 8)])
def test_wrong_number_of_channels_raises_an_error(learn_sigma, channels):
    x, noise = normals(2)
    with pytest.raises(ValueError, match=f"the model returns {channels} channels for 4 .*learn_sigma={learn_sigma}"):
        GaussianDiffusion(learn_sigma).loss(lambda x, t: torch.zeros(3, 2, channels, 3, 5), x, torch.arange(3), noise)
