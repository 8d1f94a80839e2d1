"""Carlini & Wagner's l2 attack: closed forms on linear models, and what it promises on any."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, TwoClasses, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from attacks import Threat
from attacks.carlini import CWL2
from attacks.objectives import margin

QUICK = {"steps": 60, "search_steps": 5, "initial_c": 0.1, "lr": 0.05}


def net(shape=(3, 4, 4), dtype=torch.float32, classes=5, seed=0):
    """A fixed network on inputs of any shape."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 2 / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def length(delta):
    return delta.flatten(1).norm(dim=1)


@pytest.fixture(scope="module")
def digits():
    """A small CNN on the embedded digits, with images that it classifies correctly."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(150):
            rows = torch.randint(1400, (128,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()
    x, y = x[1400:], y[1400:]
    right = model(x).argmax(1) == y
    return model, x[right][:30], y[right][:30]


# --- closed forms ---


@pytest.mark.parametrize("confidence", [0.0, 2.0])
def test_the_nearest_point_beyond_a_boundary(confidence):
    """``(|f| + confidence) / |w|``; the search ends within a few percent of it."""
    model = TwoClasses(torch.randn(48, dtype=torch.float64), scale=3.0)
    x = 0.4 + 0.2 * torch.rand(6, 3, 4, 4, dtype=torch.float64)
    model.bias = -float((x.flatten(1) @ model.weight.detach()).mean())
    y = model(x).argmax(1)
    attack = CWL2(steps=300, initial_c=0.1, confidence=confidence)
    found = attack(model, x, y)
    expected = (-margin(model(x), y) + confidence).detach() / (3 * model.weight.detach().norm())
    assert (margin(model(found), y) > confidence).all()
    assert (length(found - x) >= expected).all()
    assert (length(found - x) <= 1.03 * expected + 1e-3).all()


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_pixels_at_the_edge_can_move(edge):
    """All of an image is at an edge, so every pixel must leave it."""
    x = torch.full((1, 3, 2, 2), edge)
    inward = 1 - 2 * edge
    model = TwoClasses(torch.full((12,), inward), bias=-inward * 12 * edge - 1.2)  # the class changes 0.1 away
    assert model(x).argmax(1) == 0
    found = CWL2(steps=400)(model, x, torch.tensor([0]))
    assert model(found).argmax(1) == 1
    torch.testing.assert_close(found, x + 0.1 * inward, rtol=0, atol=0.005)


# --- what holds for every model ---


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(2, 1, 1), (3, 4, 4), (1, 3, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    box=st.sampled_from([(0.0, 1.0), (-6.0, 6.0)]),
    classes=st.integers(2, 6),
    seed=st.integers(0, 10**6),
)
def test_an_example_is_in_the_box_and_breaks_the_model_or_is_the_image(shape, dtype, box, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = box[0] + (box[1] - box[0]) * torch.rand(5, *shape, generator=generator, dtype=dtype)
    kind = torch.rand(x.shape, generator=generator)
    x = torch.where(kind < 0.2, box[0], torch.where(kind < 0.4, box[1], x)).to(dtype)
    model, y = net(shape, dtype, classes, seed), torch.randint(classes, (5,), generator=generator)
    wrong = model(x).argmax(1) != y
    found = CWL2(Threat("l2", 1, box), **QUICK)(model, x, y)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found.min() >= box[0]
    assert found.max() <= box[1]
    assert found[wrong].equal(x[wrong])
    unmoved = (found == x).flatten(1).all(1)
    assert (unmoved | (model(found).argmax(1) != y)).all()


def test_more_searches_never_lengthen_a_perturbation_and_break_more():
    model, x = net(dtype=torch.float64), torch.rand(12, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    found = [CWL2(steps=40, search_steps=k, lr=0.02)(model, x, y) for k in (2, 5, 9)]
    broken = [model(part).argmax(1) != y for part in found]
    for few, many in ((0, 1), (1, 2)):
        assert (broken[many] | ~broken[few]).all()
        both = broken[few]
        assert (length(found[many] - x)[both] <= length(found[few] - x)[both]).all()
    assert broken[2].sum() > broken[0].sum()


def test_the_nearest_of_all_iterates_is_kept():
    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, t):
            self.seen.append(t.detach().clone())
            return model(t)

    model, x = net(dtype=torch.float64), torch.rand(1, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    # A rate so high that Adam crosses the boundary and goes on: its last success is not its nearest.
    found = CWL2(steps=7, search_steps=1, initial_c=100.0, lr=0.3)(recording := Recording(), x, y)
    seen = torch.cat(recording.seen)
    broken = seen[model(seen).argmax(1) != y]
    distances = length(broken - x)
    torch.testing.assert_close(length(found - x)[0], distances.min())
    assert distances[-1] > 1.01 * distances.min()


def test_images_leave_once_they_are_within_the_radius():
    model, x = net(dtype=torch.float64), torch.rand(8, 3, 4, 4, dtype=torch.float64)
    y, threat = model(x).argmax(1), Threat("l2", 1.0)
    patient, hasty = Counting(model), Counting(model)
    attack = CWL2(threat, **QUICK)
    everything, enough = attack(patient, x, y), attack.evaluating()(hasty, x, y)
    assert sum(hasty.sizes) < 0.5 * sum(patient.sizes)
    assert threat.holds(enough, x).equal(threat.holds(everything, x))  # these have the same chance of success
    assert (model(enough).argmax(1) != y).equal(model(everything).argmax(1) != y)
    # Without a radius there is no end to getting nearer.
    assert CWL2(threat, unlimited=True, **QUICK).evaluating()(model, x, y).equal(everything)


def test_an_image_that_makes_no_progress_ends_its_descent():
    """The model is constant, so that after two checks there is nothing to be gained."""

    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :2] + torch.tensor([1.0, 0.0])

    counting, x = Counting(Constant()), torch.rand(3, 1, 2, 2)
    found = CWL2(steps=100, search_steps=2)(counting, x, torch.zeros(3, dtype=torch.long))
    assert found.equal(x)
    assert len(counting.sizes) == 1 + 2 * 11


def test_an_image_does_not_depend_on_its_batch():
    model, x = net(dtype=torch.float64), torch.rand(7, 3, 4, 4, dtype=torch.float64)
    y, attack = model(x).argmax(1), CWL2(**QUICK)
    parts = [attack(model, x[i : i + 2], y[i : i + 2]) for i in range(0, 7, 2)]
    torch.testing.assert_close(torch.cat(parts), attack(model, x, y), rtol=0, atol=1e-6)


def test_no_image_costs_more_than_its_budget():
    attack, counting = CWL2(steps=3, search_steps=2, initial_c=100.0, lr=1e-3), Counting(net())
    x = torch.rand(4, 3, 4, 4)
    attack(counting, x, counting.model(x).argmax(1))
    assert len(counting.sizes) == attack.budget


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_model_is_untouched(network, batch, batchnorm):
    x, y = batch
    with untouched(network):
        CWL2(steps=4, search_steps=2, batchnorm=batchnorm)(network, x, y)


# --- against foolbox ---


@pytest.mark.slow
def test_it_is_as_good_as_foolbox(digits):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits
    found = CWL2(steps=300, search_steps=6)(model, x, y)
    oracle = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=300, stepsize=0.01)
    theirs = oracle.run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y)
    ours_break, theirs_break = model(found).argmax(1) != y, model(theirs).argmax(1) != y
    assert ours_break.sum() >= theirs_break.sum()
    both = ours_break & theirs_break
    assert both.sum() > 20
    assert length(found - x)[both].mean() <= 1.02 * length(theirs - x)[both].mean()


# --- its description ---


def test_the_name_says_what_differs():
    assert CWL2().name == "CW-l2"
    attack = CWL2(steps=50, search_steps=3, initial_c=1.0, lr=0.1, confidence=5.0, unlimited=True)
    assert attack.name == "CW-l2 50 steps 3 searches c 1 lr 0.1 confidence 5 unlimited"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "1 step"),
        ({"search_steps": 0}, "1 search step"),
        ({"initial_c": 0.0}, "positive"),
        ({"lr": -1.0}, "positive"),
        ({"confidence": -1.0}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
    ],
)
def test_what_it_cannot_be_given(options, says):
    with pytest.raises(ValueError, match=says):
        CWL2(**options)
