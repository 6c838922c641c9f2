import torch

from latte_pl.rng import key, normal, numpy_generator, torch_generator, uniform


def test_a_key_is_the_same_in_every_process():
    assert key(0, "noise", 7) == 3385814862564723550


def test_rows_belong_to_clips_and_not_to_batches():
    whole = normal(3, "noise", torch.arange(6), (2, 4))
    parts = torch.cat([normal(3, "noise", torch.tensor(clips), (2, 4)) for clips in ([0, 1], [2], [3, 4, 5])])
    assert torch.equal(whole, parts)
    assert torch.equal(uniform(3, "t", torch.tensor([5, 2])), uniform(3, "t", torch.tensor([2, 5])).flip(0))


def test_names_give_different_draws():
    draws = {
        float(torch.randn((), generator=torch_generator(*names)))
        for names in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0), (0, "a"), ("0", "a", 0)]
    }
    assert len(draws) == 6
    assert numpy_generator(0, "a").random() != numpy_generator(0, "b").random()


def test_draws_over_clips_have_the_right_distribution():
    clips = torch.arange(4000)
    noise = normal(0, "noise", clips, (5,))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.02
    assert abs(torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1]) < 0.05
    u = uniform(0, "timestep", clips)[:, 0].sort().values
    assert (u - (clips + 0.5) / 4000).abs().max() < 0.03
