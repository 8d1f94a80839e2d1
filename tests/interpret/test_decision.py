"""Decisions in the plane: against linear networks, whose boundaries are known."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from torch import nn

from interpret.calibration import hardness_records
from interpret.decision import colours, crossed, decision_map, hardness, hardness_table, mixed


class Plane(nn.Module):
    """Logits ``scale (W p + b)`` of points, behind a dropout that eval mode turns into nothing."""

    def __init__(self, weight, bias, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        self.drop = nn.Dropout(0.5)
        self.scale = scale

    def forward(self, x):
        assert x.shape[1:] == (2, 1, 1)
        return self.scale * (self.drop(x).flatten(1) @ self.weight.T + self.bias)


def halves(w, b, scale=1.0):
    """Class 1 where ``w . p + b > 0``, by p = sigmoid(scale (w . p + b))."""
    return Plane([[0.0, 0.0], w], [0.0, b], scale)


def points(count=200):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2


# --- maps ---


def test_rows_are_y_and_columns_x():
    found = decision_map(halves([3.0, 0.0], -3.0), (-2, 2), 4)
    assert found.shape == (4, 4, 2)
    middles = np.array([-1.5, -0.5, 0.5, 1.5])
    expected = 1 / (1 + np.exp(-(3 * middles - 3)))
    assert found[..., 1] == pytest.approx(np.broadcast_to(expected, (4, 4)), rel=1e-5)  # rises with the column
    upright = decision_map(halves([0.0, 3.0], -3.0), (-2, 2), 4)
    assert upright[..., 1] == pytest.approx(np.broadcast_to(expected[:, None], (4, 4)), rel=1e-5)
    assert found.sum(-1) == pytest.approx(1)


def test_temperature_divides_the_logits():
    hot, cold = (decision_map(halves([3.0, 1.0], 0.5, s), (-1, 1), 9, t) for s, t in ((10.0, 10.0), (1.0, 1.0)))
    assert hot == pytest.approx(cold, abs=1e-6)


def test_three_classes_are_red_green_and_blue():
    p = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert mixed(p) == pytest.approx(p)


@pytest.mark.parametrize("classes", [2, 5, 8, 12, 100])
def test_every_other_number_of_classes_has_colours_of_its_own(classes):
    pure = colours(classes)
    assert pure.shape == (classes, 3)
    assert len(np.unique(pure.round(6), axis=0)) == classes
    assert mixed(np.eye(classes)) == pytest.approx(pure)
    half = np.full((1, classes), 1 / classes)
    assert mixed(half)[0] == pytest.approx(pure.mean(0))


# --- boxes ---


@given(
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)).filter(lambda w: sum(map(abs, w)) > 0.1),
    st.floats(-1, 1),
    st.floats(0.05, 0.8),
)
def test_a_lines_boxes_are_those_nearer_to_it_than_the_radius(w, b, eps):
    """In l-inf the distance to w . p + b = 0 is |w . p + b| / |w|_1, reached in a corner, which the grid holds."""
    p = points()
    distance = ((p.double() @ torch.tensor(w, dtype=torch.float64) + b).abs() / sum(map(abs, w))).numpy()
    clear = np.abs(distance - eps) > 1e-4  # rounding decides the others
    found = crossed(halves(w, b), p, eps, (-100, 100))
    assert (found == (distance < eps))[clear].all()


def test_boxes_end_at_the_bounds():
    p = torch.tensor([[0.9, 0.0]])
    assert crossed(halves([1.0, 0.0], -1.05), p, 0.3, (-2, 2)).tolist() == [True]
    assert crossed(halves([1.0, 0.0], -1.05), p, 0.3, (-1, 1)).tolist() == [False]


def test_an_island_inside_the_box_is_found():
    class Island(nn.Module):
        def forward(self, x):
            inside = 0.1 - (x.flatten(1) - 0.2).norm(dim=1)
            return torch.stack([torch.zeros_like(inside), inside], 1)

    assert crossed(Island(), torch.tensor([[0.0, 0.0], [2.0, 0.0]]), 0.5, (-3, 3)).tolist() == [True, False]


# --- hardness ---


def test_hardness_by_hand():
    p = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-6.0, 0.0], [1.0, 5.0]])
    top = 1 / (1 + np.exp(-np.array([0.0, 3.0, 6.0, 1.0])))
    found = hardness(halves([1.0, 0.0], 0.0), p)
    assert found.mean == pytest.approx(top.mean(), rel=1e-6)
    assert found.share == 0.25  # only sigmoid(6) = 0.9975 exceeds 0.99
    mean, share = hardness_records(top, 1.5)
    assert (mean.value, share.value, mean.n, share.n) == (pytest.approx(found.mean), found.share, 4, 4)
    assert share.low < share.value < share.high
    assert mean.low == pytest.approx(stats.t.interval(0.95, 3, top.mean(), stats.sem(top))[0])
    assert mean.high == 1.0  # where Student's would lie beyond


def test_it_rises_with_the_temperature_that_a_network_was_trained_at():
    """Trained at T, the same decisions have logits T times as large, and they are used at T = 1."""
    found = [hardness(halves([1.0, -2.0], 0.3, scale=t), points()) for t in (1, 10, 40, 70, 100)]
    assert all(low.mean < high.mean and low.share <= high.share for low, high in pairwise(found))
    assert found[0].share < 0.2 < 0.9 < found[-1].share
    assert hardness(halves([1.0, -2.0], 0.3, scale=40.0), points(), 40.0) == pytest.approx(found[0])


def test_the_table_has_a_row_for_each_network():
    out = io.StringIO()
    rows = {"teacher": {"T = 1": halves([1.0, 0.0], 0.0), "T = 10": halves([1.0, 0.0], 0.0, 1e6)}, "student": {}}
    Console(file=out, width=100).print(hardness_table(rows, points()))
    (hard,) = [line for line in out.getvalue().splitlines() if "T = 10" in line]
    assert "1.000 [1.000, 1.000]" in hard
    assert "100.0 [98.1, 100.0]" in hard


# --- contract ---


def test_nothing_of_the_network_changes():
    model = halves([1.0, 2.0], 0.5)
    model.weight.grad = torch.ones_like(model.weight)
    model.train()
    with torch.inference_mode():
        decision_map(model, (-1, 1), 5)
        crossed(model, points(20), 0.1, (-2, 2))
    assert model.training
    assert model.drop.training
    assert model.weight.requires_grad
    assert torch.equal(model.weight.grad, torch.ones(2, 2))
    assert model.bias.grad is None


def test_what_cannot_be_shown_is_refused_in_a_sentence():
    model = halves([1.0, 2.0], 0.5)
    with pytest.raises(ValueError, match=r"points in the plane, .* got \(5, 3\)"):
        hardness(model, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        hardness(model, torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"bounds that rise and a size of at least 1, got \(1, -1\) and 5"):
        decision_map(model, (1, -1), 5)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        decision_map(model, (-1, 1), 5, 0)
    with pytest.raises(ValueError, match="radius of a box must be positive, got 0"):
        crossed(model, points(), 0, (-1, 1))
    with pytest.raises(ValueError, match="not finite"):
        hardness(halves([1.0, float("nan")], 0.5), points())
