"""What torch.compile compiles: each use of the blocks once, without graph breaks."""

import pytest
import torch
from lightning import Trainer
from torch._dynamo.utils import counters

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.data.requests import RequestBatches, sample_requests
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling

CUDA = torch.cuda.is_available()
KINDS = 2  # spatial and temporal blocks; those of a kind share their code


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def module(request, monkeypatch):
    """A module whose blocks are traced by the compiler, or traced and compiled."""
    compile_blocks = Latte.compile_blocks
    monkeypatch.setattr(Latte, "compile_blocks", lambda net: compile_blocks(net, request.param))
    torch._dynamo.reset()
    counters.clear()
    net = Latte(
        hidden_size=32, depth=4, num_heads=2, patch_size=8, input_size=(16, 24), in_channels=3, num_frames=4,
        conditioning="class", num_classes=8,
    )  # fmt: skip
    yield LatteModule(
        net, GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 3, guidance=2.0), compile=True, lr=1e-3
    )
    torch._dynamo.reset()


def trainer(**options):
    return Trainer(
        accelerator="gpu" if CUDA else "cpu",
        devices=1,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def compiled():
    """Return the number of graphs since the last call, after checking that none was broken."""
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    counters.clear()
    return graphs


def test_training_validation_and_guided_sampling_compile_once_each(module):
    data = Shapes(size=(16, 24), num_frames=4, interval=3, global_batch_size=4, val_clips=8, num_workers=0)
    trainer(max_steps=4, val_check_interval=2).fit(module, data)  # with two validations
    assert compiled() == 2 * KINDS  # training and validation
    labels = [0, 1, 2, 3]
    first = module.sample([0, 1, 2, 3], labels)
    assert compiled() == KINDS  # guidance doubles the batch
    assert torch.equal(module.sample([0, 1, 2, 3], labels), first)
    module.sample([5], [1])
    assert compiled() == 0  # neither the same nor another size of the batch is compiled again


def test_prediction_uses_compiled_blocks(module):
    requests = torch.utils.data.DataLoader(RequestBatches(sample_requests(4, range(8)), 4), batch_size=None)
    trainer().predict(module, requests)
    assert compiled() == KINDS
    trainer().predict(module, requests)
    assert compiled() == 0
