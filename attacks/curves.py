"""Security curves: robust accuracy against the radius, or against the number of steps."""

import copy
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from attacks.base import Attack
from attacks.records import Record
from attacks.threat import Radius, Threat


class Curve:
    """An attack at several radii or with several numbers of steps.

    Args:
        attack: the attack that is varied.
        eps: radii, in the units of the box.
        steps: numbers of steps, for an attack that has any. One of the two is given.
    """

    def __init__(self, attack: Attack, eps: list[Radius] | None = None, steps: list[int] | None = None) -> None:
        if (eps is None) == (steps is None) or not (eps or steps):
            raise ValueError("A curve goes over eps or over steps: give one list of values.")
        if eps is not None and not attack.limited:
            raise ValueError(f"{attack.name} counts changes of any length, so that a curve over eps says nothing.")
        if steps is not None and not hasattr(attack, "steps"):
            raise ValueError(f"{attack.name} has no steps to vary: give its curve a list of eps.")
        if steps is not None and min(steps) < 1:
            raise ValueError(f"An attack makes at least 1 step, got {min(steps)}.")
        self.attack = attack
        self.over = "eps" if steps is None else "steps"
        self.values: Sequence[float] = [Radius(value) for value in eps] if eps else list(steps or ())

    @property
    def name(self) -> str:
        """What its figure is called."""
        # Of an attack whose steps vary, its own number of them says nothing.
        own = "" if self.over == "eps" else f"-{self.attack.steps}"  # type: ignore[attr-defined]
        return f"{self.attack.name.replace(own, '', 1)} over {self.over}"

    def attacks(self, threat: Threat) -> list[Attack]:
        """The attacks that make its points.

        Args:
            threat: the suite's, for attacks that state none.
        """
        attack = self.attack.under(threat)
        if self.over == "eps":
            return [attack.resized(Radius(value)) for value in self.values]
        made = [copy.copy(attack) for _ in self.values]
        for attack, steps in zip(made, self.values, strict=True):
            vars(attack)["steps"] = steps
        return made


def draw(curve: Curve, clean: Record, points: Sequence[Record], path: Path) -> Path:
    """Draws a curve with its 95 % intervals, from the clean accuracy at eps = 0.

    Args:
        curve: the curve.
        clean: accuracy without attack.
        points: its points, in the order of its values.
        path: of the picture.
    """
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    ax = figure.subplots()
    shown = [clean, *points] if curve.over == "eps" else list(points)
    x = [0.0, *curve.values] if curve.over == "eps" else list(curve.values)
    ax.fill_between(x, [100 * r.low for r in shown], [100 * r.high for r in shown], alpha=0.2, linewidth=0)
    ax.plot(x, [100 * r.value for r in shown], marker="o", markersize=3)
    if curve.over == "steps":
        ax.axhline(100 * clean.value, color="grey", linewidth=0.8, linestyle=":", label="clean")
        ax.set_xscale("log")
        ax.legend(frameon=False)
    ax.set(
        ylim=(0, 100),
        ylabel="accuracy, %",
        xlabel=_label(curve, points),
        title=curve.name.removesuffix(f" over {curve.over}"),
    )
    ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _label(curve: Curve, points: Sequence[Record]) -> str:
    norm = points[0].threat.split(" ")[0]
    return f"radius ({norm})" if curve.over == "eps" else f"steps ({points[0].threat})"
