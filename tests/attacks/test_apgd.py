"""Auto-PGD: worst cases in closed form, what it returns, and where it looks."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, Linear, broken, classifier, draws, two_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from attacks import APGD, Threat
from attacks.objectives import OBJECTIVES, margin

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
LOSSES = pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])


class Recording(nn.Module):
    """Keeps every batch that it is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


def problem(seed=0, size=40):
    model = classifier((3, 4, 4), torch.float64, seed)
    x = torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    return model, x, model(x).argmax(1)


def radius(norm):
    return Threat(norm, 0.08 if norm == "linf" else 0.3)


# --- closed forms ---


@NORM
@pytest.mark.parametrize("loss", ["ce", "margin", "kl"])
def test_on_a_linear_model_it_reaches_the_worst_case(norm, loss):
    """The margin falls by eps times the dual norm of the weights: l1 for linf, l2 for l2."""
    model, x, y = two_classes()
    w = model.weight.detach()
    drop = 0.1 * (w.abs().sum() if norm == "linf" else w.norm())
    given = F.one_hot(y, 2).double() if loss == "kl" else y
    found = APGD(Threat(norm, 0.1), loss=loss)(model, x, given, draws(len(x)))
    torch.testing.assert_close(margin(model(found), y), margin(model(x), y) + drop, rtol=1e-5, atol=1e-5)


def test_in_linf_the_worst_case_at_the_boxs_edges_is_clipped():
    model, x, y = two_classes()
    x[0], x[1] = x[0].round(), 0.99
    away = torch.where(y == 1, -1.0, 1.0).reshape(-1, 1, 1, 1)
    expected = (x + 0.1 * away * model.weight.detach().sign().reshape(1, 3, 4, 4)).clamp(0, 1)
    found = APGD(Threat("linf", 0.1), loss="margin")(model, x, y, draws(len(x)))
    torch.testing.assert_close(margin(model(found), y), margin(model(expected), y))


@NORM
def test_it_finds_a_peak_inside_the_ball_more_closely_than_steps_of_one_size(norm):
    """On a concave objective, steps that halve come nearer to its peak than the first step's length."""
    generator = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(10, 1, 3, 3, generator=generator).double()
    peak = x + 0.02 * torch.randn(x.shape, generator=generator).double()

    class Bowl(nn.Module):
        def forward(self, given):
            z = -1 - (given - peak).flatten(1).square().sum(1)
            return torch.stack([torch.zeros_like(z), z], 1)

    eps = 0.1 if norm == "linf" else 0.3
    found = APGD(Threat(norm, eps), loss="margin")(Bowl(), x, torch.zeros(10).long(), draws(10))
    assert (found - peak).flatten(1).norm(dim=1).max() < eps / 25


@NORM
@pytest.mark.parametrize("targets", [1, 2])
def test_targets_on_a_linear_model(norm, targets):
    """Of three classes, the most likely other one can hardly be moved and the third easily: two targets are needed."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 12, generator=generator).double() * torch.tensor([1.0, 0.3, 3.0])[:, None]
    model = Linear(weight, torch.tensor([2.0, 0.5, 0.0]).double() - 0.5 * weight.sum(1))
    x = 0.5 + 0.02 * (torch.rand(20, 3, 2, 2, generator=generator).double() - 0.5)
    z, eps = model(x).detach(), 0.03 if norm == "linf" else 0.1
    assert (z.argsort(1, descending=True) == torch.arange(3)).all()
    differences = weight[1:] - weight[0]
    rise = eps * (differences.abs().sum(1) if norm == "linf" else differences.norm(dim=1))
    reached = z[:, 1:] - z[:, :1] + rise
    found = APGD(Threat(norm, eps), loss="margin", targets=targets)(model, x, torch.zeros(20).long(), draws(20))
    lead = (model(found)[:, 1:] - model(found)[:, :1]).detach()
    assert (reached[:, 1] > reached[:, 0]).all()
    assert (reached < 0).all(), "where an image is broken no further climbing is asked for"
    torch.testing.assert_close(lead[:, targets - 1], reached[:, targets - 1], rtol=1e-4, atol=1e-4)


# --- what it returns ---


@NORM
@LOSSES
@pytest.mark.parametrize("seed", range(3))
def test_the_result_is_a_point_that_broke_the_image_or_else_the_one_of_highest_loss(norm, loss, seed):
    model, x, y = problem(seed)
    recording = Recording(model)
    found = APGD(radius(norm), steps=30, loss=loss)(recording, x, y, draws(40))
    assert len(recording.seen) == 31
    path = torch.stack(recording.seen)
    ever = torch.stack([broken(model, point, y) for point in path]).any(0)
    losses = torch.stack([OBJECTIVES[loss](model(point), y) for point in path]).detach()
    assert 0 < ever.sum() < 40
    assert broken(model, found, y).equal(ever)
    reached = OBJECTIVES[loss](model(found), y).detach()
    torch.testing.assert_close(reached[~ever], losses.amax(0)[~ever], rtol=0, atol=0)
    assert (reached >= losses[0])[~ever].all()
    assert (path == found).flatten(2).all(2).any(0).all(), "a point that was never visited"
    assert (found != path[0]).flatten(1).any(1)[~ever].all()


@NORM
@LOSSES
def test_in_evaluation_it_breaks_the_same_images_with_fewer_passes(norm, loss):
    model, x, y = problem()
    whole, leaving = Counting(model), Counting(model)
    attack = APGD(radius(norm), steps=30, loss=loss)
    plain = broken(model, attack(whole, x, y, draws(40)), y)
    assert broken(model, attack.evaluating()(leaving, x, y, draws(40)), y).equal(plain)
    assert whole.sizes == [40] * 31
    assert leaving.sizes == sorted(leaving.sizes, reverse=True)
    assert leaving.sizes[-1] == 40 - plain.sum() or plain.all()


def test_where_everything_is_broken_it_ends():
    model, x, y = problem()
    counting = Counting(model)
    APGD(radius("linf")).evaluating()(counting, x, (y + 1) % 4, draws(40))
    assert counting.sizes[0] == 40
    assert len(counting.sizes) < 10


# --- where it looks ---


@NORM
def test_it_starts_at_a_random_point_of_the_balls_surface_clamped_to_the_box(norm):
    model, x, y = problem(size=200)
    x = 0.3 + 0.4 * x  # inside by more than the radius
    x[:50, 0] = 1.0
    recording = Recording(model)
    APGD(Threat(norm, 0.2), steps=1)(recording, x, y, draws(200))
    delta = (recording.seen[0] - x).flatten(1).numpy()
    lengths = np.linalg.norm(delta, ord=np.inf if norm == "linf" else 2, axis=1)
    np.testing.assert_allclose(lengths[50:], 0.2, rtol=1e-6)
    assert (delta[:50, :16] <= 0).all()
    assert np.abs(delta[50:].mean(0)).max() < 0.2 * 5 / 150**0.5
    assert np.unique(delta.round(9), axis=0).shape == delta.shape


@NORM
def test_its_first_step_is_twice_the_radius_without_momentum(norm):
    """On a linear model: from the start along the steepest direction, back to the ball."""
    model, x, y = two_classes(size=4)
    eps, w = 0.1, model.weight.detach().reshape(1, 3, 4, 4)
    recording = Recording(model)
    APGD(Threat(norm, eps), steps=2, loss="margin")(recording, x, y, draws(4))
    start, first, _ = (point - x for point in recording.seen)
    away = torch.where(y == 1, -1.0, 1.0).reshape(-1, 1, 1, 1)
    if norm == "linf":
        expected = (start + 2 * eps * away * w.sign()).clamp(-eps, eps)
    else:
        moved = start + 2 * eps * away * w / w.norm()
        expected = moved * eps / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(first, expected)


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    loss=st.sampled_from(["ce", "margin", "dlr"]),
    restarts=st.integers(1, 3),
    seed=st.integers(0, 50),
)
def test_more_restarts_never_raise_robust_accuracy(norm, loss, restarts, seed):
    model, x, y = problem(seed, 20)
    few, many = (
        broken(model, APGD(radius(norm), 3, count, loss).evaluating()(model, x, y, draws(20, seed)), y)
        for count in (restarts, restarts + 1)
    )
    assert not (few & ~many).any()


def test_restarts_and_targets_try_only_what_still_stands():
    model, x, y = two_classes()
    y[:2] = 1 - y[:2]  # wrong from the start
    counting = Counting(model)
    APGD(Threat("linf", 1e-9), steps=2, restarts=3)(counting, x, y, draws(6))
    assert counting.sizes == [6] * 4 + [4] * 8  # start, two steps and a judgement each
    counting = Counting(Linear(torch.randn(4, 48).double(), torch.tensor([50.0, 0, 0, 0]).double()))
    APGD(Threat("linf", 0.01), steps=2, restarts=2, loss="dlr", targets=3)(counting, x, torch.zeros(6).long(), draws(6))
    assert counting.sizes == [6] * (1 + 3 * 2 * 4)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_the_logits_scale_does_not_matter(scale, loss):
    plain, x, y = problem()

    class Scaled(nn.Module):
        def forward(self, x):
            return scale * plain(x)

    attack = APGD(radius("linf"), steps=20, loss=loss)
    ours, theirs = attack(plain, x, y, draws(40)), attack(Scaled(), x, y, draws(40))
    stands = ~broken(plain, ours, y)
    assert stands.equal(~broken(plain, theirs, y))
    # Where the label has fallen to third place DLR is flat, and rounding decides where it goes.
    torch.testing.assert_close(margin(plain(ours), y)[stands], margin(plain(theirs), y)[stands], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"restarts": 0}, {"targets": -1}, {"loss": "hinge"}, {"loss": "kl", "targets": 1}], ids=str
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|loss"):
        APGD(**wrong)
