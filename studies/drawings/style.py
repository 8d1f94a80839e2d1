"""How large figures are, how they are inked, and how they put things in words."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interpret.decision import PALETTE
from interpret.figures import SMALL, literal

WIDTH = 5.6  # inches: a figure as wide as a phone's screen shows 8 points as some 7 of its own
PAGE = 8.6  # inches: higher than that it does not fit on a printed page with its caption
INKS = (*PALETTE[:6], "#000000", "#999999")  # yellow, which is lost on white, is left out
DASHES = ("-", "--", "-.", ":")
MARKS = "osD^vP*X"
NAMED = 6  # runs that a caption or an alternative text names one by one
GRID = "#E5E5E5"

Item = TypeVar("Item")


def pages(items: Sequence[Item], count: int) -> Iterator[list[Item]]:
    """The items in parts of nearly equal size, none larger than ``count``."""
    parts = -(-len(items) // max(1, count))
    return (list(items[len(items) * n // parts : len(items) * (n + 1) // parts]) for n in range(parts))


def part_of(number: int, count: int) -> str:
    """A caption's word on the part of a figure that is too large for one page; empty for a whole one."""
    return f"Part {number} of {count}." if count > 1 else ""


def of(count: int, thing: str = "run") -> str:
    """So many of a thing."""
    return f"{count} {thing}{'s' * (count != 1)}"


def sentences(*parts: str) -> str:
    """Those that say something, one behind the other."""
    return " ".join(part for part in parts if part)


def some(names: Sequence[str]) -> str:
    """Names, in quotes where they have commas of their own, and of many how many more there are."""
    quoted = [f"“{name}”" if "," in name else name for name in names[:NAMED]]
    return ", ".join(quoted) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def range_of(values: Iterable[float], unit: str) -> str:
    """The extent of some values in words."""
    low, high = min(values := list(values)), max(values)
    return f"{number(low)} {unit}" if low == high else f"{number(low)} to {number(high)} {unit}"


def number(value: float) -> str:
    """A value to the digits that a picture can show."""
    size = abs(value)
    for unit, letter in ((1e9, " G"), (1e6, " M")):
        if size >= unit:
            return f"{value / unit:.3g}{letter}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.1f}" if size >= 10 or value == 0 else f"{value:.3g}"


def clean(*axes: Axes) -> None:
    """No frame above and on the right, small figures."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], grow: bool = True) -> None:
    """A legend below a figure, in as many columns as its names leave room for; the figure grows by its height."""
    columns = max(1, min(len(names), int(WIDTH / (0.55 + 0.065 * max(map(len, names))))))
    if grow:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.1 + 0.17 * -(-len(names) // columns))
    shown = [literal(name) for name in names]
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)
