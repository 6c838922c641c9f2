"""Noise tables and respacing."""

import pytest
import torch

from latte_pl.diffusion.schedule import Schedule, evenly_spaced, integer_stride

CHAINS = [None, evenly_spaced(250), evenly_spaced(7), integer_stride(50)]


def test_respacing_of_the_official_code():
    fifty = evenly_spaced(50)
    assert fifty[:4] == [0, 20, 41, 61]
    assert fifty[-1] == 999
    quarter = evenly_spaced(250)
    assert (quarter[:3], quarter[200], quarter[-1], len(quarter)) == ([0, 4, 8], 802, 999, 250)
    assert evenly_spaced(10) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert evenly_spaced(1000) == list(range(1000))
    assert integer_stride(50) == list(range(0, 981, 20))


@pytest.mark.parametrize("steps", [2, 21, 43, 250, 999])
def test_even_spacing_reaches_both_ends_without_repeats(steps):
    timesteps = evenly_spaced(steps)
    assert len(set(timesteps)) == steps
    assert (timesteps[0], timesteps[-1]) == (0, 999)


def test_steps_that_cannot_be_are_refused():
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f"steps is {steps}; this sampler takes 2 to 1000"):
            evenly_spaced(steps)
    with pytest.raises(ValueError, match=r"steps is 60.* take 59 or 63"):
        integer_stride(60)


def test_full_chain_has_the_linear_betas():
    schedule = Schedule()
    beta = torch.stack([schedule.step(i).log_variance_max for i in range(1000)]).exp()
    torch.testing.assert_close(beta, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), rtol=1e-11, atol=0)
    # the value known from DDPM: almost no signal is left
    assert schedule.step(999).signal.square().item() == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("chain", CHAINS)
def test_posterior_composes_with_the_forward_process(chain):
    """Drawing x_t from x_0 and x_{t-1} from both gives the moments of x_{t-1} given x_0."""
    schedule = Schedule(chain)
    c = schedule.at(torch.arange(len(schedule.timesteps)), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(c.signal.square() + c.noise.square(), torch.ones_like(c.signal))
    torch.testing.assert_close(c.mean_x0 + c.mean_xt * c.signal, c.signal_prev)
    variance = (c.mean_xt * c.noise).square() + c.log_variance_min.exp()
    torch.testing.assert_close(variance[1:], c.noise_prev.square()[1:])
    assert (c.noise_prev[0], c.signal_prev[0]) == (0.0, 1.0)


@pytest.mark.parametrize("chain", CHAINS)
def test_short_chain_keeps_the_noise_of_its_timesteps(chain):
    full, short = Schedule(), Schedule(chain)
    kept = [full.step(t).noise.item() for t in short.timesteps]
    assert [short.step(i).noise.item() for i in range(len(kept))] == kept
    # its steps lead from one kept level to the next
    assert [short.step(i).noise_prev.item() for i in range(1, len(kept))] == pytest.approx(kept[:-1], rel=1e-12)


def test_a_batch_of_steps_equals_its_single_steps():
    schedule = Schedule(evenly_spaced(250))
    batch = schedule.at(torch.tensor([249, 0, 7]), torch.zeros(3, 2, dtype=torch.float64))
    for row, index in enumerate((249, 0, 7)):
        for many, one in zip(batch, schedule.step(index), strict=True):
            assert many.shape == (3, 1, 1, 1, 1)
            assert many[row].item() == one.item()


def test_x0_undoes_the_forward_process():
    schedule = Schedule()
    x, eps = torch.randn(2, 3, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(1)[
        :2
    ]
    c = schedule.at(torch.tensor([5, 999]), x)
    torch.testing.assert_close(c.x0(c.signal * x + c.noise * eps, eps), x, rtol=1e-10, atol=1e-10)
