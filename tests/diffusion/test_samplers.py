"""Samplers on Gaussian data, for which the optimal denoiser and the exact sample have a closed form."""

import pytest
import torch

from latte_pl.diffusion import GaussianDiffusion, RectifiedFlow
from latte_pl.diffusion.samplers import ddim_step, ddpm_step
from latte_pl.diffusion.schedule import Schedule, evenly_spaced

MEAN, STD = 0.4, 0.6
SHAPE = (4, 3, 4, 12, 20)  # B, F, C, H, W
GAUSSIAN = [("ddpm", 25, 0.0), ("ddim", 25, 0.0), ("ddim", 25, 0.5), ("dpm++", 5, 0.0)]
FLOW = [("euler", 5, 0.0), ("heun", 5, 0.0)]
ALL = [(GaussianDiffusion(False), *row) for row in GAUSSIAN] + [(RectifiedFlow(), *row) for row in FLOW]


def optimal_noise(x, t):
    """Return E[eps | x_t] for data N(MEAN, STD^2)."""
    c = Schedule().at(t, x)
    return c.noise * (x - c.signal * MEAN) / ((c.signal * STD).square() + c.noise.square())


def optimal_noise_and_variance(steps):
    """Return a model of the noise, and of the variance output with which reverse steps have the true variance."""
    schedule = Schedule(evenly_spaced(steps))
    index = {t: i for i, t in enumerate(schedule.timesteps)}

    def model(x, t):
        c = schedule.at(torch.tensor([index[n] for n in t.tolist()]), x)
        variance = (STD * c.noise).square() / ((c.signal * STD).square() + c.noise.square())  # Var[x_0 | x_t]
        log_variance = (c.mean_x0.square() * variance + c.log_variance_min.exp()).log()
        fraction = (log_variance - c.log_variance_min) / (c.log_variance_max - c.log_variance_min)
        return torch.cat([optimal_noise(x, t), (2.0 * fraction - 1.0).nan_to_num(0.0).expand_as(x)], dim=2)

    return model


def optimal_velocity(x, t):
    """Return E[eps - x_0 | x_s] for the same data."""
    s = t.to(x)[:, None, None, None, None] / 1000.0
    z = (x - (1 - s) * MEAN) / (((1 - s) * STD).square() + s.square())
    return s * z - (MEAN + (1 - s) * STD**2 * z)


def optimal(diffusion):
    return optimal_noise if isinstance(diffusion, GaussianDiffusion) else optimal_velocity


def normal(seed=0, shape=SHAPE, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(diffusion, sampler, steps):
    """Return the largest error to the exact solution of the probability-flow ODE, MEAN + STD * noise."""
    noise = normal(shape=(2, 2, 2, 3, 5)).clamp(-3, 3)
    sample = diffusion.sample(optimal(diffusion), noise, sampler=sampler, steps=steps)
    return (sample - (MEAN + STD * noise)).abs().max().item()


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_ddpm_samples_have_the_moments_of_the_data(learn_sigma):
    model = optimal_noise_and_variance(250) if learn_sigma else optimal_noise
    generator = torch.Generator().manual_seed(1)
    diffusion = GaussianDiffusion(learn_sigma)
    sample = diffusion.sample(model, normal(), sampler="ddpm", steps=250, generator=generator)
    # standard errors of 11520 values: 0.006 of the mean, 0.004 of the standard deviation
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert sample.std().item() == pytest.approx(STD, abs=0.015)


def test_ddim_with_full_eta_samples_have_the_moments_of_the_data():
    # all 1000 steps, because the smaller variance is exact only for small steps
    generator = torch.Generator().manual_seed(1)
    diffusion = GaussianDiffusion(False)
    sample = diffusion.sample(optimal_noise, normal(), sampler="ddim", steps=1000, eta=1.0, generator=generator)
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert sample.std().item() == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize(
    ("diffusion", "sampler", "steps", "tolerance"),
    [
        (GaussianDiffusion(False), "ddim", 250, 0.02),
        (GaussianDiffusion(False), "dpm++", 20, 0.06),
        (RectifiedFlow(), "euler", 250, 0.02),
        (RectifiedFlow(), "heun", 20, 0.006),
    ],
)
def test_deterministic_samplers_converge_to_the_exact_sample(diffusion, sampler, steps, tolerance):
    assert error(diffusion, sampler, steps) < tolerance


def test_euler_has_order_1_and_heun_order_2():
    for sampler, ratio in (("euler", 2.0), ("heun", 4.0)):
        errors = [error(RectifiedFlow(), sampler, steps) for steps in (40, 80, 160)]
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.15)
        assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)


def test_dpm_solver_is_more_accurate_than_ddim_with_equal_steps():
    assert error(GaussianDiffusion(False), "dpm++", 20) < 0.5 * error(GaussianDiffusion(False), "ddim", 20)


def test_ddim_with_full_eta_is_ddpm_with_the_smaller_variance():
    schedule = Schedule(evenly_spaced(50))
    x, eps, noise = normal(shape=(3, 2, 2, 2, 3, 5)).unbind(0)
    for index in (1, 20, 49):
        c = schedule.step(index)
        torch.testing.assert_close(
            ddim_step(c, x, eps, 1.0, noise), ddpm_step(c, x, eps, -torch.ones_like(x), noise), rtol=0, atol=1e-9
        )


def test_number_of_model_evaluations():
    for sampler, evaluations in (("euler", 6), ("heun", 11)):
        seen = []

        def model(x, t, seen=seen):
            seen.append(t)
            return optimal_velocity(x, t)

        RectifiedFlow().sample(model, normal(shape=(2, 2, 2, 2, 3)), sampler=sampler, steps=6)
        assert len(seen) == evaluations
        assert all(t.dtype == torch.float32 and t.shape == (2,) for t in seen)
        assert seen[0].tolist() == [1000.0, 1000.0]
        assert min(t.min().item() for t in seen) == pytest.approx(1000 / 6)  # never at 0


@pytest.mark.parametrize(
    ("sampler", "steps", "timesteps"),
    [("ddpm", 4, [999, 666, 333, 0]), ("ddim", 4, [750, 500, 250, 0]), ("dpm++", 4, [999, 749, 500, 250])],
)
def test_model_gets_the_expected_timesteps(sampler, steps, timesteps):
    seen = []

    def model(x, t):
        seen.append(t)
        return optimal_noise(x, t)

    GaussianDiffusion(False).sample(model, normal(shape=(2, 2, 2, 2, 3)), sampler=sampler, steps=steps)
    assert [t.tolist() for t in seen] == [[t, t] for t in timesteps]
    assert all(t.dtype == torch.int64 for t in seen)


@pytest.mark.parametrize(("diffusion", "sampler", "steps", "eta"), ALL)
def test_samples_depend_only_on_the_seed(diffusion, sampler, steps, eta):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = normal(shape=(2, 2, 2, 3, 5))
        return diffusion.sample(optimal(diffusion), noise, sampler=sampler, steps=steps, eta=eta, generator=generator)

    assert torch.equal(sample(5), sample(5))
    draws = sampler == "ddpm" or eta > 0.0
    assert torch.equal(sample(5), sample(6)) is not draws


@pytest.mark.parametrize(("diffusion", "sampler", "steps", "eta"), ALL)
def test_samples_do_not_depend_on_the_batch(diffusion, sampler, steps, eta):
    def sample(rows):
        return diffusion.sample(
            optimal(diffusion),
            normal(shape=(3, 2, 2, 3, 5))[rows],
            sampler=sampler,
            steps=steps,
            eta=eta,
            generator=[torch.Generator().manual_seed(row) for row in rows],
        )

    together = sample([0, 1, 2])
    assert torch.equal(together[[2, 0]], sample([2, 0]))
    assert torch.equal(together[1:2], sample([1]))


@pytest.mark.parametrize(("diffusion", "sampler", "steps", "eta"), ALL)
def test_model_and_sample_have_the_dtype_of_the_noise(diffusion, sampler, steps, eta):
    seen = set()

    def model(x, t):
        seen.add(x.dtype)
        return optimal(diffusion)(x.float(), t).to(x.dtype)

    noise = normal(shape=(2, 2, 2, 3, 5), dtype=torch.bfloat16)
    arguments = {"sampler": sampler, "steps": steps, "eta": eta}
    half = diffusion.sample(model, noise, generator=torch.Generator().manual_seed(0), **arguments)
    assert (half.dtype, seen) == (torch.bfloat16, {torch.bfloat16})
    full = diffusion.sample(optimal(diffusion), noise.float(), generator=torch.Generator().manual_seed(0), **arguments)
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


def test_learned_variance_changes_only_ddpm_samples():
    def model(v):
        return lambda x, t: torch.cat([optimal_noise(x, t), torch.full_like(x, v)], dim=2)

    for sampler in ("ddpm", "ddim", "dpm++"):
        low, high = (
            GaussianDiffusion().sample(
                model(v),
                normal(shape=(2, 2, 2, 3, 5)),
                sampler=sampler,
                steps=10,
                generator=torch.Generator().manual_seed(0),
            )
            for v in (-1.0, 1.0)
        )
        assert torch.equal(low, high) is (sampler != "ddpm")


@pytest.mark.parametrize(("diffusion", "sampler", "steps", "eta"), ALL)
def test_progress_wraps_the_steps(diffusion, sampler, steps, eta):
    seen = []

    def progress(iterable):
        assert len(iterable) == steps
        for item in iterable:
            seen.append(item)
            yield item

    noise = normal(shape=(2, 2, 2, 3, 5))
    diffusion.sample(optimal(diffusion), noise, sampler=sampler, steps=steps, eta=eta, progress=progress)
    assert len(seen) == steps


def test_sampling_does_not_record_gradients():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    noise = normal(shape=(2, 2, 2, 3, 5))
    sample = RectifiedFlow().sample(lambda x, t: weight * optimal_velocity(x, t), noise, sampler="heun", steps=3)
    assert not sample.requires_grad


@pytest.mark.parametrize(
    ("diffusion", "arguments", "message"),
    [
        (
            GaussianDiffusion(False),
            {"sampler": "euler"},
            "sampler is 'euler'; GaussianDiffusion supports ddpm, ddim, dpm",
        ),
        (RectifiedFlow(), {"sampler": "ddpm"}, "sampler is 'ddpm'; RectifiedFlow supports euler, heun"),
        (RectifiedFlow(), {"sampler": "heun", "steps": 0}, "steps is 0; it must be at least 1"),
        (GaussianDiffusion(False), {"sampler": "ddpm", "steps": 1001}, "steps is 1001; this sampler takes 2 to 1000"),
        (GaussianDiffusion(False), {"sampler": "ddim", "steps": 60}, "take 59 or 63"),
        (GaussianDiffusion(False), {"sampler": "dpm++", "steps": 1001}, "steps is 1001; 'dpm\\+\\+' takes 1 to 1000"),
        (GaussianDiffusion(False), {"sampler": "ddim", "eta": -0.1}, "eta is -0.1; it must be in"),
        (GaussianDiffusion(False), {"sampler": "ddim", "eta": 1.1}, "eta is 1.1; it must be in"),
        (GaussianDiffusion(False), {"sampler": "ddpm", "eta": 0.5}, "eta is 0.5, but sampler 'ddpm' does not use it"),
        (RectifiedFlow(), {"sampler": "euler", "eta": 0.5}, "eta is 0.5, but sampler 'euler' does not use it"),
        (RectifiedFlow(), {"sampler": "euler", "generator": [torch.Generator()]}, "got 1 generators for 2 samples"),
    ],
)
def test_wrong_arguments_raise_an_error(diffusion, arguments, message):
    arguments = {"steps": 50, **arguments}
    with pytest.raises(ValueError, match=message):
        diffusion.sample(optimal(diffusion), normal(shape=(2, 2, 2, 3, 5)), **arguments)
