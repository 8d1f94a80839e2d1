"""How figures are written: shares in per cent, counts with a prefix, others with three digits that mean something."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attacks.records import Record
from studies.gather import COUNT
from studies.stats import spread_of

TOLD = ("probability", "similarity", "skill")  # units that a metric's name says
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Unit:
    """What the figures of one metric are counted in.

    Attributes:
        name: such as ``%`` or ``h``; empty for a plain number.
        factor: from a record's value to the figure.
        decimals: behind the point; None for a count.
    """

    name: str = ""
    factor: float = 1.0
    decimals: int | None = 3

    def text(self, value: float) -> str:
        """A figure in this unit."""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
        if self.decimals is None:
            size, prefix = next((each for each in PREFIXES if abs(value) >= each[0]), (1.0, ""))
            written = f"{value / size:.2f} {prefix}" if prefix else f"{value:,.10g}"
        elif self.name != "%" and value and (abs(value) < 0.5 * 10**-self.decimals or abs(value) >= 1e7):
            written = f"{value:.1e}"
        else:
            written = f"{value + 0.0:.{self.decimals}f}"
        return written.replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        return f"[{self.text(low)}, {self.text(high)}]"

    def signed(self, value: float) -> str:
        """A difference in this unit, which has a sign."""
        return f"+{self.text(value)}" if value > 0 else self.text(value)

    def written(self, records: Mapping[int, Record]) -> tuple[str, str]:
        """A run's figure, and what is known of its spread: the seeds' standard deviation, or the images' interval."""
        spread = spread_of([self.factor * record.value for record in records.values()])
        if self.decimals is None and spread.sd == 0:
            return self.text(spread.mean), ""  # a count, which the seed does not change
        if spread.n > 1:
            return self.text(spread.mean), f"± {self.text(spread.sd)}"
        record = next(iter(records.values()))
        around = self.interval(self.factor * record.low, self.factor * record.high) if record.n > 1 else ""
        return self.text(spread.mean), around

    @property
    def points(self) -> str:
        """What a difference is counted in."""
        return "points" if self.name == "%" else self.name


def unit_of(records: Sequence[Record], published: Sequence[float | str | None] = ()) -> Unit:
    """The unit of a metric's records; of a share with a second decimal where the paper gives one."""
    if not records:
        return Unit()
    name = records[0].unit
    if not name:
        fine = any(isinstance(each, float) and round(each, 1) != each for each in published)
        return Unit("%", 100.0, 2 if fine else 1)
    if name == COUNT:
        return Unit("", 1.0, None)
    largest = max((abs(record.value) for record in records if math.isfinite(record.value)), default=0.0)
    if name in TOLD:
        return Unit()
    return Unit(name, 1.0, min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 3)


def probability(p: float) -> str:
    """A test's p."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"
