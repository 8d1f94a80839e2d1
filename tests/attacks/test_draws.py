"""Draws that belong to images: right in distribution, and the same however the batch is composed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attacks.draws import GOLDEN, Draws, OfficialDraws, _mix, _mix_word, _signed


def test_finaliser_gives_the_published_first_output_of_splitmix64() -> None:
    mixed = int(_mix(torch.tensor(GOLDEN)))
    assert mixed % 2**64 == 0xE220A8397B1DCDAF


integers = st.integers(-(2**70), 2**70)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9), st.one_of(integers, st.lists(integers, max_size=4)))
def test_draws_are_those_of_the_formula_in_tensors_alone(indices, seed) -> None:
    """What was published was drawn so; a word that is mixed as a Python integer must not change a bit of it."""
    index = torch.tensor(indices)
    word = torch.zeros((), dtype=torch.int64)
    for part in [seed] if isinstance(seed, int) else seed:
        word = _mix(word + _signed(part) + GOLDEN)
    words = _mix(_mix(_mix(index * GOLDEN + GOLDEN) + int(word))[:, None] + torch.arange(3) * GOLDEN)
    expected = ((words >> 40) & ((1 << 24) - 1)).float() / (1 << 24)
    assert Draws(index, seed).uniform((3,)).equal(expected)


def test_draws_are_those_of_the_first_release() -> None:
    found = Draws(torch.tensor([0, 1, 49_999]), (3, -5, 2**64 + 7)).uniform((2,)) * 2**24
    assert found.tolist() == [[6382449, 8865891], [9161714, 15565880], [10038394, 1544850]]


@given(st.integers(0, 2**64 - 1))
def test_a_word_is_mixed_as_a_tensor_is(word) -> None:
    assert _signed(_mix_word(word)) == int(_mix(torch.tensor(_signed(word))))


@pytest.mark.parametrize("seed", [0, 7, (3, 5)])
def test_uniform_within_an_image_and_across_images(seed) -> None:
    draws = Draws(torch.arange(500), seed).uniform((400,))
    assert draws.min() >= 0
    assert draws.max() < 1
    for sample in (draws.flatten(), draws[0], draws[:, 0]):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3


def test_bounds_scale_the_draws() -> None:
    unit = Draws(torch.arange(20), 1).uniform((50,))
    scaled = Draws(torch.arange(20), 1).uniform((50,), -2.0, 3.0)
    torch.testing.assert_close(scaled, 5 * unit - 2)


def test_streams_of_images_and_seeds_are_uncorrelated() -> None:
    count = 20_000
    streams = [
        Draws(torch.tensor([index]), seed).uniform((count,))[0] for index in (0, 1, 2) for seed in (0, 1, (0, 1))
    ]
    table = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert table.abs().max() < 5 / math.sqrt(count)


def test_seeds_are_ordered_and_nested_ones_differ() -> None:
    seeds = [0, 1, (0, 1), (1, 0), (0, 0), (0, 1, 0)]
    first = torch.stack([Draws(torch.arange(8), seed).uniform((4,)) for seed in seeds])
    assert len(first.flatten(1).unique(dim=0)) == len(seeds)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(-(2**63), 2**63 - 1), st.randoms())
def test_an_image_draws_the_same_in_any_batch(indices, seed, random) -> None:
    whole = Draws(torch.tensor(indices), seed).uniform((2, 3))
    order = random.sample(range(len(indices)), random.randint(1, len(indices)))
    part = Draws(torch.tensor(indices)[order], seed).uniform((2, 3))
    assert part.equal(whole[order])


def test_two_calls_continue_where_one_would() -> None:
    two = Draws(torch.arange(5), 2)
    together = torch.cat([two.uniform((3,)), two.uniform((4,))], 1)
    assert together.equal(Draws(torch.arange(5), 2).uniform((7,)))


def test_a_part_of_the_batch_continues_the_stream() -> None:
    draws = Draws(torch.arange(10), (1, 2))
    draws.uniform((3,))
    kept = torch.arange(10) % 3 == 0
    by_mask, by_position = draws[kept].uniform((4,)), draws[kept.nonzero().flatten()].uniform((4,))
    rest = draws.uniform((4,))
    assert by_mask.equal(rest[kept])
    assert by_position.equal(rest[kept])


def test_normal_draws_have_the_moments_and_the_distribution() -> None:
    sample = Draws(torch.arange(1000), 4).normal((100,)).flatten().double().numpy()
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02
    assert abs(stats.skew(sample)) < 0.05
    assert abs(stats.kurtosis(sample)) < 0.1
    assert stats.kstest(sample, "norm").pvalue > 1e-3


def test_integers_are_uniform_and_below_the_bound() -> None:
    sample = Draws(torch.arange(9000), 5).integers(9)
    assert sample.shape == (9000,)
    assert stats.chisquare(torch.bincount(sample, minlength=9).numpy()).pvalue > 1e-3


def test_fresh_draws_follow_the_global_generator() -> None:
    def draw() -> torch.Tensor:
        return Draws.fresh(4, torch.device("cpu")).uniform((3,))

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert draw().equal(first)
    assert not first.equal(second)


def test_a_numbered_stream_does_not_depend_on_what_was_drawn_before() -> None:
    fresh, spent = Draws(torch.arange(5), (1, 2)), Draws(torch.arange(5), (1, 2))
    spent.uniform((9,))
    first = fresh.stream(3).uniform((4,))
    assert spent.stream(3).uniform((4,)).equal(first)
    assert Draws(torch.arange(5), (1, 2, 3)).uniform((4,)).equal(first)
    assert not fresh.stream(4).uniform((4,)).equal(first)
    assert not fresh.uniform((4,)).equal(first)


# --- the draws of the authors' AutoAttack ---


@pytest.mark.parametrize("seed", [0, 7])
def test_official_draws_are_torchs_after_its_seed(seed) -> None:
    draws = OfficialDraws(torch.arange(6), seed)
    found = [draws.uniform((1, 2, 3)), draws.normal((4,)), draws.uniform((5,), -1.0, 1.0), draws.integers(3)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        assert found[0].equal(torch.rand(6, 1, 2, 3))
        assert found[1].equal(torch.randn(6, 4))
        assert found[2].equal(2 * torch.rand(6, 5) - 1)
        assert found[3].equal((torch.rand(6).double() * 3).long())


def test_official_draws_of_a_part_go_on_with_the_same_generator() -> None:
    draws = OfficialDraws(torch.arange(6), 0)
    found = [draws.uniform((2,)), draws[torch.tensor([4, 1])].uniform((2,)), draws.stream(5)[:3].normal((2,))]
    found.append(draws.uniform((2,)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = [torch.rand(6, 2), torch.rand(2, 2), torch.randn(3, 2), torch.rand(6, 2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.equal(theirs)
    assert draws[torch.tensor([4, 1])].index.tolist() == [4, 1]


def test_official_draws_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    OfficialDraws(torch.arange(6), 0).uniform((3,))
    assert torch.get_rng_state().equal(before)
