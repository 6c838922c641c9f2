"""Coefficients of the schedule, and respacing."""

import pytest
import torch

from latte_pl.diffusion.schedule import Schedule, evenly_spaced, integer_stride

TIMESTEPS = [None, evenly_spaced(250), evenly_spaced(7), integer_stride(50)]


def test_respacing_matches_the_official_code():
    fifty = evenly_spaced(50)
    assert fifty[:4] == [0, 20, 41, 61]
    assert fifty[-1] == 999
    respaced = evenly_spaced(250)
    assert (respaced[:3], respaced[200], respaced[-1], len(respaced)) == ([0, 4, 8], 802, 999, 250)
    assert evenly_spaced(10) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert evenly_spaced(1000) == list(range(1000))
    assert integer_stride(50) == list(range(0, 981, 20))


@pytest.mark.parametrize("steps", [2, 21, 43, 250, 999])
def test_evenly_spaced_timesteps_are_unique_from_0_to_999(steps):
    timesteps = evenly_spaced(steps)
    assert len(set(timesteps)) == steps
    assert (timesteps[0], timesteps[-1]) == (0, 999)


def test_unsupported_numbers_of_steps_raise_an_error():
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f"steps is {steps}; this sampler takes 2 to 1000"):
            evenly_spaced(steps)
    with pytest.raises(ValueError, match=r"steps is 60.* take 59 or 63"):
        integer_stride(60)


def test_full_schedule_has_the_linear_betas():
    schedule = Schedule()
    beta = torch.stack([schedule.step(i).log_variance_max for i in range(1000)]).exp()
    torch.testing.assert_close(beta, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), rtol=1e-11, atol=0)
    # the known value of DDPM: almost no signal is left
    assert schedule.step(999).signal.square().item() == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_posterior_composes_with_the_forward_process(timesteps):
    """Drawing x_t given x_0, then x_{t-1} given both, has the moments of x_{t-1} given x_0."""
    schedule = Schedule(timesteps)
    c = schedule.at(torch.arange(len(schedule.timesteps)), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(c.signal.square() + c.noise.square(), torch.ones_like(c.signal))
    torch.testing.assert_close(c.mean_x0 + c.mean_xt * c.signal, c.signal_prev)
    variance = (c.mean_xt * c.noise).square() + c.log_variance_min.exp()
    torch.testing.assert_close(variance[1:], c.noise_prev.square()[1:])
    assert (c.noise_prev[0], c.signal_prev[0]) == (0.0, 1.0)


@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_respaced_schedule_keeps_the_noise_levels_of_its_timesteps(timesteps):
    full, respaced = Schedule(), Schedule(timesteps)
    levels = [full.step(t).noise.item() for t in respaced.timesteps]
    assert [respaced.step(i).noise.item() for i in range(len(levels))] == levels
    # each step leads to the previous level
    assert [respaced.step(i).noise_prev.item() for i in range(1, len(levels))] == pytest.approx(levels[:-1], rel=1e-12)


def test_batched_coefficients_equal_those_of_single_steps():
    schedule = Schedule(evenly_spaced(250))
    batch = schedule.at(torch.tensor([249, 0, 7]), torch.zeros(3, 2, dtype=torch.float64))
    for row, index in enumerate((249, 0, 7)):
        for batched, single in zip(batch, schedule.step(index), strict=True):
            assert batched.shape == (3, 1, 1, 1, 1)
            assert batched[row].item() == single.item()


def test_x0_inverts_the_forward_process():
    schedule = Schedule()
    x, eps = torch.randn(2, 3, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(1)[
        :2
    ]
    c = schedule.at(torch.tensor([5, 999]), x)
    torch.testing.assert_close(c.x0(c.signal * x + c.noise * eps, eps), x, rtol=1e-10, atol=1e-10)
