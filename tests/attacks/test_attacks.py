"""What every attack keeps to, however it works, and what attacks climb: objectives against NumPy and SciPy."""

import warnings

import numpy as np
import pytest
import torch
from attack_helpers import ATTACKS, FIXED_RADIUS, broken, build, classifier, draws
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import special, stats
from torch import nn

from attacks import Attack, Draws, MinimumNorm, Threat
from attacks.objectives import (
    Goal,
    check_loss,
    cross_entropy,
    cross_entropy_towards,
    divergence,
    dlr,
    dlr_towards,
    likely_others,
    margin,
    towards,
)
from attacks.subject import Ledger, Subject

EVERY = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
FIXED = pytest.mark.parametrize("attack", FIXED_RADIUS, ids=lambda attack: attack.__name__)
NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
SHAPE = (3, 4, 4)


def problem(size, dtype=torch.float64, seed=0):
    """A network, images and labels, some of which are wrong from the start."""
    model = classifier(SHAPE, dtype, seed)
    x = torch.rand(size, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return model, x, y


def radius(norm):
    """At which some of :func:`problem`'s images are broken and some are not."""
    return Threat(norm, 0.1 if norm == "linf" else 0.4)


# --- box and ball ---


def test_the_lists_hold_what_can_be_run():
    names = {attack.__name__ for attack in ATTACKS}
    assert {"APGD", "EOT", "FGSM", "MIFGSM", "Noise", "PGD", "Strong", "Transfer"} <= names
    assert not {"Attack", "MinimumNorm"} & names
    assert set(FIXED_RADIUS) <= set(ATTACKS)


@EVERY
@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    shape=st.sampled_from([(1, 1, 1), (3, 4, 4), (1, 3, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.0, 1e-3, 8 / 255, 0.3, 1.0]),
    box=st.sampled_from([None, (0.0, 1.0), (-6.0, 6.0)]),
    size=st.integers(1, 5),
    evaluating=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_examples_stay_inside_the_box_and_the_ball(attack, norm, shape, dtype, eps, box, size, evaluating, seed):
    threat = Threat(norm, eps, box)
    low, high = threat.bounds
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(size, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)  # some lie on the edges
    model = classifier(shape, dtype)
    y = torch.where(torch.rand(size, generator=generator) < 0.3, 0, model(x).argmax(1))
    chosen = build(attack, threat, source=model)
    adversarial = (chosen.evaluating() if evaluating else chosen)(model, x, y, draws(size, seed))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == dtype
    assert adversarial.isfinite().all()
    assert adversarial.min() >= low
    assert adversarial.max() <= high
    if attack in FIXED_RADIUS:
        delta = (adversarial - x).double().flatten(1).numpy()
        moved = np.linalg.norm(delta, ord=np.inf if norm == "linf" else 2, axis=1)
        slack = 4 * torch.finfo(dtype).eps * max(abs(low), abs(high)) * np.sqrt(delta.shape[1])
        slack += 1e-6 * eps  # draws have the precision of float32
        assert (moved <= eps + slack).all()


@FIXED
@NORM
@pytest.mark.parametrize("evaluating", [False, True])
def test_an_attack_without_radius_returns_its_images(attack, norm, evaluating):
    """So its robust accuracy is the clean one."""
    model, x, y = problem(10, torch.float32)
    chosen = build(attack, Threat(norm, 0), source=model)
    assert (chosen.evaluating() if evaluating else chosen)(model, x, y, draws(10)).equal(x)


@EVERY
def test_an_attack_of_fixed_radius_needs_a_threat(attack):
    model, x, y = problem(10)
    blank = build(attack, None, source=model)
    with pytest.raises(ValueError, match="threat"):
        _ = blank.threat
    if issubclass(attack, MinimumNorm):
        assert 0 <= blank(model, x, y, draws(10)).min() <= blank(model, x, y, draws(10)).max() <= 1
    else:
        with pytest.raises(ValueError, match="threat"):
            blank(model, x, y, draws(10))


@EVERY
def test_under_fills_in_what_is_missing_and_keeps_what_is_stated(attack):
    model, x, y = problem(10, torch.float32)
    threat = Threat("l2", 0.5, (-1.0, 1.0))
    blank, own = build(attack, None, source=model), build(attack, Threat("linf", "8/255"), source=model)
    assert blank.under(threat).threat == threat
    assert own.under(threat).threat == Threat("linf", "8/255", (-1.0, 1.0))
    with pytest.raises(ValueError, match="threat"):  # the first is not changed
        _ = blank.threat
    found = blank.under(threat)(model, x, y, draws(10))
    assert found.equal(build(attack, threat, source=model)(model, x, y, draws(10)))


@EVERY
def test_a_batch_norm_mode_that_does_not_exist_is_refused(attack):
    with pytest.raises(ValueError, match="batchnorm must be one of eval, train"):
        build(attack, Threat(), batchnorm="frozen", source=nn.Identity())


# --- an image's example is its own ---


@EVERY
@NORM
@pytest.mark.parametrize("evaluating", [False, True])
def test_an_images_example_depends_on_its_index_alone(attack, norm, evaluating):
    size = 24
    model, x, y = problem(size)
    index = torch.arange(100, 100 + size)
    chosen = build(attack, radius(norm), source=model)
    chosen = chosen.evaluating() if evaluating else chosen
    whole = chosen(model, x, y, Draws(index, 1))
    order = torch.randperm(size)
    for part in (order, *order.split(7), *order.split(1)):
        found = chosen(model, x[part], y[part], Draws(index[part], 1))
        torch.testing.assert_close(found, whole[part], rtol=1e-9, atol=1e-9)


# --- evaluation ---


@EVERY
@NORM
@pytest.mark.parametrize("seed", range(3))
def test_in_evaluation_an_image_that_was_broken_stays_broken(attack, norm, seed):
    """The plain attack may walk on and back; there, too, what it ends on was reached."""
    model, x, y = problem(60, seed=seed)
    plain = build(attack, radius(norm), source=model)
    evaluating = plain.evaluating()
    assert type(evaluating) is type(plain)
    successes = []
    for chosen in (plain, evaluating):
        found = chosen(model, x, y, draws(60, seed))
        successes.append(broken(model, found, y) & chosen.allows(found, x))
    assert not (successes[0] & ~successes[1]).any()
    assert successes[1][::5].all(), "wrong from the start, and made right by the attack"


@EVERY
@NORM
def test_no_image_costs_more_than_the_budget(attack, norm):
    model, x, y = problem(20)
    chosen = build(attack, radius(norm), source=model)
    for run in (chosen, chosen.evaluating()):
        ledger = Ledger(20, x.device)
        run(Subject(model, ledger), x, y, draws(20))
        assert run.budget is None or ledger.forwards.max() <= run.budget


@EVERY
def test_an_attack_has_a_name_of_one_line(attack):
    name = build(attack, Threat(), source=nn.Identity()).name
    assert name
    assert name == " ".join(name.split())


class Fixed(Attack):
    """An attack whose example is given."""

    name = "fixed"

    def __init__(self, threat=None, limited=True):
        super().__init__(threat)
        self.limited = limited

    def perturb(self, model, x, y, draws):
        return x


def test_an_example_counts_within_the_radius_or_where_there_is_no_limit():
    x = torch.full((3, 1, 2, 2), 0.5)
    far = x + torch.tensor([0.05, 0.1, 0.2]).view(-1, 1, 1, 1)
    assert Fixed(Threat("linf", 0.1)).allows(far, x).tolist() == [True, True, False]
    assert Fixed(Threat("l2", 0.1)).allows(far, x).tolist() == [True, False, False]  # twice as far in l2
    assert Fixed(Threat("linf", 0.1), limited=False).allows(far, x).tolist() == [True, True, True]


# --- objectives ---


def logits_and_labels(bound=30, fewest=2):
    shapes = st.tuples(st.integers(1, 4), st.integers(fewest, 8))
    return shapes.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float64, shape, elements=st.floats(-bound, bound, width=32)),
            hnp.arrays(np.int64, shape[:1], elements=st.integers(0, shape[1] - 1)),
            hnp.arrays(np.float64, shape, elements=st.floats(-5, 5, width=32)),
        )
    )


def numpy_margin(z, y):
    others = z.copy()
    others[np.arange(len(y)), y] = -np.inf
    return others.max(1) - z[np.arange(len(y)), y]


@given(logits_and_labels())
def test_cross_entropy_and_margin_against_numpy(problem):
    z, y, _ = problem
    ce = special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    assert_allclose(cross_entropy(torch.tensor(z), torch.tensor(y)), ce, rtol=1e-6, atol=1e-6)
    assert_allclose(margin(torch.tensor(z), torch.tensor(y)), numpy_margin(z, y), rtol=1e-6, atol=1e-6)


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


@given(logits_and_labels(fewest=3))
def test_dlr_against_numpy(problem):
    z, y, _ = problem
    ranked = np.sort(z, 1)[:, ::-1]
    expected = numpy_margin(z, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    assert_allclose(dlr(torch.tensor(z), torch.tensor(y)), expected, rtol=1e-9, atol=1e-9)


@given(logits_and_labels(fewest=4), st.integers(1, 7))
def test_targeted_objectives_against_numpy(problem, step):
    z, y, _ = problem
    rows, classes = np.arange(len(y)), z.shape[1]
    t = (y + 1 + step % (classes - 1)) % classes
    ranked = np.sort(z, 1)[:, ::-1]
    difference = z[rows, t] - z[rows, y]
    tensors = [torch.tensor(part) for part in (z, y, t)]
    assert_allclose(towards(*tensors), difference)
    assert_allclose(cross_entropy_towards(*tensors), special.log_softmax(z, 1)[rows, t], rtol=1e-6, atol=1e-6)
    scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12
    assert_allclose(dlr_towards(*tensors), difference / scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_dlr_does_not_depend_on_the_logits_scale_or_offset(scale):
    z, y, t = torch.randn(50, 6).double(), torch.arange(50) % 6, (torch.arange(50) + 2) % 6
    torch.testing.assert_close(dlr(scale * z + 5, y), dlr(z, y), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(dlr_towards(scale * z + 5, y, t), dlr_towards(z, y, t), rtol=1e-6, atol=1e-8)


def test_with_few_classes_dlr_becomes_the_margin_and_says_so():
    z, y, t = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 2, 0])
    with pytest.warns(UserWarning, match="DLR needs at least 3 classes"):
        assert dlr(z[:, :2], y % 2).equal(margin(z[:, :2], y % 2))
    with pytest.warns(UserWarning, match="at least 4 classes, the model has 3"):
        assert dlr_towards(z, y, t).equal(towards(z, y, t))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dlr(z, y)
        dlr_towards(torch.randn(5, 4), y, t)


@pytest.mark.parametrize("objective", [cross_entropy, margin, dlr, divergence])
def test_gradients_of_the_objectives(objective):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 4, 2, 2])
    target = torch.tensor([[1, 0, 0, 0, 0], [0.2] * 5, [0, 0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4, 0]]).double()
    assert torch.autograd.gradcheck(lambda logits: objective(logits, target if objective is divergence else y), z)


@pytest.mark.parametrize("objective", [towards, cross_entropy_towards, dlr_towards])
def test_gradients_of_the_targeted_objectives(objective):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y, t = torch.tensor([0, 4, 2, 2]), torch.tensor([1, 3, 0, 4])
    assert torch.autograd.gradcheck(lambda logits: objective(logits, y, t), z)


@given(logits_and_labels(), st.integers(1, 7))
def test_likely_others_are_the_most_likely_classes_but_the_label(problem, count):
    z, y, _ = problem
    count = min(count, z.shape[1] - 1)
    found = likely_others(torch.tensor(z), torch.tensor(y), count).numpy()
    assert found.shape == (len(y), count)
    for row, label, chosen in zip(z, y, found, strict=True):
        assert label not in chosen
        assert len(set(chosen)) == count
        assert_allclose(row[chosen], np.sort(np.delete(row, label))[::-1][:count])  # ties in any order


def test_more_targets_than_there_are_classes_are_all_of_them_and_a_warning():
    with pytest.warns(UserWarning, match="9 target classes were asked for, the model has 2 others"):
        found = likely_others(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([2]), 9)
    assert found.tolist() == [[0, 1]]


def test_a_goal_is_its_objective_and_its_parts_keep_their_labels():
    z = torch.randn(6, 5)
    y, t = torch.arange(6) % 5, (torch.arange(6) + 1) % 5
    p = torch.randn(6, 5).softmax(1)
    kept = torch.tensor([4, 1])
    for goal, expected in [
        (Goal("ce", y), cross_entropy(z, y)),
        (Goal("margin", y), margin(z, y)),
        (Goal("dlr", y), dlr(z, y)),
        (Goal("kl", p), divergence(z, p)),
        (Goal("ce", y, t), cross_entropy_towards(z, y, t)),
        (Goal("margin", y, t), towards(z, y, t)),
        (Goal("dlr", y, t), dlr_towards(z, y, t)),
    ]:
        assert goal(z).equal(expected)
        torch.testing.assert_close(goal[kept](z[kept]), expected[kept])
        assert goal[kept].broken(z[kept]).equal(goal.broken(z)[kept])


def test_broken_is_any_other_class_whatever_the_target():
    z = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 1, 2]])
    y, t = torch.zeros(3).long(), torch.full((3,), 2)
    for goal in (Goal("ce", y), Goal("margin", y, t), Goal("kl", torch.tensor([[0.8, 0.1, 0.1]] * 3))):
        assert goal.broken(z).tolist() == [False, True, True]


@pytest.mark.parametrize(("name", "targets"), [("hinge", 0), ("kl", 3), ("", 1)])
def test_unknown_losses_are_refused(name, targets):
    with pytest.raises(ValueError, match="loss must be one of"):
        check_loss(name, targets)
    assert check_loss("kl") == "kl"
    assert check_loss("dlr", 2) == "dlr"
