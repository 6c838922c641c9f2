"""Loss and timesteps of rectified flow."""

import pytest
import torch
from torch.distributions import Normal

from latte_pl.diffusion import RectifiedFlow

SHAPE = (3, 2, 4, 3, 5)  # B, F, C, H, W


def normals(number, dtype=torch.float64):
    return torch.randn(number, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(0)).unbind(0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (1.2, 2.0)])
def test_timesteps_have_the_quantiles_of_the_logit_normal(mean, std):
    z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    t = RectifiedFlow(mean, std).timesteps(Normal(0.0, 1.0).cdf(z))
    assert t.dtype == torch.float32
    torch.testing.assert_close(t, (1000 * torch.sigmoid(mean + std * z)).float())


def test_timesteps_are_in_range_at_the_limits():
    t = RectifiedFlow(std=10.0).timesteps(torch.tensor([0.0, 2.0**-24, 1.0 - 2.0**-24]))
    assert t.isfinite().all()
    assert ((t >= 0.0) & (t <= 1000.0)).all()


def test_exact_velocity_has_zero_loss():
    x, noise = normals(2)
    losses = RectifiedFlow().loss(lambda x_t, t: noise - x, x, torch.tensor([0.0, 431.5, 1000.0]), noise)
    assert losses["loss"].shape == SHAPE[:2]
    assert losses["loss"].abs().max() == 0.0


def test_model_gets_points_on_the_straight_path():
    x, noise = normals(2)
    t = torch.tensor([0.0, 250.0, 1000.0])
    calls = []

    def model(x_t, steps):
        calls.append((x_t, steps))
        return torch.zeros_like(x_t)

    losses = RectifiedFlow().loss(model, x, t, noise)
    x_t, steps = calls[0]
    assert torch.equal(steps, t)
    torch.testing.assert_close(x_t, torch.stack([x[0], 0.75 * x[1] + 0.25 * noise[1], noise[2]]))
    torch.testing.assert_close(losses["loss"], (noise - x).square().mean(dim=(2, 3, 4)))


def test_model_with_a_variance_raises_an_error():
    x, noise = normals(2)
    with pytest.raises(ValueError, match="without a variance"):
        RectifiedFlow().loss(lambda x, t: torch.cat([x, x], dim=2), x, torch.full((3,), 500.0), noise)


def test_std_must_be_positive():
    with pytest.raises(ValueError, match=r"logit-normal timesteps is 0\.0"):
        RectifiedFlow(std=0.0)
