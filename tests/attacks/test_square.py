"""Square: where its examples and windows lie, what it reaches, and the authors' code."""

import math

import numpy as np
import pytest
import torch
from attack_helpers import Counting, TwoClasses, draws, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from attacks import Draws, Threat
from attacks.square import Square, peak_and_trough

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])


def classifier(shape, dtype=torch.float64, seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 12), nn.Tanh(), nn.Linear(12, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return model


class Seen(nn.Module):
    """Logits that say class 0 whatever the image is, so that no query is kept; it remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.images.append(x.clone())
        return torch.tensor([1.0, 0.0]).repeat(len(x), 1)


# --- box and ball ---


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    shape=st.sampled_from([(1, 1, 1), (5, 1, 1), (3, 4, 4), (1, 3, 8), (2, 9, 4), (1, 2, 2), (3,)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.0, 8 / 255, 0.3, 1.0]),
    box=st.sampled_from([None, (-6.0, 6.0)]),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_examples_stay_inside_the_box_and_the_ball(norm, shape, dtype, eps, box, restarts, seed):
    threat = Threat(norm, eps, box)
    low, high = threat.bounds
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(5, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, low, x)  # some lie on an edge
    model = classifier(shape, dtype)
    y = model(x).argmax(1)
    found = Square(threat, queries=40, restarts=restarts)(model, x, y, draws(5, seed))
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found.min() >= low
    assert found.max() <= high
    delta = (found - x).double().flatten(1).numpy()
    moved = np.linalg.norm(delta, ord=np.inf if norm == "linf" else 2, axis=1)
    assert (moved <= eps + 4 * torch.finfo(dtype).eps * max(abs(low), abs(high)) * np.sqrt(delta.shape[1])).all()
    assert found.equal(x) == (eps == 0)


# --- windows and patterns ---


def schedule(query, p_init, height, width):
    """The windows' edge in linf, as AutoAttack's authors table it."""
    ends = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, math.inf]
    share = p_init / 2 ** next(number for number, end in enumerate(ends) if query <= end)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 11)])
def test_a_query_changes_one_square_window_to_the_balls_corners(height, width):
    """Every image has its own window, of the scheduled size, and windows reach all places."""
    model, x = Seen(), torch.full((300, 3, height, width), 0.5)
    found = Square(Threat("linf", 0.1), queries=60)(model, x, torch.zeros(300).long(), draws(300))
    start = model.images[0]
    assert found.equal(start)
    assert len(model.images) == 61
    torch.testing.assert_close((start - 0.5).abs(), torch.full_like(start, 0.1))
    assert start.equal(start[:, :, :1].expand_as(start)), "the start is striped"
    for query in (0, 10, 11, 50, 51, 59):
        tried = model.images[1 + query]
        torch.testing.assert_close((tried - 0.5).abs(), torch.full_like(start, 0.1))
        changed = (tried != start).any(1)
        side = schedule(query, 0.8, height, width)
        tops, lefts = set(), set()
        for number in changed.flatten(1).any(1).nonzero().squeeze(1).tolist():
            rows, columns = changed[number].any(1).nonzero(), changed[number].any(0).nonzero()
            assert rows.max() - rows.min() + 1 == side  # stripes are cut through
            assert columns.max() - columns.min() + 1 <= side
            tops.add(int(rows.min()))
            lefts.add(int(columns.min()))
            window = tried[number][:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert window.flatten(1).std(1).max() == 0, "one sign per channel"
        assert tops == set(range(height - side + 1))
        assert lefts >= set(range(width - side + 1))


def test_the_windows_shrink_on_absolute_queries():
    model, x = Seen(), torch.full((20, 1, 16, 16), 0.5)
    Square(Threat("linf", 0.1), queries=1003)(model, x, torch.zeros(20).long(), draws(20))
    start = model.images[0]
    for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001):
        heights = (model.images[1 + query] != start).any(1).any(2).sum(1)
        assert heights.max() == schedule(query, 0.8, 16, 16)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 7, 11])
def test_the_l2_pattern_is_the_papers(side):
    """Two pyramids of squares, of equal length and opposite sign."""
    expected = np.zeros((side, side))
    for first, height, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
        half = np.zeros((height, side))
        for k in range(side // 2 + 1):
            top, left = height // 2 - k, side // 2 - k
            half[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
        if height:
            expected[first : first + height] = sign * half / np.linalg.norm(half)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(peak_and_trough(side, torch.zeros(0, dtype=torch.float64)), expected, atol=1e-12)


def test_l2_queries_lie_on_the_balls_surface_and_keep_what_lies_outside_two_windows():
    model, x = Seen(), torch.full((200, 2, 12, 15), 0.5, dtype=torch.float64)
    Square(Threat("l2", 0.4), queries=220)(model, x, torch.zeros(200).long(), draws(200))
    start = model.images[0]
    for query in (0, 30, 219):
        tried = model.images[1 + query]
        torch.testing.assert_close((tried - x).flatten(1).norm(dim=1), torch.full((200,), 0.4).double())
        changed = ((tried - start).abs() > 1e-9).any(1).flatten(1).sum(1)
        side = math.sqrt(0.8 / {0: 1, 30: 2, 219: 8}[query] * 180)
        side = max(round(side), 3)
        side = min(side + (side % 2 == 0), 12)
        assert changed.max() <= 2 * side**2
        assert changed.max() >= side**2
        assert changed.unique().numel() > 3, "every image has its own windows"


# --- what it reaches ---


def test_on_a_linear_model_it_reaches_the_worst_corner():
    w = torch.randn(18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.rand(10, 2, 3, 3, dtype=torch.float64)
    model = TwoClasses(w, bias=100.0)
    found = Square(Threat("linf", 0.1), queries=600)(model, x, torch.ones(10).long(), draws(10))
    torch.testing.assert_close(found, (x - 0.1 * w.sign().view(2, 3, 3)).clamp(0, 1))


@pytest.mark.parametrize(("shape", "least"), [((2, 9, 9), 0.4), ((3, 1, 1), 0.6)])
def test_in_l2_it_gets_most_of_the_way(shape, least):
    """A random direction of the ball gets 1 / sqrt(D) of the way on average."""
    size = math.prod(shape)
    smooth = torch.linspace(-1, 1.3, size, dtype=torch.float64).view(shape)
    x = 0.5 + 0.1 * torch.rand(10, *shape, dtype=torch.float64)
    model = TwoClasses(smooth.flatten(), bias=100.0)
    found = Square(Threat("l2", 0.2), queries=1000)(model, x, torch.ones(10).long(), draws(10))
    drop = (model(x) - model(found))[:, 1]
    assert (drop > least * 0.2 * smooth.norm()).all()
    assert (drop <= 0.2 * smooth.norm() * (1 + 1e-9)).all()


@pytest.fixture
def problem():
    model = classifier((3, 4, 4))
    x = torch.rand(40, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4  # wrong from the start
    return model, x, y


THREATS = {"linf": Threat("linf", 0.12), "l2": Threat("l2", 0.5)}


@NORM
def test_broken_images_leave_and_only_they(norm, problem):
    model, x, y = problem
    counting = Counting(model)
    found = Square(THREATS[norm], queries=100)(counting, x, y, draws(40))
    stands = model(found).argmax(1) == y
    assert 3 < stands.sum() < 30, "an attack that breaks all or nothing tests nothing"
    assert counting.sizes[0] == 40
    assert counting.sizes == sorted(counting.sizes, reverse=True)
    assert stands.sum() <= counting.sizes[-1] < 40
    assert len(counting.sizes) == 101


@NORM
def test_no_more_is_asked_once_all_are_broken(norm, problem):
    model, x, y = problem
    wrong = model(x).argmax(1) != y
    counting = Counting(model)
    found = Square(Threat(norm, 1e-6), queries=100)(counting, x[wrong], y[wrong], draws(5))
    assert counting.sizes == [5]
    assert (model(found).argmax(1) != y[wrong]).all()


@NORM
def test_more_queries_and_starts_only_help(norm, problem):
    """The first queries are the same, and so is the first start."""
    model, x, y = problem
    stands = {}
    for queries, restarts in ((5, 1), (5, 4), (60, 1)):
        attack = Square(THREATS[norm], queries=queries, restarts=restarts)
        stands[queries, restarts] = model(attack(model, x, y, draws(40))).argmax(1) == y
    for more in ((5, 4), (60, 1)):
        assert not (stands[more] & ~stands[5, 1]).any()
        assert stands[more].sum() < stands[5, 1].sum()


@NORM
def test_an_images_example_depends_on_its_index_alone(norm, problem):
    model, x, y = problem
    index = torch.arange(100, 140)
    attack = Square(THREATS[norm], queries=150, restarts=2)  # more than one block of draws
    whole = attack(model, x, y, Draws(index, 1))
    order = torch.randperm(40)
    for chosen in (order, *order.split(9), order[:1]):
        part = attack(model, x[chosen], y[chosen], Draws(index[chosen], 1))
        torch.testing.assert_close(part, whole[chosen], rtol=1e-9, atol=1e-9)
    assert not attack(model, x, y, Draws(index, 2)).equal(whole)


@NORM
def test_the_model_is_untouched_and_no_gradient_is_asked_for(norm, network, batch):
    with untouched(network):
        found = Square(Threat(norm, 0.1), queries=20)(network, *batch)
    assert not found.requires_grad
    Square(Threat(norm, 0.1), queries=2, restarts=2)(Seen(), batch[0], torch.zeros(6).long())


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_budget_is_what_is_spent(restarts):
    model = Seen()
    attack = Square(Threat("linf", 0.1), queries=7, restarts=restarts)
    attack(model, torch.rand(2, 1, 4, 4), torch.zeros(2).long())
    assert len(model.images) == attack.budget


def test_names_tell_what_differs():
    assert Square().name == "Square"
    assert Square(queries=100, p_init=0.3, restarts=2).name == "Square 100 queries p=0.3 x2"


@pytest.mark.parametrize("settings", [{"queries": 0}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=r"at least 1|\(0, 1\]"):
        Square(**settings)


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


def outcomes(digits, norm, count, queries, seeds):
    """Which images stand, (seeds, n) each: ours, the authors' code with windows that reach everywhere, and as it is."""
    authors = pytest.importorskip("pyautoattack.square").SquareAttack

    class Reaching(authors):
        def random_int(self, low=0, high=1, shape=(1,)):
            return super().random_int(low, high + 1, list(shape))

    model, x, y = digits
    x, y = x[:count], y[:count]
    threat = Threat(norm, 0.15 if norm == "linf" else 0.8)
    stands = [[], [], []]
    for seed in range(seeds):
        found = [Square(threat, queries=queries)(model, x, y, draws(len(x), seed))]
        for kind in (Reaching, authors):
            name = {"linf": "Linf", "l2": "L2"}[norm]
            other = kind(model, norm=name, n_queries=queries, eps=float(threat.eps), seed=seed, resc_schedule=False)
            found.append(other.perturb(x, y))
        for attack, images in zip(stands, found, strict=True):
            attack.append((model(images).argmax(1) == y).double())
    return [torch.stack(attack) for attack in stands]


def compare(digits, norm, count, queries, seeds):
    """Over the seeds each image stands or falls like a coin of its own: the images' variances add up to the mean's.

    The authors' windows never reach the last row or column: of 8 x 8 pixels that matters, and theirs breaks less.
    """
    ours, theirs, as_it_is = outcomes(digits, norm, count, queries, seeds)
    assert 0.1 < ours.mean() < 0.95
    variance = (ours.var(0) + theirs.var(0)).sum() / seeds / ours.shape[1] ** 2
    # A point is left for the start in l2, which they do not draw in the last row and column either.
    assert abs(ours.mean() - theirs.mean()) < 3.5 * variance.sqrt() + 0.01
    assert variance.sqrt() < 0.02
    assert ours.mean() <= as_it_is.mean() + 0.01


@NORM
def test_it_breaks_what_the_authors_code_breaks(norm, digits):
    compare(digits, norm, count=120, queries=150, seeds=4)


@pytest.mark.slow
@NORM
def test_it_breaks_what_the_authors_code_breaks_in_more_queries(norm, digits):
    compare(digits, norm, count=400, queries=500, seeds=6)
