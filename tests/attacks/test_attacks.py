"""The attacks: where their examples lie, and closed forms on models whose worst case is known."""

import numpy as np
import pytest
import torch
from attack_helpers import ATTACKS, Counting, TwoClasses, build, draws
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import special, stats
from torch import nn
from torch.nn import functional as F

from attacks import FGSM, PGD, Draws, Strong, Threat
from attacks.objectives import cross_entropy, divergence, margin

EVERY = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
LOSSES = pytest.mark.parametrize("loss", ["ce", "margin", "kl"])


def classifier(shape, dtype, seed=0, classes=4):
    """A fixed non-linear network on inputs of any shape."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 9), nn.Tanh(), nn.Linear(9, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def targets(y, loss, classes=4):
    """What the loss asks for: labels, or a distribution."""
    return F.softmax(3.0 * F.one_hot(y, classes), 1) if loss == "kl" else y


# --- box and ball ---


@EVERY
@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    shape=st.sampled_from([(1, 1, 1), (3, 4, 4), (1, 3, 5), (2,)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.0, 1e-3, 8 / 255, 0.3, 1.0]),
    box=st.sampled_from([None, (0.0, 1.0), (-6.0, 6.0)]),
    size=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_examples_stay_inside_the_box_and_the_ball(attack, norm, shape, dtype, eps, box, size, seed):
    threat = Threat(norm, eps, box)
    low, high = threat.bounds
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(size, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)  # some lie on the edges
    y = torch.randint(4, (size,), generator=generator)
    adversarial = build(attack, threat)(classifier(shape, dtype), x, y, draws(size, seed))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == dtype
    assert adversarial.isfinite().all()
    assert adversarial.min() >= low
    assert adversarial.max() <= high
    delta = (adversarial - x).double().flatten(1).numpy()
    moved = np.linalg.norm(delta, ord=np.inf if norm == "linf" else 2, axis=1)
    slack = 4 * torch.finfo(dtype).eps * max(abs(low), abs(high)) * np.sqrt(delta.shape[1])
    assert (moved <= eps + slack).all()


@EVERY
@NORM
def test_an_attack_without_radius_returns_its_images(attack, norm):
    x = torch.rand(5, 3, 4, 4)
    adversarial = build(attack, Threat(norm, 0))(classifier((3, 4, 4), x.dtype), x, torch.arange(5) % 4, draws(5))
    assert adversarial.equal(x)


@EVERY
def test_an_attack_needs_a_threat(attack):
    with pytest.raises(ValueError, match="threat"):
        _ = build(attack, None).threat


@EVERY
def test_under_fills_in_what_is_missing_and_keeps_what_is_stated(attack):
    threat = Threat("l2", 0.5, (-1.0, 1.0))
    blank, own = build(attack, None), build(attack, Threat("linf", "8/255"))
    assert blank.under(threat).threat == threat
    assert own.under(threat).threat == Threat("linf", "8/255", (-1.0, 1.0))
    with pytest.raises(ValueError, match="threat"):  # the first is not changed
        _ = blank.threat
    x, y, model = torch.rand(4, 3, 4, 4), torch.arange(4), classifier((3, 4, 4), torch.float32)
    found = blank.under(threat)(model, x, y, draws(4))
    assert found.equal(build(attack, threat)(model, x, y, draws(4)))


# --- closed forms ---


def two_classes(shape=(3, 4, 4), scale=1.0, size=6):
    """A two-class linear model in float64, images away from the box's edges, the label and the margin of each."""
    generator = torch.Generator().manual_seed(3)
    count = int(np.prod(shape))
    model = TwoClasses(torch.randn(count, generator=generator, dtype=torch.float64), scale=scale)
    x = 0.3 + 0.4 * torch.rand(size, *shape, generator=generator, dtype=torch.float64)
    model.bias = -float((x.flatten(1) @ model.weight.detach()).median()) + 0.01
    y = model(x).argmax(1)
    return model, x, y


def margins(model, x, y):
    z = model(x).detach()
    return z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]


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
    w = model.weight.detach()
    drop = eps * (w.abs().sum() if norm == "linf" else w.norm())
    # in l2 the part of the start across the gradient shrinks by half in every step of this length
    attack = PGD(Threat(norm, eps), steps=40, step_size=eps, random_start=random_start, loss=loss)
    target = F.one_hot(y, 2).double() if loss == "kl" else y
    found = attack(model, x, target, draws(len(x)))
    torch.testing.assert_close(margins(model, found, y), margins(model, x, y) - drop, rtol=1e-6, atol=1e-6)


@NORM
def test_pgds_default_steps_reach_the_edge_of_the_ball(norm):
    """2.5 eps / K times K is 2.5 eps: enough to cross the ball from anywhere (Madry et al. 2018)."""
    model, x, y = two_classes()
    w = model.weight.detach()
    for steps in (1, 3, 10):
        straight = PGD(Threat(norm, 0.1), steps=steps, random_start=False)(model, x, y)
        drop = 0.1 * (w.abs().sum() if norm == "linf" else w.norm())
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
    delta = (attack(TwoClasses(torch.ones(2)), x, torch.zeros(2000).long(), draws(2000)) - x).flatten(1)
    assert stats.kstest(delta[:, 0] / 0.2, "uniform", (-1, 2)).pvalue > 1e-3
    assert delta[:, 1].max() == 0
    assert 0.45 < (delta[:, 1] == 0).float().mean() < 0.55


@pytest.mark.parametrize(("steps", "restarts"), [(0, 1), (1, 0), (-1, 1)])
def test_pgd_needs_a_step_and_a_start(steps, restarts):
    with pytest.raises(ValueError, match="at least 1"):
        PGD(steps=steps, restarts=restarts)


# --- restarts ---


@NORM
@LOSSES
@pytest.mark.parametrize("seed", range(3))
def test_restarts_never_leave_an_image_standing_that_one_start_broke(norm, loss, seed):
    """The first of four starts is the only one of one, and an image's worst is kept."""
    shape, size = (3, 4, 4), 60
    model = classifier(shape, torch.float64, seed)
    x = torch.rand(size, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    right = []
    for restarts in (1, 4):
        attack = PGD(Threat(norm, 0.12 if norm == "linf" else 0.5), steps=2, restarts=restarts, loss=loss)
        found = attack(model, x, targets(y, loss).to(x.dtype) if loss == "kl" else y, draws(size))
        right.append(model(found).argmax(1) == y)
    assert 0 < right[0].sum() < size, "an attack that breaks all or nothing tests nothing"
    assert not (right[1] & ~right[0]).any()
    assert right[1].sum() <= right[0].sum()


def test_only_images_that_still_stand_are_tried_again():
    model, x, y = two_classes()
    y[:2] = 1 - y[:2]  # wrong from the start
    counting = Counting(model)
    PGD(Threat("linf", 1e-9), steps=1, restarts=3)(counting, x, y, draws(6))
    assert max(counting.sizes) == 6
    assert set(counting.sizes) == {6, 4}
    assert counting.sizes.count(4) == 2 * 2  # two more starts: a gradient and a judgement each


def test_of_images_that_stand_the_worst_start_is_kept():
    shape, size = (3, 4, 4), 40
    model = classifier(shape, torch.float64)
    x = torch.rand(size, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    objective, right = {}, {}
    for restarts in (1, 2, 5):
        adversarial = PGD(Threat("l2", 0.1), steps=1, restarts=restarts)(model, x, y, draws(size))
        logits = model(adversarial).detach()
        objective[restarts], right[restarts] = cross_entropy(logits, y), logits.argmax(1) == y
    standing = right[1] & right[2] & right[5]
    assert standing.sum() > size / 2
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
    broken = {}
    for restarts in (1, 10):
        found = PGD(Threat("linf", 0.1), steps=1, restarts=restarts)(Plateau(), x, y, draws(300))
        broken[restarts] = int((Plateau()(found).argmax(1) != y).sum())
    # each start lands there with probability 1/10
    assert stats.binomtest(broken[1], 300, 0.1).pvalue > 1e-3
    assert stats.binomtest(broken[10], 300, 1 - 0.9**10).pvalue > 1e-3


# --- objectives ---


def logits_and_labels(bound=30):
    shapes = st.tuples(st.integers(1, 4), st.integers(2, 8))
    return shapes.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float64, shape, elements=st.floats(-bound, bound)),
            hnp.arrays(np.int64, shape[:1], elements=st.integers(0, shape[1] - 1)),
            hnp.arrays(np.float64, shape, elements=st.floats(-5, 5)),
        )
    )


@given(logits_and_labels())
def test_cross_entropy_and_margin_against_numpy(problem):
    z, y, _ = problem
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    ce = special.logsumexp(z, axis=1) - z[rows, y]
    assert_allclose(cross_entropy(torch.tensor(z), torch.tensor(y)), ce, rtol=1e-6, atol=1e-6)
    assert_allclose(margin(torch.tensor(z), torch.tensor(y)), others.max(1) - z[rows, y], rtol=1e-6, atol=1e-6)


@given(logits_and_labels())
def test_divergence_is_scipys_relative_entropy(problem):
    z, y, other = problem
    p, q = special.softmax(other, 1), special.softmax(z, 1)
    found = divergence(torch.tensor(z), torch.tensor(p))
    assert_allclose(found, special.rel_entr(p, q).sum(1), rtol=1e-6, atol=1e-6)
    assert_allclose(found, stats.entropy(p, q, axis=1), rtol=1e-6, atol=1e-6)
    onehot = np.eye(z.shape[1])[y]  # 0 log 0 = 0
    found = divergence(torch.tensor(z), torch.tensor(onehot))
    assert_allclose(found, cross_entropy(torch.tensor(z), torch.tensor(y)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", [cross_entropy, margin, divergence])
def test_gradients_of_the_objectives(objective):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 4, 2, 2])
    target = torch.tensor([[1, 0, 0, 0, 0], [0.2] * 5, [0, 0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4, 0]]).double()
    assert torch.autograd.gradcheck(lambda logits: objective(logits, target if objective is divergence else y), z)


# --- saturation, and strong attacks ---


def saturated(size=8):
    """Logits as after distillation at a high temperature: in float32 the softmax is exactly one-hot.

    Each image could be broken: half the largest drop is enough, which no random start reaches.
    """
    generator = torch.Generator().manual_seed(0)
    shape, eps = (3, 8, 8), 0.1
    weight = torch.randn(192, generator=generator)
    x = 0.5 + 0.1 * (torch.rand(size, *shape, generator=generator) - 0.5)
    y = torch.arange(size) % 2
    lift = torch.where(y == 1, 1.0, -1.0) * 0.5 * eps * weight.abs().sum() - x.flatten(1) @ weight
    x = x + (lift / weight.square().sum())[:, None].mul(weight).reshape(x.shape)  # w . x = +- half the drop
    return TwoClasses(weight, scale=1e4), x, y, Threat("linf", eps)


def test_saturated_cross_entropy_has_no_gradient_and_the_margin_has():
    model, x, y, _ = saturated()
    x.requires_grad_(True)
    assert (model(x).argmax(1) == y).all()
    assert torch.autograd.grad(cross_entropy(model(x), y).sum(), x)[0].abs().max() == 0
    slope = torch.autograd.grad(margin(model(x), y).sum(), x)[0].flatten(1)
    torch.testing.assert_close(slope.abs(), (1e4 * model.weight.detach().abs()).expand(len(x), -1))


def test_strong_attacks_and_margins_break_what_weak_cross_entropy_cannot():
    model, x, y, threat = saturated()

    def broken(attack):
        return int((model(attack(model, x, y, draws(len(x)))).argmax(1) != y).sum())

    assert broken(PGD(threat)) == broken(FGSM(threat)) == 0
    for attack in (
        PGD(threat, loss="margin"),
        FGSM(threat, loss="margin"),
        Strong(PGD(threat), 1e4),
        Strong(FGSM(threat), 1e4),
        Strong(PGD(threat)).at(1e4),
    ):
        assert broken(attack) == len(x), attack.name


class Divided(nn.Module):
    def __init__(self, model, divisor):
        super().__init__()
        self.model, self.divisor = model, divisor

    def forward(self, x):
        return self.model(x) / self.divisor


@NORM
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_strong_is_the_attack_on_the_divided_model(norm, batchnorm, network, batch):
    threat = Threat(norm, "8/255" if norm == "linf" else 0.5)
    for plain in (FGSM(threat, batchnorm=batchnorm), PGD(threat, steps=3, restarts=2, batchnorm=batchnorm)):
        strong = Strong(plain, 20.0)(network, *batch, draws(6))
        assert strong.equal(plain(Divided(network, 20.0), *batch, draws(6)))


def test_strong_fills_in_a_temperature_only_where_none_is_given(network, batch):
    plain = PGD(Threat(), steps=3)
    strong = Strong(plain)
    assert strong.at(20.0)(network, *batch, draws(6)).equal(Strong(plain, 20.0)(network, *batch, draws(6)))
    given_one = Strong(plain, 7.0)
    assert given_one.at(20.0)(network, *batch, draws(6)).equal(given_one(network, *batch, draws(6)))
    assert strong.name == "PGD-3 strong"


def test_strong_without_a_temperature_says_so(network, batch):
    with pytest.raises(ValueError, match="temperature"):
        Strong(FGSM(Threat()))(network, *batch)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_that_are_not_positive_are_refused(temperature, network, batch):
    """A negative one would turn the attack into a defence."""
    with pytest.raises(ValueError, match="temperature"):
        Strong(FGSM(Threat()), temperature)(network, *batch)


# --- an image's example is its own ---


@EVERY
@NORM
def test_an_images_example_depends_on_its_index_alone(attack, norm):
    shape, size = (3, 4, 4), 24
    model = classifier(shape, torch.float64)
    threat = Threat(norm, 0.1 if norm == "linf" else 0.4)
    x, index = torch.rand(size, *shape, dtype=torch.float64), torch.arange(100, 100 + size)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4  # some are wrong from the start
    whole = build(attack, threat)(model, x, y, Draws(index, 1))
    order = torch.randperm(size)
    for chosen in (order, *order.split(7), *order.split(1)):
        part = build(attack, threat)(model, x[chosen], y[chosen], Draws(index[chosen], 1))
        torch.testing.assert_close(part, whole[chosen], rtol=1e-9, atol=1e-9)


def test_other_seeds_and_indices_start_elsewhere(network, batch):
    attack = PGD(Threat(), steps=1)
    first = attack(network, *batch, Draws(torch.arange(6), 0))
    assert not first.equal(attack(network, *batch, Draws(torch.arange(6), 1)))
    assert not first.equal(attack(network, *batch, Draws(torch.arange(1, 7), 0)))
