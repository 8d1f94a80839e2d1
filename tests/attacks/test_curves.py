"""Security curves: the attacks that make their points, and their picture."""

import numpy as np
import pytest
import torch
from attack_helpers import TwoClasses
from matplotlib.figure import Figure
from suite_helpers import THREAT, batches, halves

from attacks import APGD, EOT, FGSM, PGD, AutoAttack, Radius, Strong, Threat, run_suite
from attacks.curves import Curve, draw
from attacks.records import share


def eps_of(attack):
    """The radius of an attack and of all that it is made of."""
    return [attack.threat.eps, *(eps for part in getattr(attack, "parts", ()) for eps in eps_of(part))] + (
        eps_of(attack.attack) if hasattr(attack, "attack") else []
    )


WRAPPED = [
    (FGSM(), 1),
    (Strong(PGD()), 2),
    (EOT(Strong(PGD())), 3),
    (AutoAttack(attacks=[FGSM(), Strong(APGD())]), 4),
    (AutoAttack(), 5),
    (Strong(AutoAttack(attacks=[FGSM(), PGD()])), 4),
]


@pytest.mark.parametrize(("attack", "count"), WRAPPED, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 2.0, (-1.0, 1.0))], ids=str)
def test_every_part_of_an_attack_has_the_radius_of_its_point(attack, count, threat):
    curve = Curve(attack, eps=["2/255", 0.0, 0.25])
    made = curve.attacks(threat)
    assert curve.values == [2 / 255, 0.0, 0.25]
    assert [eps_of(point) for point in made] == [[value] * count for value in curve.values]
    for point in made:
        assert (point.threat.norm, point.threat.bounds) == (threat.norm, threat.bounds)
        assert point.name == attack.name
    assert str(made[0].threat) == f"{threat.norm} 2/255"  # as it was written
    assert attack.given_threat is None  # what was given stays as it is


def test_an_attacks_own_norm_is_kept():
    (point,) = Curve(FGSM(Threat("l2", 1.0)), eps=[0.5]).attacks(Threat("linf", 0.1, (-1.0, 1.0)))
    assert str(point.threat) == "l2 0.5"
    assert point.threat.bounds == (-1.0, 1.0)


def test_steps_are_varied_and_nothing_else():
    attack = PGD(steps=7, restarts=2, loss="margin")
    made = Curve(attack, steps=[1, 20]).attacks(THREAT)
    assert [point.name for point in made] == ["PGD-1 margin x2", "PGD-20 margin x2"]
    assert {point.threat for point in made} == {THREAT}
    assert attack.steps == 7
    (point,) = Curve(APGD(steps=100), steps=[3]).attacks(THREAT)
    assert point.budget == APGD(steps=3).budget


def test_a_curve_over_eps_by_hand():
    """The images that are right when clean are 0.4, 0.2, 0.05, 0.02, 0.4, 0.2 and 0.05 away from the boundary."""
    points = Curve(FGSM(), eps=[0.0, 0.03, 0.1, 0.3, 0.5]).attacks(THREAT)
    values = [list(run_suite(halves(), batches(), [point], THREAT).records())[1].value for point in points]
    assert values == [0.7, 0.6, 0.4, 0.2, 0.0]


def test_a_curve_over_steps_by_hand():
    """By steps of 0.03 the boundary is reached after one, two or never within a radius of 0.1."""
    points = Curve(PGD(step_size=Radius(0.03), random_start=False), steps=[1, 2, 10]).attacks(THREAT)
    values = [list(run_suite(halves(), batches(), [point], THREAT).records())[1].value for point in points]
    assert values == [0.6, 0.4, 0.4]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "over eps or over steps"),
        ({"eps": []}, "over eps or over steps"),
        ({"steps": []}, "over eps or over steps"),
        ({"eps": [0.1], "steps": [1]}, "over eps or over steps"),
        ({"eps": ["8/0"]}, "no length"),
        ({"eps": [-0.1]}, "at least 0"),
    ],
    ids=str,
)
def test_a_curve_over_nothing_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Curve(PGD(), **arguments)


@pytest.mark.parametrize("attack", [FGSM(), AutoAttack(), Strong(PGD())], ids=lambda attack: attack.name)
def test_a_curve_over_the_steps_of_an_attack_without_any_is_refused(attack):
    with pytest.raises(ValueError, match="no steps to vary"):
        Curve(attack, steps=[1, 2])


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_below_one_are_refused(steps):
    with pytest.raises(ValueError, match="step"):
        Curve(PGD(), steps=[steps]).attacks(THREAT)


# --- the picture ---


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a curve of three points below a clean accuracy of 0.9; gives the axes that were saved and the file."""

    def drawing(curve):
        figures, save = [], Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda self, *a, **kw: [figures.append(self), save(self, *a, **kw)])
        points = [share(curve.attack.name, successes, 100, 1.0, "linf 0.1") for successes in (70, 40, 5)]
        path = draw(curve, share("clean", 90, 100, 1.0), points, tmp_path / "figures" / "curve.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert [found.name for found in path.parent.iterdir()] == ["curve.png"]
        return figures[0].axes[0], points

    return drawing


def test_a_curve_over_eps_starts_at_the_clean_accuracy(drawn):
    ax, points = drawn(Curve(PGD(steps=5), eps=["1/10", 0.2, 0.5]))
    (line,) = ax.lines
    assert line.get_xdata() == pytest.approx([0, 0.1, 0.2, 0.5])
    assert line.get_ydata() == pytest.approx([90, 70, 40, 5])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for x, record in zip([0.1, 0.2, 0.5], points, strict=True):
        ends = np.unique(corners[np.isclose(corners[:, 0], x), 1])
        assert (ends.min(), ends.max()) == pytest.approx((100 * record.low, 100 * record.high))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("radius (linf)", "accuracy, %")
    assert ax.get_title() == "PGD-5"
    assert ax.get_ylim() == (0, 100)


def test_a_curve_over_steps_shows_the_clean_accuracy_as_a_line(drawn):
    ax, _ = drawn(Curve(PGD(), steps=[1, 10, 100]))
    line, clean = ax.lines
    assert list(line.get_xdata()) == [1, 10, 100]
    assert line.get_ydata() == pytest.approx([70, 40, 5])
    assert list(clean.get_ydata()) == pytest.approx([90, 90])
    assert (ax.get_xlabel(), ax.get_xscale()) == ("steps (linf 0.1)", "log")


def test_an_attack_at_several_radii_has_a_name_at_each():
    """They may also run in one suite; the radius of the suite goes without saying."""
    hot = TwoClasses(torch.full((2,), 0.5), bias=-0.5)
    points = Curve(FGSM(), eps=["1/10", 0.3]).attacks(THREAT)
    result = run_suite(hot, batches(), points, Threat("linf", "1/10"))
    assert result.attacks == ["FGSM", "FGSM linf 0.3"]
