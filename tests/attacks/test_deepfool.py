"""DeepFool: closed forms on linear models, and what it promises on any."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, TwoClasses, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from attacks import Strong, Threat
from attacks.deepfool import DeepFool

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
WIDE = Threat("l2", 10, (-100.0, 100.0))  # a box that nothing here leaves


def net(shape=(3, 4, 4), dtype=torch.float32, classes=5, seed=0):
    """A fixed network on inputs of any shape."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 2 / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def length(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)


@pytest.fixture(scope="module")
def digits():
    """A small CNN on the embedded digits, with images that it classifies correctly."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
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
    return model, x[right][:150], y[right][:150]


# --- closed forms ---


@NORM
@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_the_nearest_point_beyond_one_boundary(norm, overshoot):
    """``(1 + overshoot) |f| / |w|_*`` along the steepest direction, w the normal and ``*`` the dual norm."""
    x = torch.rand(6, 3, 4, 4, dtype=torch.float64)
    model = TwoClasses(torch.randn(48, dtype=torch.float64), 0.1, scale=7.0)
    y, w = model(x).argmax(1), model.weight.detach()
    f = (x.flatten(1) @ w + 0.1).reshape(-1, 1, 1, 1)
    step = w / w.square().sum() if norm == "l2" else w.sign() / w.abs().sum()
    expected = x - (1 + overshoot) * f * step.reshape(1, 3, 4, 4)
    found = DeepFool(WIDE, overshoot=overshoot, norm=norm)(model, x, y)
    # A 1e-5th of the box's width of 200 is added.
    assert length(found - expected, norm).max() <= 1.001 * (1 + overshoot) * 200e-5
    assert (model(found).argmax(1) != y).all()


@NORM
@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_the_nearest_of_several_boundaries(norm, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(6, classes).double()
    for parameter in linear.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.rand(4, 6, 1, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), linear)
    z, weight = model(x).detach().numpy(), linear.weight.detach().numpy()
    y = z.argmax(1)
    found = DeepFool(WIDE, norm=norm)(model, x, torch.tensor(y))
    for row, own in enumerate(y):
        others = np.delete(np.arange(classes), own)
        dual = np.linalg.norm(weight[others] - weight[own], ord=2 if norm == "l2" else 1, axis=1)
        nearest = ((z[row, own] - z[row, others]) / dual).min()
        assert_allclose(length(found - x, norm)[row], 1.02 * (nearest + 200e-5), rtol=1e-6)


def test_only_the_likeliest_classes_are_candidates():
    """The runner-up's boundary is further away than the third class's, whose logit is steep."""
    linear = nn.Linear(1, 3).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [1.0], [-9.0]]))
        linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    model, x, y = nn.Sequential(nn.Flatten(), linear), torch.full((1, 1, 1, 1), 0.2).double(), torch.tensor([0])
    box = Threat("l2", 10, (-2.0, 2.0))
    assert model(DeepFool(box)(model, x, y)).argmax(1) == 2
    assert model(DeepFool(box, candidates=2)(model, x, y)).argmax(1) == 1


# --- what holds for every model ---


@NORM
@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-60, 60), seed=st.integers(0, 1000))
def test_the_logits_scale_does_not_matter(norm, exponent, seed):
    """By a power of two nothing is rounded, so nothing may differ at all, nor underflow."""
    model, x = net(seed=seed), torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = model(x).argmax(1)
    attack = DeepFool(norm=norm)
    scaled = attack(lambda_module(lambda t: model(t) * 2.0**exponent), x, y)
    assert scaled.equal(attack(model, x, y))
    assert not scaled.equal(x)


def lambda_module(function):
    class Module(nn.Module):
        def forward(self, x):
            return function(x)

    return Module()


def test_a_strong_version_finds_the_same():
    model, x = net(dtype=torch.float64), torch.rand(8, 3, 4, 4, dtype=torch.float64)
    y, attack = model(x).argmax(1), DeepFool(Threat("l2", 0.5))
    torch.testing.assert_close(Strong(attack, 40.0)(model, x, y), attack(model, x, y))


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    shape=st.sampled_from([(2, 1, 1), (3, 4, 4), (1, 3, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    box=st.sampled_from([(0.0, 1.0), (-6.0, 6.0)]),
    classes=st.integers(2, 12),
    seed=st.integers(0, 10**6),
)
def test_examples_stay_in_the_box_and_only_what_is_wrong_stays_put(norm, shape, dtype, box, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = box[0] + (box[1] - box[0]) * torch.rand(5, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
    model = net(shape, dtype, classes, seed)
    y = torch.randint(classes, (5,), generator=generator)
    y = torch.where(torch.rand(5, generator=generator) < 0.6, model(x).argmax(1), y)
    wrong = model(x).argmax(1) != y
    found = DeepFool(Threat("l2", 1, box), norm=norm)(model, x, y)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found.min() >= box[0]
    assert found.max() <= box[1]
    assert found[wrong].equal(x[wrong])
    inside = ~wrong & ((x > box[0]) & (x < box[1])).flatten(1).all(1)  # in a corner every step may be clamped away
    assert not (found == x).flatten(1).all(1)[inside].any()


@NORM
def test_what_is_misclassified_is_returned_and_not_asked_about_again(norm):
    model, x = net(), torch.rand(8, 3, 4, 4)
    y = model(x).argmax(1)
    y[::2] = (y[::2] + 1) % 5
    counting = Counting(model)
    found = DeepFool(norm=norm)(counting, x, y)
    assert found[::2].equal(x[::2])
    assert (model(found[1::2]).argmax(1) != y[1::2]).all()
    assert counting.sizes[:2] == [8, 4]
    assert counting.sizes == sorted(counting.sizes, reverse=True)


@NORM
def test_without_any_gradient_it_gives_up_at_once(norm):
    counting = Counting(lambda_module(lambda t: 0 * t.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])))
    x = torch.rand(4, 3, 2, 2)
    assert DeepFool(norm=norm)(counting, x, torch.zeros(4, dtype=torch.long)).equal(x)
    assert len(counting.sizes) == 2


@NORM
def test_an_image_does_not_depend_on_its_batch(norm):
    model, x = net(dtype=torch.float64), torch.rand(9, 3, 4, 4, dtype=torch.float64)
    y, attack = model(x).argmax(1), DeepFool(norm=norm)
    parts = [attack(model, x[i : i + 2], y[i : i + 2]) for i in range(0, 9, 2)]
    torch.testing.assert_close(torch.cat(parts), attack(model, x, y))


def test_no_image_costs_more_than_its_budget():
    attack, counting = DeepFool(steps=2), Counting(net())
    x = torch.rand(8, 3, 4, 4)
    attack(counting, x, counting.model(x).argmax(1))
    assert 1 < len(counting.sizes) <= attack.budget


@NORM
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_model_is_untouched(network, batch, norm, batchnorm):
    x, y = batch
    with untouched(network):
        DeepFool(norm=norm, batchnorm=batchnorm)(network, x, y)


# --- against foolbox ---


@NORM
def test_it_breaks_all_that_foolbox_breaks_by_no_larger_perturbations(digits, norm):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits
    found = DeepFool(norm=norm)(model, x, y)
    oracle = foolbox.attacks.L2DeepFoolAttack if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack
    theirs = oracle(steps=50, overshoot=0.02).run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y)
    assert (model(found).argmax(1) != y).all()
    assert length(found - x, norm).mean() <= length(theirs - x, norm).mean()


# --- its description ---


def test_the_name_says_what_differs():
    assert DeepFool().name == "DeepFool"
    attack = DeepFool(steps=9, overshoot=0.1, norm="linf", candidates=3, unlimited=True)
    assert attack.name == "DeepFool linf 9 steps overshoot 0.1 3 classes unlimited"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "1 step"),
        ({"overshoot": -0.1}, "overshoot"),
        ({"overshoot": float("nan")}, "overshoot"),
        ({"norm": "l1"}, "linf, l2"),
        ({"candidates": 1}, "at least 2"),
        ({"batchnorm": "off"}, "batchnorm"),
    ],
)
def test_what_it_cannot_be_given(options, says):
    with pytest.raises(ValueError, match=says):
        DeepFool(**options)
