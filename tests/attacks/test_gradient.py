"""FGSM, PGD, MI-FGSM and noise on models whose worst case is known; restarts, targets, and leaving once broken."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, Linear, broken, classifier, draws, two_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special, stats
from torch import nn
from torch.nn import functional as F

from attacks import FGSM, MIFGSM, PGD, Draws, Noise, Threat
from attacks.objectives import cross_entropy

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
LOSSES = pytest.mark.parametrize("loss", ["ce", "margin", "kl"])


def distribution(y, loss, classes=4):
    """What the loss asks for: labels, or a distribution."""
    return F.softmax(3.0 * F.one_hot(y, classes).double(), 1) if loss == "kl" else y


def margins(model, x, y):
    z = model(x).detach()
    return z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]


def dual(weight, norm):
    """How much a linear function rises within a ball of radius 1."""
    return weight.abs().sum(-1) if norm == "linf" else weight.norm(dim=-1)


# --- closed forms ---


@LOSSES
def test_fgsm_on_a_linear_model_is_a_signed_step(loss):
    model, x, y = two_classes()
    x[0], x[1] = x[0].round(), 0.99  # at the box's edges
    away = torch.where(y == 1, -1.0, 1.0).reshape(-1, 1, 1, 1)  # the label's logit falls
    expected = (x + 0.1 * away * model.weight.detach().sign().reshape(1, 3, 4, 4)).clamp(0, 1)
    target = F.one_hot(y, 2).double() if loss == "kl" else y
    torch.testing.assert_close(FGSM(Threat("linf", 0.1), loss=loss)(model, x, target), expected)


def test_fgsm_in_l2_goes_along_the_gradient():
    model, x, y = two_classes()
    away = torch.where(y == 1, -1.0, 1.0).reshape(-1, 1, 1, 1)
    w = model.weight.detach()
    expected = (x + 0.1 * away * (w / w.norm()).reshape(1, 3, 4, 4)).clamp(0, 1)
    torch.testing.assert_close(FGSM(Threat("l2", 0.1))(model, x, y), expected)


@NORM
@LOSSES
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_on_a_linear_model_reaches_the_worst_case(norm, loss, random_start):
    """The margin falls by eps times the dual norm of the weights: l1 for linf, l2 for l2."""
    model, x, y = two_classes()
    eps = 0.1
    # in l2 the part of the start across the gradient shrinks by half in every step of this length
    attack = PGD(Threat(norm, eps), steps=40, step_size=eps, random_start=random_start, loss=loss)
    target = F.one_hot(y, 2).double() if loss == "kl" else y
    found = attack(model, x, target, draws(len(x)))
    drop = eps * dual(model.weight.detach(), norm)
    torch.testing.assert_close(margins(model, found, y), margins(model, x, y) - drop, rtol=1e-6, atol=1e-6)


@NORM
def test_pgds_default_steps_reach_the_edge_of_the_ball(norm):
    """2.5 eps / K times K is 2.5 eps: enough to cross the ball from anywhere (Madry et al. 2018)."""
    model, x, y = two_classes()
    for steps in (1, 3, 10):
        straight = PGD(Threat(norm, 0.1), steps=steps, random_start=False)(model, x, y)
        drop = 0.1 * dual(model.weight.detach(), norm)
        torch.testing.assert_close(margins(model, straight, y), margins(model, x, y) - drop)


@NORM
def test_pgds_default_step_is_madrys(norm, network, batch):
    threat = Threat(norm, 0.1)
    stated = PGD(threat, steps=4, step_size=2.5 * 0.1 / 4)(network, *batch, draws(6))
    torch.testing.assert_close(PGD(threat, steps=4)(network, *batch, draws(6)), stated)


def test_pgd_counts_its_steps():
    """From the image, without reaching the edge: K steps of the given size, each along the sign."""
    model, x, y = two_classes()
    found = PGD(Threat("linf", 0.2), steps=4, step_size=0.01, random_start=False)(model, x, y)
    torch.testing.assert_close((found - x).abs(), torch.full_like(x, 0.04))


def test_pgds_random_start_is_uniform_in_the_ball_and_clamped():
    """With a step of length 0 the start is all that is left."""
    x = torch.full((2000, 1, 1, 2), 0.5)
    x[:, ..., 1] = 1.0
    attack = PGD(Threat("linf", 0.2), steps=1, step_size=0.0)
    model = Linear(torch.ones(2, 2), torch.zeros(2))
    delta = (attack(model, x, torch.zeros(2000).long(), draws(2000)) - x).flatten(1)
    assert stats.kstest(delta[:, 0] / 0.2, "uniform", (-1, 2)).pvalue > 1e-3
    assert delta[:, 1].max() == 0
    assert 0.45 < (delta[:, 1] == 0).float().mean() < 0.55


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
@NORM
def test_pgd_on_margins_does_not_depend_on_the_logits_scale(scale, loss, norm):
    plain = classifier((3, 4, 4), torch.float64)
    x = torch.rand(40, 3, 4, 4).double()
    y = plain(x).argmax(1)

    class Scaled(nn.Module):
        def forward(self, x):
            return scale * plain(x)

    attack = PGD(Threat(norm, 0.1 if norm == "linf" else 0.4), loss=loss, restarts=2)
    torch.testing.assert_close(attack(Scaled(), x, y, draws(40)), attack(plain, x, y, draws(40)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"steps": -1}, "at least 1"),
        ({"restarts": 2, "random_start": False}, "repeat"),
        ({"targets": -1}, "targets"),
        ({"loss": "hinge"}, "loss"),
        ({"loss": "kl", "targets": 2}, "loss"),
        ({"step_size": -0.1}, "length"),
    ],
    ids=str,
)
def test_pgd_refuses_what_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        PGD(**wrong)


# --- MI-FGSM ---


@NORM
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_mi_fgsm_against_numpy_on_a_quadratic(norm, decay):
    """z = (0, x'Ax / 2 + b'x): dCE/dx = (softmax(z)_1 - y) (Ax + b), iterated by Dong et al.'s equations 6 and 7."""
    rng = np.random.default_rng(0)
    half, b, eps, steps = rng.normal(size=(6, 6)), rng.normal(size=6), 0.2, 7
    a = half + half.T
    x, y = rng.uniform(0.1, 0.9, (8, 6)), np.arange(8) % 2
    found, momentum = x.copy(), np.zeros_like(x)
    for _ in range(steps):
        z = 0.5 * ((found @ a) * found).sum(1) + found @ b
        gradient = (special.expit(z) - y)[:, None] * (found @ a + b)
        momentum = decay * momentum + gradient / np.abs(gradient).sum(1, keepdims=True)
        length = np.linalg.norm(momentum, axis=1, keepdims=True)
        delta = found + eps / steps * (np.sign(momentum) if norm == "linf" else momentum / length) - x
        if norm == "linf":
            delta = np.clip(delta, -eps, eps)
        else:
            delta *= np.minimum(1, eps / np.linalg.norm(delta, axis=1, keepdims=True))
        found = np.clip(x + delta, 0, 1)

    class Quadratic(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            z = 0.5 * ((x @ torch.tensor(a)) * x).sum(1) + x @ torch.tensor(b)
            return torch.stack([torch.zeros_like(z), z], 1)

    images = torch.tensor(x).reshape(8, 1, 2, 3)
    ours = MIFGSM(Threat(norm, eps), steps=steps, decay=decay)(Quadratic(), images, torch.tensor(y))
    assert_allclose(ours.flatten(1), found, rtol=0, atol=1e-9)


def test_the_decay_of_mi_fgsm_matters_and_its_defaults_are_the_papers(network, batch):
    threat = Threat("linf", 0.1)
    assert MIFGSM(threat)(network, *batch).equal(MIFGSM(threat, steps=20, decay=1.0)(network, *batch))
    assert not MIFGSM(threat)(network, *batch).equal(MIFGSM(threat, decay=0.0)(network, *batch))


def test_mi_fgsm_gives_steps_of_every_scale_the_same_weight():
    """Dividing by the l1 norm: a loss whose gradient is tiny moves the images as far as any."""
    _, x, y = two_classes()
    results = [MIFGSM(Threat("linf", 0.1), loss="margin")(two_classes(scale=s)[0], x, y) for s in (1e-12, 1.0, 1e12)]
    assert results[0].equal(results[1])
    assert results[2].equal(results[1])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"decay": -0.1}, {"loss": "hinge"}], ids=str)
def test_mi_fgsm_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"at least|loss"):
        MIFGSM(**wrong)


# --- noise ---


class Hit(nn.Module):
    """Says 1 where the first pixel is above 0.58, and has no gradient."""

    def forward(self, x):
        return torch.stack([0.58 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.58], 1)


def test_noise_is_uniform_in_the_ball():
    """One sample, and the worst of several on a model that no sample changes: any of them, by its margin."""
    x = torch.full((3000, 1, 1, 2), 0.5, dtype=torch.float64)
    delta = (Noise(Threat("linf", 0.1), samples=1)(Hit(), x, torch.zeros(3000).long(), draws(3000)) - x).flatten(1)
    for column in delta.T:
        assert stats.kstest(column / 0.1, "uniform", (-1, 2)).pvalue > 1e-3
    disc = Noise(Threat("l2", 0.1), samples=1)(Hit(), x, torch.zeros(3000).long(), draws(3000)) - x
    assert stats.kstest((disc.flatten(1).norm(dim=1) / 0.1) ** 2, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_noise_keeps_a_success_and_else_the_nearest_miss(samples):
    """Each sample hits with probability 1/10; of uniform draws the largest is kept, so it follows its power law."""
    x, y = torch.full((1500, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(1500).long()
    attack = Noise(Threat("linf", 0.1), samples=samples)
    counting = Counting(Hit())
    found = attack(counting, x, y, draws(1500))
    hit = broken(Hit(), found, y)
    assert stats.binomtest(int(hit.sum()), 1500, 1 - 0.9**samples).pvalue > 1e-3
    # the largest of n draws u below 0.9, given that all are: P(u <= t) = (t / 0.9)^n
    unit = (found[~hit].flatten() - 0.4) / 0.2 / 0.9
    assert stats.kstest(unit**samples, "uniform").pvalue > 1e-3
    assert sum(counting.sizes) < 1500 * samples + 1


def test_noise_needs_a_sample():
    with pytest.raises(ValueError, match="at least 1"):
        Noise(samples=0)


# --- restarts ---


@NORM
@LOSSES
@pytest.mark.parametrize("seed", range(3))
def test_restarts_never_leave_an_image_standing_that_one_start_broke(norm, loss, seed):
    """The first of four starts is the only one of one, and an image's worst is kept."""
    model = classifier((3, 4, 4), torch.float64, seed)
    x = torch.rand(60, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    right = []
    for restarts in (1, 4):
        attack = PGD(Threat(norm, 0.12 if norm == "linf" else 0.5), steps=2, restarts=restarts, loss=loss)
        right.append(~broken(model, attack(model, x, distribution(y, loss), draws(60)), y))
    assert 0 < right[0].sum() < 60, "an attack that breaks all or nothing tests nothing"
    assert not (right[1] & ~right[0]).any()
    assert right[1].sum() <= right[0].sum()


def test_only_images_that_still_stand_are_tried_again():
    model, x, y = two_classes()
    y[:2] = 1 - y[:2]  # wrong from the start
    counting = Counting(model)
    PGD(Threat("linf", 1e-9), steps=1, restarts=3)(counting, x, y, draws(6))
    assert counting.sizes == [6, 6, 4, 4, 4, 4]  # a gradient and a judgement of each start


def test_of_images_that_stand_the_worst_start_is_kept():
    model = classifier((3, 4, 4), torch.float64)
    x = torch.rand(40, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    objective, right = {}, {}
    for restarts in (1, 2, 5):
        adversarial = PGD(Threat("l2", 0.1), steps=1, restarts=restarts)(model, x, y, draws(40))
        logits = model(adversarial).detach()
        objective[restarts], right[restarts] = cross_entropy(logits, y), logits.argmax(1) == y
    standing = right[1] & right[2] & right[5]
    assert standing.sum() > 20
    one, two, five = (objective[restarts][standing] for restarts in (1, 2, 5))
    assert (two >= one).all()
    assert (five >= two).all()
    assert (five > one).double().mean() > 0.5  # 4 times in 5 the first start is not the worst


def test_restarts_find_what_one_start_does_not():
    """From the middle of a flat piece no gradient leads anywhere: only the draw of the start decides."""

    class Plateau(nn.Module):
        def forward(self, x):
            hit = x.flatten(1)[:, 0] > 0.58
            # The second is wrong, although its cross-entropy with class 0 is lower: being broken goes first.
            logits = torch.tensor([[0.34, 0.33, 0.33], [0.45, 0.55, 1e-9]]).double().log()[hit.long()]
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.full((300, 1, 1, 2), 0.5, dtype=torch.float64), torch.zeros(300).long()
    for restarts in (1, 10):
        found = PGD(Threat("linf", 0.1), steps=1, restarts=restarts)(Plateau(), x, y, draws(300))
        # each start lands there with probability 1/10
        assert stats.binomtest(int(broken(Plateau(), found, y).sum()), 300, 1 - 0.9**restarts).pvalue > 1e-3


def test_other_seeds_and_indices_start_elsewhere(network, batch):
    attack = PGD(Threat(), steps=1)
    first = attack(network, *batch, Draws(torch.arange(6), 0))
    assert not first.equal(attack(network, *batch, Draws(torch.arange(6), 1)))
    assert not first.equal(attack(network, *batch, Draws(torch.arange(1, 7), 0)))


def test_starts_are_judged_in_the_models_own_precision():
    """Broken by 1e-10, which float32 takes for a tie: the first start did it, so no other is made."""
    weight = torch.tensor([[0.0], [1e-9]]).double()
    model = Linear(weight, torch.tensor([1.0, 1.0 - 0.5e-9]).double())
    x, y = torch.full((4, 1, 1, 1), 0.5).double(), torch.zeros(4).long()
    counting = Counting(model)
    found = PGD(Threat("linf", 0.1), steps=3, restarts=3)(counting, x, y, draws(4))
    assert broken(model, found, y).all()
    assert counting.sizes == [4] * 4


# --- targets ---


@NORM
@pytest.mark.parametrize("targets", [1, 2, 3])
def test_pgd_leads_to_each_of_the_most_likely_other_classes(norm, targets):
    """On a linear model z_t - z_y rises by eps times the dual norm of w_t - w_y; the best of the targets is kept."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 12, generator=generator).double() * torch.tensor([1.0, 0.2, 1.0, 3.0])[:, None]
    # Class 1 comes next almost everywhere, and its logit can hardly be moved; that of class 3 can.
    model = Linear(weight, torch.tensor([1.0, 0.5, 0.0, 0.1]).double() - 0.5 * weight.sum(1))
    x = 0.5 + 0.1 * (torch.rand(40, 3, 2, 2, generator=generator).double() - 0.5)
    z = model(x).detach()
    y, eps = z.argmax(1), 0.03 if norm == "linf" else 0.1
    others = z.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :targets]
    rows = torch.arange(40)[:, None]
    reached = z[rows, others] - z[rows, y[:, None]] + eps * dual(weight[others] - weight[y][:, None], norm)
    attack = PGD(Threat(norm, eps), steps=40, step_size=eps, loss="margin", targets=targets)
    found = model(attack(model, x, y, draws(40))).detach()
    lead = found.scatter(1, y[:, None], -torch.inf).amax(1) - found.gather(1, y[:, None])[:, 0]
    # A class that none of the targets names may rise by the way: the lead is that of the best target at least.
    assert 0 < (reached.amax(1) > 0).sum() < 40
    assert (reached.argmax(1) > 0).any() or targets == 1, "the most likely class must not always be the best target"
    stands = reached.amax(1) < 0
    assert (lead[~stands] > 0).all()
    assert (lead[stands] > reached.amax(1)[stands] - 1e-6).all()
    if targets == 3:
        torch.testing.assert_close(lead[stands], reached.amax(1)[stands], rtol=1e-6, atol=1e-6)


def test_every_target_gets_its_restarts():
    model = Linear(torch.randn(4, 12).double(), torch.tensor([50.0, 0, 0, 0]).double())
    x, y = torch.rand(5, 3, 2, 2).double(), torch.zeros(5).long()
    counting = Counting(model)
    PGD(Threat("linf", 0.01), steps=3, restarts=2, loss="margin", targets=3)(counting, x, y, draws(5))
    assert counting.sizes == [5] * (1 + 3 * 2 * (3 + 1))  # the ranking; then steps and a judgement of each run


# --- in evaluation ---


def survivors(model, x, y, attack, seed=0):
    return ~broken(model, attack.evaluating()(model, x, y, draws(len(x), seed)), y)


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    loss=st.sampled_from(["ce", "margin", "dlr"]),
    step=st.floats(0.01, 0.3),
    pair=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    restarts=st.integers(1, 3),
    seed=st.integers(0, 50),
)
def test_more_steps_or_restarts_never_raise_robust_accuracy(norm, loss, step, pair, restarts, seed):
    """While a step's size and the draws stay: a longer path begins with the shorter one."""
    model = classifier((3, 4, 4), torch.float64, seed)
    x = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    y = model(x).argmax(1)
    given = {"threat": Threat(norm, 0.1 if norm == "linf" else 0.4), "step_size": step, "loss": loss}
    few, many = sorted(pair)
    shorter = survivors(model, x, y, PGD(steps=few, restarts=restarts, **given))
    assert not (survivors(model, x, y, PGD(steps=many, restarts=restarts, **given)) & ~shorter).any()
    assert not (survivors(model, x, y, PGD(steps=few, restarts=restarts + 1, **given)) & ~shorter).any()


@pytest.mark.parametrize(
    "attack", [PGD(random_start=False, steps=6, step_size=0.02), MIFGSM(steps=6)], ids=lambda attack: attack.name
)
def test_broken_images_leave_the_batch(attack):
    """Margins of 0.03, 0.05, ... against a slope of 1: each image is broken by a step that is known."""
    x = 0.5 - torch.tensor([-0.01, 0.01, 0.03, 0.05, 0.2]).double().reshape(5, 1, 1, 1)
    model = Linear(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.5, 0.0]).double())
    counting = Counting(model)
    y = torch.zeros(5).long()
    found = attack.under(Threat("linf", 0.12)).evaluating()(counting, x, y)
    assert counting.sizes == [5, 4, 3, 2, 1, 1]
    assert broken(model, found, y).tolist() == [True] * 4 + [False]
    torch.testing.assert_close(found.flatten(), x.flatten() + torch.tensor([0, 0.02, 0.04, 0.06, 0.12]).double())
    plain = Counting(model)
    attack.under(Threat("linf", 0.12))(plain, x, y)
    assert plain.sizes == [5] * 6  # in training every example has made all its steps


def wells(seed, size=60, dimensions=4):
    """z = (0, c - x'Ax / 2 + b'x), by whose peaks signed steps of one size go round and round."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(dimensions, dimensions, generator=generator).double()
    a = half @ half.T + 0.1 * torch.eye(dimensions)
    peak = 0.35 + 0.3 * torch.rand(dimensions, generator=generator).double()

    class Well(nn.Module):
        def forward(self, x):
            delta = x.flatten(1) - peak
            z = 1e-3 - 0.5 * ((delta @ a) * delta).sum(1)
            return torch.stack([torch.zeros_like(z), z], 1)

    x = 0.2 + 0.6 * torch.rand(size, 1, 1, dimensions, generator=generator).double()
    return Well(), x, torch.zeros(size).long()


@pytest.mark.parametrize("seed", range(4))
def test_paths_that_go_round_are_left_and_break_what_they_would_have_broken(seed):
    model, x, y = wells(seed)
    eps, step, steps = 0.15, 0.023, 1000
    seen, point = torch.zeros(len(x)).bool(), x.clone()
    for _ in range(steps + 1):  # every step, whatever was before
        seen |= broken(model, point, y)
        point.requires_grad_(True)
        z = model(point)[:, 1]
        (gradient,) = torch.autograd.grad(z.sum(), point)
        point = (x + (point.detach() + step * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    assert 0 < seen.sum() < len(x)
    counting = Counting(model)
    attack = PGD(Threat("linf", eps), steps=steps, step_size=step, random_start=False, loss="margin")
    found = attack.evaluating()(counting, x, y)
    assert broken(model, found, y).equal(seen)
    assert len(counting.sizes) < steps / 5
    assert (found - x).abs().max() <= eps + 1e-12
