"""Where the interval of a claim's difference lies: a line on a scale that all claims of one unit share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from studies.report.verdicts import Judged


@dataclass(frozen=True)
class Bar:
    """Places on the scale, from 0 at its left end to 100.

    Attributes:
        zero: of no difference.
        bound: beyond which the claim holds.
        low: the interval's lower end, or the end of the scale.
        high: its upper end, likewise.
        value: the difference.
        shade: where the claimed side begins, and its width.
        alt: the same in words.
    """

    zero: float
    bound: float
    low: float
    high: float
    value: float
    shade: tuple[float, float]
    alt: str


def bars(judged: Sequence[Judged]) -> list[Bar | None]:
    """A bar for each claim that has a difference, None for the others."""
    reach: dict[str, float] = {}
    for each in judged:
        if (difference := each.compared.difference) is not None:
            # Two seeds may have an interval without end: differences set the scale, and intervals are cut at its ends.
            wanted = 1.6 * max(abs(difference.value), abs(each.bound))
            reach[each.compared.unit.name] = max(reach.get(each.compared.unit.name, 0.0), wanted)
    return [_bar(each, reach.get(each.compared.unit.name, 0.0) or 1.0) for each in judged]


def _bar(judged: Judged, reach: float) -> Bar | None:
    difference, unit = judged.compared.difference, judged.compared.unit
    if difference is None or not math.isfinite(difference.value) or not math.isfinite(reach):
        return None

    def place(value: float) -> float:
        return round(50 + 50 * min(1.0, max(-1.0, value / reach)), 2)

    bound = place(judged.bound)
    shade = (bound, 100 - bound) if judged.side > 0 else (0.0, bound)
    interval = unit.interval(difference.low, difference.high)
    alt = f"Difference {unit.signed(difference.value)}, interval {interval}; the claim holds on the shaded side"
    return Bar(50.0, bound, place(difference.low), place(difference.high), place(difference.value), shade, alt)
