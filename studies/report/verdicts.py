"""Two runs of a study compared, seed by seed and image by image, and what that says of a claim."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from attacks.compare import Comparison, compare
from attacks.records import Record
from studies.gather import COUNT, Results
from studies.layout import Claim
from studies.report.units import Unit, unit_of
from studies.stats import MARGIN, SIDES, Difference, Interval, apart, over_images, over_seeds, verdict

UNMEASURED = "not measured"
SEEDS, IMAGES, UNPAIRED, COUNTS = "seeds", "images", "unpaired images", "counts"  # over what a difference was taken


@dataclass(frozen=True)
class Compared:
    """By how much a figure is above another, in the table's unit.

    Attributes:
        unit: of the figures.
        figures: what is compared, and its figure as it is written; without a name for one that was given.
        difference: with its interval; None where there is none, and ``why`` says what is missing.
        by: over what the interval is: ``seeds``, ``images``, or ``unpaired images`` where it is not kept what became
            of each; ``counts`` for counts, which have none.
        seeds: those that both runs have.
        images: the same difference over the images, where both runs have kept what became of them, by seed.
        why: what is missing, or why the difference is not over seeds.
    """

    unit: Unit
    figures: tuple[tuple[str, str], ...] = ()
    difference: Difference | None = None
    by: str = ""
    seeds: tuple[int, ...] = ()
    images: Mapping[int, Difference] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say of it.

    Attributes:
        claim: what is claimed.
        verdict: ``holds``, ``does not hold``, ``undecided`` or ``not measured``.
        compared: the difference that it rests on.
        bound: on which side of it the difference should lie.
        side: 1 for above the bound, -1 for below.
    """

    claim: Claim
    verdict: str
    compared: Compared
    bound: float
    side: int


def judge(results: Results, claim: Claim) -> Judged:
    """What the study's runs say of a claim."""
    if claim.than is not None:
        compared = beside_figure(results, claim.one, claim.than, claim.metric, claim.judge)
    elif claim.other is not None:
        compared = beside(results, claim.one, claim.other, claim.metric, claim.judge)
    else:
        compared = Compared(Unit(), why=f"The recipe {results.study.recipe} leaves out its runs")
    # The margin is in points: what is no share has none.
    margin = MARGIN if compared.unit.name == "%" else 0.0
    side, times = SIDES[claim.claimed]
    said = UNMEASURED if compared.difference is None else verdict(compared.difference, claim.claimed, margin)
    return Judged(claim, said, compared, times * margin, side)


def beside(
    results: Results, one: str, other: str, metric: str, judge: str | None = None, model: str = "own"
) -> Compared:
    """A run's figure beside another's, paired by seed.

    One common seed says nothing of the spread over seeds, nor do seeds that all differ by the same, as shares of few
    images may: then the same images decide.
    """
    first, second = (results.values(name, metric, judge, model) for name in (one, other))
    unit = unit_of([*first.values(), *second.values()])
    figures = (one, _figure(first, unit)), (other, _figure(second, unit))
    lacking = [name for name, values in ((one, first), (other, second)) if not values]
    if lacking:
        return Compared(unit, figures, why="; ".join(missing(results, name, metric) for name in lacking))
    seeds = tuple(seed for seed in first if seed in second)
    if not seeds:
        return Compared(unit, figures, why="They have no finished seed in common")
    images = {}
    if unit.name == "%":
        pairs = {seed: _paired(results, one, other, seed, metric, judge, model) for seed in seeds}
        images = {seed: pair for seed, pair in pairs.items() if pair is not None}
    differences = [unit.factor * (first[seed].value - second[seed].value) for seed in seeds]
    mine, its = first[seeds[0]], second[seeds[0]]
    n = min(mine.n, its.n)
    unpaired = apart(_interval(mine, unit), _interval(its, unit), n) if n > 1 else None
    return _decided(Compared(unit, figures, seeds=seeds, images=images), differences, mine.unit == COUNT, unpaired)


def beside_figure(results: Results, one: str, than: float, metric: str, judge: str | None = None) -> Compared:
    """A run's figure beside one that is given, in the table's unit."""
    values = results.values(one, metric, judge)
    unit = unit_of(list(values.values()))
    figures = (one, _figure(values, unit)), ("", unit.text(than))
    if not values:
        return Compared(unit, figures, why=missing(results, one, metric))
    images = {}
    for seed, record in values.items():
        if record.n > 1:
            value, low, high = _interval(record, unit)
            images[seed] = Difference(value - than, low - than, high - than, math.nan, record.n)
    differences = [unit.factor * record.value - than for record in values.values()]
    compared = Compared(unit, figures, seeds=tuple(values), images=images)
    return _decided(compared, differences, all(record.unit == COUNT for record in values.values()))


def missing(results: Results, name: str, metric: str) -> str:
    """Why a run has no such figure."""
    states = {ran.state for ran in results.of(name).values()}
    if "done" in states:
        return f"{name} has no {metric}"
    state = next(each for each in ("failed", "skipped", "waiting") if each in states)
    said = {"failed": "failed", "skipped": "was skipped", "waiting": "is not finished"}
    return f"{name} {said[state]}"


def _decided(compared: Compared, differences: list[float], exact: bool, unpaired: Difference | None = None) -> Compared:
    """The difference over seeds where they can tell, else over images."""
    over = over_seeds(differences)
    if exact and min(differences) == max(differences):
        counted = Difference(over.value, over.value, over.value, math.nan, over.n)
        return replace(compared, difference=counted, by=COUNTS)
    if max(differences) - min(differences) > 1e-9:
        return replace(compared, difference=over, by=SEEDS)
    why = "" if over.n == 1 else f"It is the same under all {over.n} seeds, which says nothing of their spread"
    if compared.images:
        return replace(compared, difference=compared.images[min(compared.images)], by=IMAGES, why=why)
    if unpaired is not None:
        return replace(compared, difference=unpaired, by=UNPAIRED, why=why)
    nothing = Difference(over.value, -math.inf, math.inf, math.nan, over.n)
    return replace(compared, difference=nothing, by=SEEDS, why=why or "One seed, and no images")


def _interval(record: Record, unit: Unit) -> Interval:
    return unit.factor * record.value, unit.factor * record.low, unit.factor * record.high


def _figure(records: Mapping[int, Record], unit: Unit) -> str:
    return " ".join(filter(None, unit.written(records))) if records else ""


def _paired(
    results: Results, one: str, other: str, seed: int, metric: str, judge: str | None, model: str
) -> Difference | None:
    """The difference over the images of one seed, in points; None where the runs kept none, or not the same ones."""
    files = [results.of(name)[seed].outcomes(metric, judge, model) for name in (one, other)]
    if files[0] is None or files[1] is None:
        return None
    # A name that says more than the metric is of two threat models.
    found = next((each for each in _compared(files[0], files[1]) if each.name == metric), None)
    if found is None:
        return None
    paired = over_images(found.only_first, found.only_second, found.n)
    return Difference(100 * paired.value, 100 * paired.low, 100 * paired.high, paired.p, paired.n)


@lru_cache(1024)
def _compared(one: Path, other: Path) -> list[Comparison]:
    """Every metric of two runs at once; a finished run's files do not change."""
    return compare(one, other)
