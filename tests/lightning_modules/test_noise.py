"""Noise from its definitions: distributions by tests of fixed seeds, and what it may depend on."""

import math
import warnings
from functools import partial

import pytest
import torch
from formulas import log_p
from hypothesis import given
from hypothesis import strategies as st
from noise_helpers import LIKELY, MANY, C, T, called, independent, labels, moment, outcome, swapped
from scipy import stats

from lightning_modules import (
    InputNoise,
    LabelCorruption,
    SignalDependentNoise,
    Swap,
)
from lightning_modules.noise import Moment

SOURCES = [
    LabelCorruption(0.5),
    LabelCorruption(0.5, fixed=True),
    InputNoise(0.1),
    SignalDependentNoise(0.2),
    Swap(0.5, threshold=0.5),
    Swap(0.5, which="all", threshold=0.5),
]


EVERY = pytest.mark.parametrize("source", SOURCES, ids=called)


# Label corruption


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("fixed", [False, True])
def test_so_many_labels_are_corrupted(p, fixed):
    y = labels()
    changed = int((LabelCorruption(p, fixed).on_labels(y, C, moment()) != y).sum())
    assert stats.binomtest(changed, MANY, p).pvalue > LIKELY


def test_a_corrupted_label_is_uniform_over_the_other_classes():
    y = labels()
    found = LabelCorruption(1.0).on_labels(y, C, moment())
    assert (found != y).all()
    assert found.dtype == y.dtype
    assert found.min() == 0
    assert found.max() == C - 1
    steps = torch.bincount((found - y) % C, minlength=C)
    assert steps[0] == 0
    assert stats.chisquare(steps[1:]).pvalue > LIKELY
    for label in range(C):  # from whichever class
        assert stats.chisquare(torch.bincount(found[y == label], minlength=C)[torch.arange(C) != label]).pvalue > LIKELY


@given(st.integers(2, 20), st.floats(0, 1), st.integers(0, 2**31), st.integers(0, 500))
def test_a_corrupted_label_is_another_class_or_the_label(classes, p, seed, epoch):
    y = torch.arange(200) % classes
    found = LabelCorruption(p).on_labels(y, classes, moment(200, (seed,), epoch))
    assert ((found >= 0) & (found < classes)).all()
    if p == 0:
        assert torch.equal(found, y)
    if p == 1:
        assert (found != y).all()


def test_two_classes_leave_one_other():
    y = torch.arange(100) % 2
    assert torch.equal(LabelCorruption(1.0).on_labels(y, 2, moment(100)), 1 - y)


def test_which_label_is_corrupted_does_not_tell_which_class_it_becomes():
    """One draw for both would: at p = 0.5 those that are corrupted would have small draws alone."""
    y = labels()
    for p in (0.1, 0.5):
        found = LabelCorruption(p).on_labels(y, C, moment())
        steps = torch.bincount((found - y)[found != y] % C, minlength=C)
        assert stats.chisquare(steps[1:]).pvalue > LIKELY


def test_labels_are_corrupted_anew_in_every_epoch_but_not_within_one():
    y = labels()
    source = LabelCorruption(0.5)
    first, second = (source.on_labels(y, C, moment(epoch=epoch)) for epoch in (0, 1))
    assert torch.equal(source.on_labels(y, C, moment(step=100)), first)
    assert not torch.equal(first, second)
    assert independent(first != y, second != y)
    both = (first != y) & (second != y)
    same = int((first == second)[both].sum())
    assert stats.binomtest(same, int(both.sum()), 1 / (C - 1)).pvalue > LIKELY


def test_fixed_keeps_the_first_draw():
    y = labels()
    source = LabelCorruption(0.5, fixed=True)
    first = source.on_labels(y, C, moment())
    for epoch, step in ((0, 7), (1, 100), (199, 10_000)):
        assert torch.equal(source.on_labels(y, C, moment(epoch=epoch, step=step)), first)
    assert not torch.equal(source.on_labels(y, C, moment(words=(1,))), first)


# Noise on images


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_input_noise_is_normal_and_independent(sigma):
    x = torch.full((2000, 1, 4, 4), 0.5)
    d = (InputNoise(sigma).on_images(x, moment(2000)) - x).double() / sigma
    assert stats.kstest(d.flatten().numpy(), "norm").pvalue > LIKELY
    flat = d.flatten(1).numpy()
    for i, j in ((0, 1), (0, 15), (7, 8)):  # from value to value, and from image to image
        assert stats.pearsonr(flat[:, i], flat[:, j]).pvalue > LIKELY
    assert stats.pearsonr(flat[:-1].ravel(), flat[1:].ravel()).pvalue > LIKELY


def test_input_noise_is_not_clamped():
    x = torch.cat([torch.zeros(500, 1, 4, 4), torch.ones(500, 1, 4, 4)])
    found = InputNoise(0.5).on_images(x, moment(1000))
    assert (found < 0).any()
    assert (found > 1).any()
    assert stats.kstest(((found - x) / 0.5).flatten().double().numpy(), "norm").pvalue > LIKELY


# Noise on the teacher's answer


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_signal_dependent_noise_is_relative_to_every_logit(sigma):
    z = torch.empty(4000, C).uniform_(0.1, 30) * torch.where(torch.rand(4000, C) < 0.5, -1, 1)
    found = SignalDependentNoise(sigma).on_answer(z, T, moment(4000))
    d = ((found / z - 1) / sigma).double()
    assert stats.kstest(d.flatten().numpy(), "norm").pvalue > 1e-3
    for i, j in ((0, 1), (0, 9)):
        assert stats.pearsonr(d[:, i].numpy(), d[:, j].numpy()).pvalue > LIKELY
    # as strong for small logits as for large ones
    small = z.abs() < 15
    assert stats.ks_2samp(d[small].numpy(), d[~small].numpy()).pvalue > LIKELY


def test_a_logit_of_zero_has_no_noise_and_the_temperature_does_not_matter():
    z = torch.randn(50, C)
    z[:, 3] = 0
    source = SignalDependentNoise(0.5)
    found = source.on_answer(z, T, moment(50))
    assert (found[:, 3] == 0).all()
    assert torch.equal(source.on_answer(z, 20.0, moment(50)), found)


@st.composite
def answers(draw):
    """Logits without ties; a threshold; a temperature."""
    classes, seed = draw(st.integers(2, 12)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    z = torch.randn(8, classes, generator=torch.Generator().manual_seed(seed)) * scale
    return z, draw(st.sampled_from([1.0, 4.0, 20.0])), draw(st.sampled_from([0.01, 0.1, 0.5, 1.0]))


@given(answers(), st.sampled_from(["top2", "all"]))
def test_swap(problem, which):
    z, t, threshold = problem
    expected, near = swapped(z, t, which, threshold)
    found = Swap(1.0, which, threshold).on_answer(z, t, moment(len(z)))
    assert torch.equal(found.sort(1).values, z.sort(1).values)  # a permutation
    if near > 1e-6:
        assert torch.equal(found, expected)


def test_swap_by_hand():
    z = torch.tensor([[0.50, 0.30, 0.15, 0.05]]).log()
    one = moment(1)
    assert torch.equal(Swap(1.0, threshold=0.1).on_answer(z, 1.0, one), z)
    assert torch.equal(Swap(1.0, threshold=0.25).on_answer(z, 1.0, one), z[:, [1, 0, 2, 3]])
    # 0.15 and 0.05 alone
    assert torch.equal(Swap(1.0, "all", 0.12).on_answer(z, 1.0, one), z[:, [0, 1, 3, 2]])
    # 0.5 is carried as far as the difference allows: over 0.30, not over 0.15 from 0.5; 0.15 and 0.05 change places
    assert torch.equal(Swap(1.0, "all", 0.21).on_answer(z, 1.0, one), z[:, [1, 0, 3, 2]])
    # over all of them
    assert torch.equal(Swap(1.0, "all", 0.46).on_answer(z, 1.0, one), z[:, [1, 2, 3, 0]])


def test_the_softened_probabilities_are_compared():
    """At t = 1 they differ by 0.96, at t = 20 by 0.1."""
    z = torch.tensor([[4.0, 0.0]])
    for t, swaps in ((1.0, False), (20.0, True)):
        found = Swap(1.0, threshold=0.11).on_answer(z, t, moment(1))
        assert torch.equal(found, z[:, [1, 0]] if swaps else z)


def test_differences_as_large_as_the_threshold_stay():
    z = torch.tensor([[0.75, 0.25]]).log2()  # exactly 0.5 at this temperature
    found = Swap(1.0, threshold=0.5).on_answer(z, 1 / math.log(2), moment(1))
    assert log_p(z.double(), 1 / math.log(2)).exp().diff().abs() == pytest.approx(0.5)
    assert torch.equal(found, z) or torch.equal(found, z[:, [1, 0]])  # one rounding decides
    assert torch.equal(Swap(1.0, threshold=0.499).on_answer(z, 1 / math.log(2), moment(1)), z)


@pytest.mark.parametrize("which", ["top2", "all"])
@pytest.mark.parametrize("p", [0.25, 0.5])
def test_so_many_images_are_swapped(which, p):
    """Each wholly or not at all."""
    z = torch.randn(4000, C) * 0.1
    whole, _ = swapped(z, T, which, 0.1)
    found = Swap(p, which, 0.1).on_answer(z, T, moment(4000))
    moved = (found != z).any(1)
    assert torch.equal(found, torch.where(moved[:, None], whole, z))
    assert stats.binomtest(int(moved.sum()), 4000, p).pvalue > LIKELY


def test_swap_takes_the_threshold_of_the_readme_unless_given():
    assert vars(Swap(0.5))["threshold"] == 0.1
    assert vars(Swap(0.5))["which"] == "top2"


# What all draws have in common


@EVERY
def test_the_same_moment_gives_the_same_noise_whatever_was_drawn_elsewhere(source):
    first = outcome(source, moment(500))
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(outcome(source, moment(500)), first)


@EVERY
def test_an_images_noise_does_not_depend_on_its_batch(source):
    """Neither on its order, nor on its size, nor on who else is in it."""
    index = torch.randperm(4096)[:300]
    whole = outcome(source, Moment(index, (0,), 3, 17))
    for part in (torch.randperm(300), torch.tensor([5]), torch.arange(100, 133)):
        torch.testing.assert_close(outcome(source, Moment(index[part], (0,), 3, 17)), whole[part], rtol=0, atol=1e-6)


@EVERY
def test_images_differ_from_each_other(source):
    """Images that are alike in all but their index."""
    index = torch.arange(512) * 4096 * C
    found = outcome(source, Moment(index, (0,), 0, 0))
    assert len({tuple(row.flatten().tolist()) for row in found}) > 1


@EVERY
def test_runs_sources_and_steps_differ(source):
    first = outcome(source, moment(500))
    assert not torch.equal(outcome(source, moment(500, (1,))), first)
    assert not torch.equal(outcome(source, moment(500, (0, 1))), first)
    later = outcome(source, moment(500, epoch=1, step=40))
    assert torch.equal(later, first) == (isinstance(source, LabelCorruption) and source.fixed)
    next_step = outcome(source, moment(500, step=1))
    assert torch.equal(next_step, first) == isinstance(source, LabelCorruption)


@pytest.mark.parametrize(
    "source", [LabelCorruption(0.0), LabelCorruption(0.0, True), InputNoise(0.0), SignalDependentNoise(0.0), Swap(0.0)]
)
def test_no_noise_is_none(source):
    index = torch.arange(500)
    changed = outcome(source, moment(500))
    plain = outcome(type(source)(0.0), Moment(index, (9,), 5, 5))
    assert torch.equal(changed, plain)
    if isinstance(source, LabelCorruption):
        assert torch.equal(changed, index % C)
    z, x = torch.randn(500, C), torch.rand(500, 1, 4, 4)
    assert torch.equal(source.on_answer(z, T, moment(500)), z)
    assert torch.equal(source.on_images(x, moment(500)), x)
    assert torch.equal(source.on_labels(index % C, C, moment(500)), index % C)


@EVERY
def test_a_source_leaves_alone_what_is_not_its_own(source):
    x, y, z = torch.rand(50, 1, 4, 4), labels(50), torch.randn(50, C)
    kept = (x.clone(), y.clone(), z.clone())
    touched = [
        not torch.equal(source.on_images(x, moment(50)), x),
        not torch.equal(source.on_labels(y, C, moment(50)), y),
        not torch.equal(source.on_answer(z, T, moment(50)), z),
    ]
    assert sum(touched) == 1
    assert all(torch.equal(one, other) for one, other in zip((x, y, z), kept, strict=True))  # not in place


# Arguments


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((partial(LabelCorruption, p), f"{p}") for p in (-0.1, 1.1, math.nan)),
        *((partial(Swap, p), f"{p}") for p in (-0.1, 1.1, math.nan)),
        *((partial(InputNoise, s), f"{s}") for s in (-0.1, math.nan)),
        *((partial(SignalDependentNoise, s), f"{s}") for s in (-0.1, math.nan)),
        (partial(Swap, 0.5, which="top3"), "top3"),
        (partial(Swap, 0.5, threshold=-0.1), "-0.1"),
    ],
    ids=lambda value: f"{value.func.__name__}-{value.args}" if isinstance(value, partial) else str(value),
)
def test_refused_arguments(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        source()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [LabelCorruption(1.0), InputNoise(0.0), SignalDependentNoise(3.0), Swap(1.0, "all")])
def test_the_ends_of_the_ranges_are_allowed(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome(source, moment(100))
