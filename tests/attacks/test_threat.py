"""Threat models: radii as people write them, and the geometry of both balls against NumPy."""

import copy
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jsonargparse import ArgumentParser
from numpy.testing import assert_allclose
from scipy import stats

from attacks import Draws, Radius, Threat

NORMS = ("linf", "l2")
WIDE = (-100.0, 100.0)  # a box that nothing here leaves

norms = st.sampled_from(NORMS)
epsilons = st.sampled_from([0.0, 1e-3, 8 / 255, 0.3, 0.9])
shapes = st.sampled_from([(1, 1, 1), (3, 2, 2), (1, 5, 3)])


@st.composite
def images(draw, low: float = 0.0, high: float = 1.0, count: int = 1):
    """Arrays of one shape (B, C, H, W); the first within [0, 1], the others within [low, high]."""
    shape = (draw(st.integers(1, 4)), *draw(shapes))
    bounds = [(0.0, 1.0)] + [(low, high)] * (count - 1)
    found = [draw(hnp.arrays(np.float64, shape, elements=st.floats(a, b, width=32))) for a, b in bounds]
    return found[0] if count == 1 else found


def length(delta, norm):
    """The norm of every image's perturbation, by NumPy."""
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=np.inf if norm == "linf" else 2, axis=1)


# --- radii ---


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_fraction_is_its_quotient(above, below):
    assert Radius(f"{above}/{below}") == float(Fraction(above, below))
    assert str(Radius(f"{above}/{below}")) == f"{above}/{below}"


@pytest.mark.parametrize(("given", "value"), [(0.3, 0.3), ("0.3", 0.3), (1, 1.0), (0, 0.0), ("1e-2", 0.01)])
def test_a_number_is_itself(given, value):
    assert Radius(given) == value


def test_it_is_a_float():
    radius = Radius("8/255")
    assert isinstance(radius, float)
    assert radius == 8 / 255 == Radius(8 / 255)
    assert hash(radius) == hash(8 / 255)
    assert radius * 2 == 16 / 255
    assert Radius(radius) == radius
    assert str(Radius(radius)) == "8/255"


@pytest.mark.parametrize("text", ["", "a", "8/", "/255", "8/0", "8/255/2", "8:255", "nan", "inf", "eps"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ValueError, match="length"):
        Radius(text)


@pytest.mark.parametrize("value", [-0.1, "-0.1", "-8/255", float("nan"), float("inf")])
def test_negative_and_infinite_lengths_are_refused(value):
    with pytest.raises(ValueError, match="at least 0"):
        Radius(value)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))], ids=["copy", "deepcopy", "pickle"]
)
@pytest.mark.parametrize("text", ["8/255", "0.3"])
def test_copies_keep_value_and_text(again, text):
    radius = again(Radius(text))
    assert radius == Radius(text)
    assert type(radius) is Radius
    assert str(radius) == text
    threat = again(Threat("l2", Radius(text), (-1, 1)))
    assert threat == Threat("l2", Radius(text), (-1, 1))
    assert str(threat) == f"l2 {text}"


def test_the_command_line_reads_and_writes_fractions():
    parser = ArgumentParser()
    parser.add_argument("--eps", type=Radius)
    args = parser.parse_args(["--eps=4/255"])
    assert args.eps == 4 / 255
    assert parser.dump(args).strip() == "eps: 4/255"
    assert parser.parse_string(parser.dump(args)).eps == 4 / 255
    assert parser.dump(parser.parse_args(["--eps=0.3"])).strip() == "eps: 0.3"


# --- threats ---


def test_defaults_and_text():
    assert str(Threat()) == "linf 8/255"
    assert Threat() == Threat("linf", 8 / 255)
    assert Threat().bounds == (0.0, 1.0)
    assert str(Threat("l2", 0.5)) == "l2 0.5"
    assert Threat("linf", "8/255").eps == 8 / 255


def test_a_threat_takes_the_datasets_box_unless_it_states_its_own():
    assert Threat().within((-6.0, 6.0)).bounds == (-6.0, 6.0)
    assert Threat(box=(0.0, 1.0)).within((-6.0, 6.0)).bounds == (0.0, 1.0)
    assert Threat("l2", "1/2").within((-6.0, 6.0)) == Threat("l2", 0.5, (-6.0, 6.0))


@pytest.mark.parametrize("eps", [8, 8.0, "8"])
def test_pixels_counted_to_255_draw_a_warning_that_names_the_fraction(eps):
    with pytest.warns(UserWarning, match=r"8/255"):
        Threat("linf", eps)


@pytest.mark.parametrize(
    "arguments",
    [("linf", "8/255"), ("linf", 0.3), ("linf", 0), ("l2", 0.5), ("l2", 3), ("linf", 8, (0.0, 255.0))],
    ids=str,
)
def test_sensible_radii_draw_no_warning(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Threat(*arguments)


@pytest.mark.parametrize("box", [(1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0), (0.0, float("nan"))], ids=str)
def test_a_box_goes_from_low_to_high(box):
    with pytest.raises(ValueError, match="box"):
        Threat(box=box)


@pytest.mark.parametrize("norm", ["l1", "Linf"])
def test_unknown_norms_are_refused(norm):
    """Notebooks have no parser that checks the literal: ``Linf`` must not pass for another norm."""
    with pytest.raises(ValueError, match=norm):
        Threat(norm, 0.3)


# --- geometry ---


@given(images(-3, 3, count=2), norms, epsilons, st.sampled_from([None, (0.0, 1.0), (-1.0, 2.0)]))
def test_project_is_the_nearest_point_of_the_ball_and_then_of_the_box(pair, norm, eps, box):
    x, x_adv = pair
    delta = x_adv - x
    if norm == "linf":
        inside = np.clip(delta, -eps, eps)
    else:
        lengths = length(delta, "l2").reshape(-1, 1, 1, 1)
        inside = delta * np.minimum(1, eps / np.maximum(lengths, 1e-300))
    expected = np.clip(x + inside, *(box or (0, 1)))
    threat = Threat(norm, eps, box)
    found = threat.project(torch.tensor(x_adv), torch.tensor(x))
    assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert_allclose(threat.project(found, torch.tensor(x)), found, rtol=0, atol=1e-9)
    assert (threat.distance(found, torch.tensor(x)) <= eps + 1e-9).all()


@given(images(-1, 1, count=3), norms, st.sampled_from([1e-3, 0.3, 0.9]))
def test_no_point_of_the_ball_is_nearer_than_the_shortened_one(triple, norm, eps):
    """A projection P on a convex set satisfies <v - P, q - P> <= 0 for every q of the set."""
    _, v, other = triple
    q = other * eps / np.maximum(length(other, norm), 1e-12).reshape(-1, 1, 1, 1)
    p = Threat(norm, eps).shorten(torch.tensor(v)).numpy()
    assert (length(p, norm) <= eps + 1e-9).all()
    assert (((v - p) * (q - p)).reshape(len(v), -1).sum(1) <= 1e-7).all()


@given(images(0, 1, count=2), norms)
def test_points_of_the_ball_stay_where_they_are(pair, norm):
    x, other = (torch.tensor(part, dtype=torch.float32) for part in pair)
    threat = Threat(norm, 1.0) if norm == "linf" else Threat(norm, x[0].numel() ** 0.5 + 1e-3)
    assert_allclose(threat.project(other, x), other, rtol=0, atol=1e-6)
    assert threat.project(x, x).equal(x)


@given(images(-3, 3, count=2), st.sampled_from([(0.0, 1.0), (-0.5, 0.5)]))
def test_clamp(pair, box):
    assert_allclose(Threat(box=box).clamp(torch.tensor(pair[1])), np.clip(pair[1], *box))


@given(images(-3, 3, count=2), norms)
def test_distance(pair, norm):
    x, x_adv = pair
    found = Threat(norm, 0.1).distance(torch.tensor(x_adv), torch.tensor(x))
    assert found.shape == (len(x),)
    assert_allclose(found, length(x_adv - x, norm), rtol=1e-12, atol=1e-12)


@given(images(-1, 1, count=3), norms)
def test_no_direction_of_unit_norm_rises_faster_than_the_steepest(triple, norm):
    """The largest inner product with a unit vector is the dual norm: l1 for linf, l2 for l2."""
    _, gradient, other = triple
    direction = Threat(norm, 0.1).steepest(torch.tensor(gradient)).numpy()
    assert (length(direction, norm) <= 1 + 1e-9).all()
    rise = (gradient * direction).reshape(len(gradient), -1).sum(1)
    flat = gradient.reshape(len(gradient), -1)
    dual = np.abs(flat).sum(1) if norm == "linf" else np.linalg.norm(flat, axis=1)
    assert_allclose(rise, dual, rtol=1e-6, atol=1e-9)
    unit = other / np.maximum(length(other, norm), 1e-12).reshape(-1, 1, 1, 1)
    assert ((gradient * unit).reshape(len(gradient), -1).sum(1) <= rise + 1e-9).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("norm", NORMS)
def test_the_steepest_direction_does_not_depend_on_the_gradients_scale(norm, scale):
    """A saturated softmax leaves gradients whose squares underflow in float32; their direction is still there."""
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm, 0.1)
    torch.testing.assert_close(threat.steepest(gradient * scale), threat.steepest(gradient), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_where_nothing_rises_there_is_no_direction(norm):
    assert Threat(norm, 0.1).steepest(torch.zeros(2, 3, 4, 4)).equal(torch.zeros(2, 3, 4, 4))
    threat = Threat(norm, 0.1)
    assert threat.shorten(torch.zeros(2, 3, 4, 4)).equal(torch.zeros(2, 3, 4, 4))


# --- starts ---


def starts(norm, eps, shape, count, box=WIDE, x=0.5):
    image = torch.full((count, *shape), x)
    return Threat(norm, eps, box).start(image, Draws(torch.arange(count), 3)) - image


def test_a_linf_start_is_uniform_in_every_coordinate():
    delta = starts("linf", 0.3, (1, 2, 3), 4000).flatten(1).numpy() / 0.3
    for coordinate in delta.T:
        assert stats.kstest(coordinate, "uniform", (-1, 2)).pvalue > 1e-3
    correlation = np.corrcoef(delta.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / 4000**0.5


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 2, 2), (1, 9, 5)])
def test_an_l2_start_is_uniform_in_the_ball(shape):
    """In d dimensions (r / eps)^d is uniform, and a coordinate of the direction squared follows Beta(1/2, (d-1)/2)."""
    delta = starts("l2", 0.5, shape, 4000).flatten(1).numpy().astype(np.float64) / 0.5
    d, radius = delta.shape[1], np.linalg.norm(delta, axis=1)
    assert radius.max() <= 1 + 1e-6
    assert stats.kstest(radius**d, "uniform").pvalue > 1e-3
    direction = delta / radius[:, None]
    for coordinate in (0, d - 1):
        assert stats.kstest(direction[:, coordinate] ** 2, stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3
        assert stats.binomtest(int((direction[:, coordinate] > 0).sum()), 4000).pvalue > 1e-3
    assert abs(stats.spearmanr(radius, direction[:, 0]).statistic) < 5 / 4000**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_clamped_to_the_box(norm):
    free = starts(norm, 0.4, (3, 4, 4), 50, x=0.9)
    boxed = starts(norm, 0.4, (3, 4, 4), 50, box=(0.0, 1.0), x=0.9)
    torch.testing.assert_close(0.9 + boxed, (0.9 + free).clamp(0, 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_start_keeps_the_images_precision_and_a_ball_without_radius_is_a_point(norm, dtype):
    x = torch.rand(3, 3, 4, 4, dtype=dtype)
    start = Threat(norm, 0.1).start(x, Draws(torch.arange(3)))
    assert start.dtype == dtype
    assert start.shape == x.shape
    assert not start.equal(x)
    assert Threat(norm, 0).start(x, Draws(torch.arange(3))).equal(x)
