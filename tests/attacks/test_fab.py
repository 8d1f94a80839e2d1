"""FAB and the projection that it rests on: independent solvers, closed forms, and the authors' code."""

import warnings

import numpy as np
import pytest
import torch
from attack_helpers import Counting, TwoClasses, draws, untouched
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from attacks import Draws, Threat
from attacks.fab import FAB
from attacks.hyperplane import to_hyperplane

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])


def length(delta, norm):
    delta = delta.flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


# --- the projection ---


def shortest(t, w, gap, low, high, norm):
    """The smallest change by scipy: a linear program, or the root of the multiplier that the l2 problem leaves."""
    if norm == "l2":

        def change(multiplier):
            return np.clip(multiplier * w, low - t, high - t)

        end = 1.0
        while abs(w @ change(np.sign(gap) * end)) < abs(gap) * (1 - 1e-13):
            end *= 2
        multiplier = optimize.brentq(lambda m: w @ change(np.sign(gap) * m) - gap, 0, end, xtol=1e-15, maxiter=500)
        return change(np.sign(gap) * multiplier)
    size = len(t)  # variables: the change and its largest value r
    result = optimize.linprog(
        [0.0] * size + [1.0],
        A_ub=np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]]),
        b_ub=np.zeros(2 * size),
        A_eq=[[*w, 0.0]],
        b_eq=[gap],
        bounds=[*zip(low - t, high - t, strict=True), (0, None)],
    )
    assert result.success, result.message
    return result.x[:-1]


@st.composite
def planes(draw):
    """A point of a box, a plane's normal, and a gap as a share of the largest that the box allows on its side."""
    low, width = draw(st.sampled_from([(0.0, 1.0), (-6.0, 12.0), (0.25, 0.5)]))
    size = draw(st.integers(1, 7))
    place = draw(hnp.arrays(float, size, elements=st.sampled_from([0.0, 0.1, 0.5, 0.77, 1.0])))
    w = draw(hnp.arrays(float, size, elements=st.sampled_from([0.0, -1e-2, 0.3, 1.0, -1.0, 2.5, -40.0])))
    return low + width * place, w, draw(st.floats(-1.5, 1.5)), low, low + width


@NORM
@settings(max_examples=150, deadline=None)
@given(problem=planes())
def test_the_projection_is_the_solvers(norm, problem):
    t, w, share, low, high = problem
    limits = np.where(share * w > 0, high, np.where(share * w < 0, low, t)) - t
    most = np.abs(w @ limits)
    assume(most > 0)
    assume(not 0.9999 < abs(share) < 1.0001)
    gap = share * most
    found = to_hyperplane(*(torch.tensor(v)[None] for v in (t, w)), torch.tensor([gap]), low, high, norm)[0].numpy()
    assert (t + found >= low - 1e-12).all()
    assert (t + found <= high + 1e-12).all()
    if abs(share) > 1:
        np.testing.assert_allclose(found, limits, atol=1e-12)
        return
    assert w @ found == pytest.approx(gap, rel=1e-9, abs=1e-12)
    expected = shortest(t, w, gap, low, high, norm)
    if norm == "l2":
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    else:  # which has many solutions
        assert np.abs(found).max() <= np.abs(expected).max() * (1 + 1e-7) + 1e-9


@NORM
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e12])
def test_the_projection_keeps_its_digits_in_float32(norm, scale):
    """Many coordinates, a third of them at the box's edge, normals whose squares leave float32's range."""
    t, w = torch.rand(20, 3000), torch.randn(20, 3000) * torch.randn(20, 3000).abs() ** 3
    t[:, :1000] = t[:, :1000].round()
    gap = torch.linspace(-1, 1, 20) * 0.2 * w.abs().sum(1)
    wide = to_hyperplane(t.double(), w.double(), gap.double(), 0.0, 1.0, norm)
    found = to_hyperplane(t, scale * w, scale * gap, 0.0, 1.0, norm)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide, rtol=1e-4, atol=1e-5)
    assert wide.abs().amax(1).min() > 1e-3


@NORM
def test_a_plane_without_a_normal_moves_nothing_and_nan_ends(norm):
    t = torch.rand(3, 4)
    still = to_hyperplane(t, torch.zeros(3, 4), torch.tensor([1.0, 0.0, -1.0]), 0.0, 1.0, norm)
    assert still.equal(torch.zeros(3, 4))
    w = torch.randn(3, 4)
    w[0, 0], w[1, 1] = torch.nan, torch.inf
    found = to_hyperplane(t, w, torch.full((3,), 0.1), 0.0, 1.0, norm)
    torch.testing.assert_close(found[2], to_hyperplane(t, w.nan_to_num(0, 0), torch.full((3,), 0.1), 0.0, 1.0, norm)[2])


@NORM
def test_one_normal_serves_several_points(norm):
    points, w, gaps = torch.rand(2, 5, 8), torch.randn(5, 8), torch.randn(2, 5)
    found = to_hyperplane(points, w, gaps, 0.0, 1.0, norm)
    for part in range(2):
        torch.testing.assert_close(found[part], to_hyperplane(points[part], w, gaps[part], 0.0, 1.0, norm))


# --- closed forms ---


def two_classes(shape=(3, 2, 2), size=8, low=0.0, high=1.0, seed=3):
    """A two-class linear model in float64, and images of which some lie on the box's edges."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = TwoClasses(torch.randn(count, generator=generator, dtype=torch.float64))
    x = low + (high - low) * torch.rand(size, *shape, generator=generator, dtype=torch.float64)
    x[::2] = x[::2].clamp(low + 0.3 * (high - low), high)
    x[1::2] = torch.where(x[1::2] > (low + high) / 2, high, x[1::2])
    model.bias = -float((x.flatten(1) @ model.weight.detach()).median()) + 0.01
    return model, x, model(x).argmax(1)


@NORM
@pytest.mark.parametrize("box", [(0.0, 1.0), (-6.0, 6.0)])
@pytest.mark.parametrize("shape", [(3, 2, 2), (5, 1, 1), (4,)])
def test_fab_finds_the_smallest_change_on_a_linear_model(norm, box, shape):
    model, x, y = two_classes(shape, low=box[0], high=box[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two classes have one target
        found = FAB(Threat(norm, 0.1, box))(model, x, y)
    assert found.dtype == x.dtype
    assert found.shape == x.shape
    assert found.min() >= box[0]
    assert found.max() <= box[1]
    assert (model(found).argmax(1) != y).all()
    w = model.weight.detach().numpy()
    for image, distance in zip(x, length(found - x, norm), strict=True):
        image = image.flatten().numpy()
        least = np.linalg.norm(
            shortest(image, w, -(w @ image + model.bias), *box, norm), np.inf if norm == "linf" else 2
        )
        # Candidates lie beyond the boundary by a twentieth of the last step, which is a tenth of the way.
        assert least * (1 - 1e-9) <= distance <= least * 1.01


def test_the_norm_is_the_threats_or_the_one_that_is_stated():
    model, x, y = two_classes()
    with pytest.warns(UserWarning, match="9 target classes"):
        alone = FAB()(model, x, y)
    linf, l2 = (FAB(Threat(norm, 0.1), targets=1)(model, x, y) for norm in ("linf", "l2"))
    stated = FAB(Threat("linf", 0.1), targets=1, norm="l2")(model, x, y)
    assert stated.equal(l2)
    assert alone.equal(l2)
    assert (length(linf - x, "linf") < length(l2 - x, "linf")).all()
    assert (length(linf - x, "l2") > length(l2 - x, "l2")).all()


def test_what_nothing_changes_stays_as_it_was():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([2.0, 1.0, 0.0]) + 0 * x.flatten(1).sum(1, keepdim=True)

    x = torch.rand(4, 1, 3, 3)
    assert FAB(Threat("linf", 0.1), steps=5, targets=2)(Constant(), x, torch.zeros(4).long()).equal(x)


# --- a network ---


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 6)).double()
    for parameter in model.parameters():  # steep, so that where an iteration starts matters
        nn.init.normal_(parameter, 0, 5 / parameter.shape[-1] ** 0.5, generator=generator)
    x = torch.rand(30, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::6] = (y[::6] + 1) % 6  # wrong from the start
    return model, x, y


@NORM
def test_images_that_are_wrong_cost_one_pass_and_stay(norm, problem):
    model, x, y = problem
    counting = Counting(model)
    found = FAB(Threat(norm, 0.1), steps=3, targets=2)(counting, x, y)
    wrong = model(x).argmax(1) != y
    assert wrong.sum() == 5
    assert found[wrong].equal(x[wrong])
    assert (model(found[~wrong]).argmax(1) != y[~wrong]).any()
    assert counting.sizes == [30] + [25] * 12
    assert FAB(steps=3, targets=2)(counting, x[wrong], y[wrong]).equal(x[wrong])
    assert counting.sizes[13:] == [5]


@NORM
def test_in_a_suite_an_image_leaves_when_a_candidate_lies_within_the_radius(norm, problem):
    model, x, y = problem
    threat = Threat(norm, 0.1 if norm == "linf" else 0.35)
    nearest = FAB(threat, steps=30, targets=5)(model, x, y)
    counting = Counting(model)
    found = FAB(threat, steps=30, targets=5).evaluating()(counting, x, y)
    right = model(x).argmax(1) == y
    within = threat.holds(nearest, x)[right]
    assert 3 < within.sum() < right.sum() - 3, "a radius that holds all or none tests nothing"
    assert threat.holds(found, x)[right].equal(within)
    assert (model(found).argmax(1) != y)[right][within].all()
    assert found[right][~within].equal(nearest[right][~within])
    assert (length(nearest - x, norm) <= length(found - x, norm)).all()
    assert counting.sizes[1:] == sorted(counting.sizes[1:], reverse=True)
    assert counting.sizes[-1] == (~within).sum()
    unlimited = FAB(threat, steps=30, targets=5, unlimited=True).evaluating()
    assert unlimited(model, x, y).equal(nearest)


@NORM
def test_restarts_start_half_way_to_what_is_known_and_only_help(norm, problem):
    model, x, y = problem
    x = 0.4 + 0.2 * x  # the starts meet no edge
    y = model(x).argmax(1)
    inputs = []

    class Seen(nn.Module):
        def forward(self, image):
            inputs.append(image.detach().clone())
            return model(image)

    threat = Threat(norm, 0.085 if norm == "linf" else 0.46)
    first = FAB(threat, steps=8, targets=1)(model, x, y, draws(30))
    both = FAB(threat, steps=8, targets=1, restarts=2)(Seen(), x, y, draws(30))
    known = length(first - x, norm)
    known = torch.where(known == 0, torch.inf, known)
    assert (known < threat.eps).any()
    assert (known > threat.eps).any()
    start = inputs[1 + 2 * 8]
    torch.testing.assert_close(length(start - x, norm), known.clamp_max(float(threat.eps)) / 2)
    assert (length(both - x, norm) <= known).all()
    many = FAB(threat, steps=8, targets=1, restarts=8)(model, x, y, draws(30))
    assert (length(many - x, norm) <= length(both - x, norm)).all()
    assert (length(many - x, norm) < 0.999 * known).any()


@NORM
def test_an_images_result_depends_on_its_index_alone(norm, problem):
    model, x, y = problem
    index = torch.arange(100, 130)
    attack = FAB(Threat(norm, 0.05), steps=4, targets=2, restarts=3).evaluating()
    whole = attack(model, x, y, Draws(index, 1))
    order = torch.randperm(30)
    for chosen in (order, *order.split(7)):
        part = attack(model, x[chosen], y[chosen], Draws(index[chosen], 1))
        torch.testing.assert_close(part, whole[chosen], rtol=1e-9, atol=1e-9)
    assert not attack(model, x, y, Draws(index, 2)).equal(whole)


@NORM
def test_the_model_is_untouched(norm, network, batch):
    with untouched(network):
        found = FAB(Threat(norm, 0.1), steps=3, targets=2, restarts=2)(network, *batch)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_the_budget_is_what_is_spent(problem):
    model, x, y = problem
    attack = FAB(Threat("linf", 0.1), steps=4, targets=3, restarts=2)
    counting = Counting(model)
    attack(counting, x[1:2], y[1:2])
    assert len(counting.sizes) == attack.budget == 1 + 2 * 4 * 3 * 2


def test_names_tell_what_differs():
    assert FAB().name == "FAB-T"
    assert FAB(norm="l2", steps=20, targets=3, restarts=2, unlimited=True).name == (
        "FAB-T l2 20 steps 3 targets x2 unlimited"
    )


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"targets": 0}])
def test_counts_start_at_one(settings):
    with pytest.raises(ValueError, match="at least 1"):
        FAB(**settings)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="linf, l2 or None, got 'l1'"):
        FAB(norm="l1")


# --- the authors' code ---


@pytest.fixture(scope="module")
def digits():
    """A small network after a few seconds of training, and held-out digits that it gets right."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16).float().view(-1, 1, 8, 8), torch.tensor(y)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(8):
        for rows in torch.randperm(1300).split(50):
            noisy = x[rows] + 0.2 * torch.randn_like(x[rows])
            optimiser.zero_grad()
            F.cross_entropy(model(noisy), y[rows]).backward()
            optimiser.step()
    model.eval()
    right = model(x).argmax(1) == y
    right[:1300] = False
    return model, x[right], y[right]


def authors(model, x, y, norm, steps, targets):
    """The nearest change of class that the authors' code finds over all targets."""
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    attack = fab_pt.FABAttack_PT(model, {"linf": "Linf", "l2": "L2"}[norm], n_iter=steps, eps=1.0, targeted=True)
    best = torch.full((len(x),), torch.inf)
    for target in range(2, targets + 2):
        attack.target_class = target
        moved = length(attack.attack_single_run(x, y, is_targeted=True) - x, norm)
        best = torch.minimum(best, torch.where(moved == 0, torch.inf, moved))
    return best


def compare(digits, norm, count, steps, targets):
    model, x, y = digits
    x, y = x[:count], y[:count]
    ours = length(FAB(Threat(norm, 0.1), steps=steps, targets=targets)(model, x, y) - x, norm)
    theirs = authors(model, x, y, norm, steps, targets)
    assert len(x) == count
    assert (ours > 0).all()
    assert theirs.isfinite().all()
    assert ours.mean() <= 1.01 * theirs.mean()
    assert (ours > 1.02 * theirs).float().mean() <= 0.05
    for quantile in (0.25, 0.5, 0.75):  # radii at which a part of the images is robust
        radius = theirs.quantile(quantile)
        assert abs((ours > radius).float().mean() - (theirs > radius).float().mean()) <= 0.005 + 1 / count


@NORM
def test_the_authors_code_finds_nothing_nearer(norm, digits):
    compare(digits, norm, count=80, steps=40, targets=2)


@pytest.mark.slow
@NORM
def test_the_authors_code_finds_nothing_nearer_at_the_standard_settings(norm, digits):
    compare(digits, norm, count=400, steps=100, targets=9)
