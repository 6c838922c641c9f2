"""Parity with recorded outputs of the official code: loss, single steps, loops and guidance in float64 and float32."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latte_pl.diffusion import GaussianDiffusion, Guidance
from latte_pl.diffusion.base import Progress
from latte_pl.diffusion.samplers import ddim, ddim_step, ddpm_step
from latte_pl.diffusion.schedule import Schedule, evenly_spaced, integer_stride
from latte_pl.interop.official import load_official

FILE = Path(__file__).parents[1] / "fixtures" / "official_class.safetensors"
CHAINS = {"1000": list(range(1000)), "250": evenly_spaced(250), "ddim50": integer_stride(50)}
PRECISIONS = [(torch.float64, "out_f64_full"), (torch.float32, "out_f32")]


@pytest.fixture(scope="module", params=PRECISIONS, ids=["float64", "float32"])
def official(request):
    """Return our model with the official weights, and the recorded inputs and outputs in one precision."""
    dtype, outputs = request.param
    tensors = load_file(FILE)
    prefix = "state_dict."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Official(load_official(state, num_heads=4).eval().to(dtype), dtype, tensors, outputs)


class Official:
    def __init__(self, net, dtype, tensors, outputs):
        self.net, self.dtype, self.tensors, self.outputs = net, dtype, tensors, outputs

    def input(self, name):
        value = self.tensors[f"inputs.{name}"]
        return value.to(self.dtype) if value.is_floating_point() else value

    def draw(self, name):
        """Return recorded noise or step indices, which are equal in both precisions."""
        value = self.tensors[f"out_f32.{name}"]
        return value.to(self.dtype) if value.is_floating_point() else value

    def assert_close(self, actual, name, rows=slice(None), atol=None):
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-5
        expected = self.tensors[f"{self.outputs}.{name}"][rows]
        assert actual.dtype == self.dtype == expected.dtype
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=atol or tolerance * expected.abs().max().item()
        )

    def output(self, x, t, y):
        with torch.no_grad():
            return self.net(x, t, y)


def test_model_matches_the_official_one(official):
    output = official.output(official.input("x"), official.input("t"), official.input("y"))
    official.assert_close(output, "forward")


@pytest.mark.parametrize("name", ["loss_eval", "loss_eval_t0_999"])
def test_loss(official, name):
    t = official.input("t") if name == "loss_eval" else torch.tensor([0, 999])
    x, noise, y = official.input("x_start"), official.input("noise"), official.input("y")
    losses = GaussianDiffusion().loss(lambda x, t: official.output(x, t, y), x, t, noise)
    for part in ("mse", "vb", "loss"):
        # the official float32 likelihood at t = 0 suffers from cancellation
        loose = official.dtype == torch.float32 and name == "loss_eval_t0_999" and part != "mse"
        official.assert_close(losses[part].mean(dim=1), f"{name}.{part}", atol=2e-2 if loose else None)


def test_loss_with_dropped_labels(official):
    y = torch.where(official.input("drop_ids").bool(), official.net.null_label, official.input("y"))
    x, noise, t = (official.input(name) for name in ("x_start", "noise", "t"))
    losses = GaussianDiffusion().loss(lambda x, t: official.output(x, t, y), x, t, noise)
    for part in ("mse", "vb", "loss"):
        official.assert_close(losses[part].mean(dim=1), f"loss_train_drop.{part}")


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["p_sample", "ddim_sample_eta0", "ddim_sample_eta0.7"])
def test_single_steps(official, chain, kind):
    function, _, eta = kind.partition("_eta")
    name = f"{function}_{chain}" + (f"_eta{eta}" if eta else "")
    x, y = official.input("x"), official.input("y")
    index = official.draw(f"{name}.t_index")
    t = torch.tensor(CHAINS[chain])[index]
    if f"out_f32.{name}.t_model" in official.tensors:
        assert torch.equal(t, official.draw(f"{name}.t_model"))
    output = official.output(x, t, y)
    eps, v = output[:, :, :4], output[:, :, 4:]
    schedule = Schedule(CHAINS[chain])
    official.assert_close(schedule.at(index, x).x0(x, eps), f"{name}.pred_xstart")
    for row in range(2):
        one, c = slice(row, row + 1), schedule.step(int(index[row]))
        if function == "p_sample":
            noise = official.draw(f"{name}.noise")[one] if index[row] else None
            step = ddpm_step(c, x[one], eps[one], v[one], noise)
        else:
            noise = official.draw(f"{name}.noise")[one] if float(eta) else None
            step = ddim_step(c, x[one], eps[one], float(eta), noise)
        official.assert_close(step, f"{name}.sample", one)


def test_guided_forward_pass_matches_the_official_one(official):
    x, t, y = (official.input(name) for name in ("x", "t", "y"))
    with torch.no_grad():
        output = Guidance(official.net, y, 7.0)(x, t)
    official.assert_close(output, "forward_with_cfg", slice(0, 2))


def test_guided_step(official):
    x, y = official.input("x"), official.input("y")
    index = int(official.draw("p_sample_250_cfg7.t_index")[0])
    t = torch.full((2,), CHAINS["250"][index])
    with torch.no_grad():
        output = Guidance(official.net, y, 7.0)(x, t)
    noise = official.draw("p_sample_250_cfg7.noise")[:2]
    step = ddpm_step(Schedule(CHAINS["250"]).step(index), x, output[:, :, :4], output[:, :, 4:], noise)
    official.assert_close(step, "p_sample_250_cfg7.sample", slice(0, 2))


def test_guided_ddpm_loop(official):
    """The seed is the official one. The official batch is doubled, and its second half is discarded."""
    x, y = official.input("x").repeat(2, 1, 1, 1, 1), official.input("y").repeat(2)
    generator = torch.Generator().manual_seed(321)
    model = Guidance(official.net, y, 7.0)
    sample = GaussianDiffusion().sample(model, x, sampler="ddpm", steps=10, generator=generator)
    official.assert_close(sample[:2], "p_sample_loop_10_cfg7", slice(0, 2))


def test_guided_ddim_loop(official):
    """The official loop runs DDIM on evenly spaced timesteps here."""
    model = Guidance(official.net, official.input("y"), 7.0)
    plain: Progress = lambda steps: steps  # noqa: E731

    def predict(x, t):
        output = model(x, t)
        return output[:, :, :4], None

    with torch.no_grad():
        sample = ddim(predict, official.input("x"), Schedule(evenly_spaced(10)), 0.0, lambda: torch.empty(0), plain)
    official.assert_close(sample, "ddim_sample_loop_10_cfg7", slice(0, 2))


def test_gradients_of_the_loss(official):
    x, noise, t, y = (official.input(name) for name in ("x_start", "noise", "t", "y"))
    official.net.zero_grad()
    losses = GaussianDiffusion().loss(lambda x, t: official.net(x, t, y), x, t, noise)
    losses["loss"].mean().backward()
    parameters = dict(official.net.named_parameters())
    prefix = f"{official.outputs}.grads_eval."
    names = [name.removeprefix(prefix) for name in official.tensors if name.startswith(prefix)]
    assert names
    for name in names:
        official.assert_close(parameters[name].grad, f"grads_eval.{name}")
