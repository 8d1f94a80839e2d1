"""What the page says in sentences."""

import math
from collections import Counter
from collections.abc import Sequence

from studies.overview import clock
from studies.report.facts import Facts
from studies.report.tables import Cell, Shown
from studies.report.units import Unit, probability
from studies.report.verdicts import COUNTS, IMAGES, SEEDS, UNMEASURED, UNPAIRED, Compared, Judged
from studies.stats import FAILS, HOLDS, UNDECIDED

VERDICTS = (HOLDS, FAILS, UNDECIDED, UNMEASURED)

HOW_JUDGED = (
    "A claim holds where the 95 % interval of the difference lies on the claimed side of its bound (shaded), does not "
    "hold where it lies on the other, and is undecided where the bound lies inside. Intervals are Student's t over the "
    "common seeds; where one seed, or seeds that all agree, cannot tell, they are over the same images (Tango's score "
    "interval) or, where it is not kept what became of each image, over the images of both, unpaired. "
    "“No lower” and “no higher” allow half a percentage point. Intervals are not corrected for the number of claims."
)
TEST_HEADS = ("one", "other", "metric", "difference", "95 % interval", "over", "seeds", "p (t)", "p by seed (McNemar)")
HOW_TESTED = (
    "Differences are one minus other, in points for shares, seed by seed. p (t): two-sided paired t-test over the "
    "seeds. p by seed (McNemar): exact test over the images of one seed, which says nothing of other seeds. No p is "
    "corrected for the number of tests."
)


def tally(verdicts: Sequence[str], order: Sequence[str] = VERDICTS) -> list[tuple[str, int]]:
    """How often each verdict was given, in an order."""
    counts = Counter(verdicts)
    return [(verdict, counts[verdict]) for verdict in order if counts[verdict]]


def metric(name: str, unit: Unit) -> str:
    """A metric with its unit."""
    return f"{name}, {unit.name}" if unit.name else name


def evidence(judged: Judged) -> str:
    """What a verdict rests on."""
    unit, difference = judged.compared.unit, judged.compared.difference
    said = []
    if difference is not None:
        margin = f" by more than {unit.text(abs(judged.bound))}" if judged.bound else ""
        value = f"{unit.signed(difference.value)} {unit.points}".rstrip()
        said.append(f"Difference {value}{_over(judged.compared)}; claimed: {judged.claim.claimed}{margin}.")
    if judged.compared.why:
        said.append(f"{judged.compared.why}.")
    return " ".join(said)


def _over(compared: Compared) -> str:
    """Over what a difference was taken, with its interval."""
    difference = compared.difference
    if difference is None or compared.by == COUNTS:
        return ""
    if math.isinf(difference.low):
        return ", no interval"
    over = f"{difference.n} seeds"
    if compared.by != SEEDS:
        over = f"the {difference.n:,} images" + (", not paired" if compared.by == UNPAIRED else "")
    p = "" if math.isnan(difference.p) else f", p {_equals(difference.p)}"
    return f" {compared.unit.interval(difference.low, difference.high)} over {over}{p}"


def _equals(p: float) -> str:
    said = probability(p)
    return said if said.startswith("<") else f"= {said}"


def tests(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """The rows of the claims' paired tests."""
    rows = []
    for claim, compared in ((each.claim, each.compared) for each in judged):
        difference, unit = compared.difference, compared.unit
        if claim.other is None or difference is None or compared.by == COUNTS:
            continue
        interval = unit.interval(difference.low, difference.high) if math.isfinite(difference.low) else "–"
        p = probability(difference.p) if compared.by == SEEDS else "–"
        by_seed = ", ".join(f"{seed}: {probability(pair.p)}" for seed, pair in compared.images.items()) or "–"
        what = claim.one, claim.other, metric(claim.metric, unit)
        rows.append((*what, unit.signed(difference.value), interval, compared.by, str(len(compared.seeds)), p, by_seed))
    return list(dict.fromkeys(rows))


def differences(table: Shown) -> list[tuple[str, list[tuple[str, ...]]]]:
    """A table's rows against its run of reference: each difference, its interval and p; empty without one."""
    rows = [
        (row.label, [_difference(cell) for cell in cells])
        for row, cells in zip(table.layout.rows, table.rows, strict=True)
    ]
    return [(label, cells) for label, cells in rows if any(cells)]


def _difference(cell: Cell) -> tuple[str, ...]:
    compared = cell.compared
    if compared is None or compared.difference is None:
        return ()
    difference, unit = compared.difference, compared.unit
    lines = [unit.signed(difference.value)]
    if math.isfinite(difference.low) and compared.by != COUNTS:
        lines.append(unit.interval(difference.low, difference.high))
    if not math.isnan(difference.p):
        lines.append(f"p {_equals(difference.p)}")
    if compared.by in (IMAGES, UNPAIRED):
        lines.append(compared.by)
    return tuple(lines)


def glance(facts: Facts) -> list[tuple[str, str]]:
    """What was run, in a few figures."""
    states, total = facts.states, len(facts.results.runs)
    found = [
        ("runs", f"{states['done']} of {total} done"),
        ("seeds", ", ".join(map(str, facts.seeds))),
        ("judged by", ", ".join(facts.judgings) or "nothing"),
        ("weights", facts.study.checkpoint),
    ]
    if sum(facts.seconds):
        found.append(("time", f"{clock(facts.seconds[0])} of fits, {clock(facts.seconds[1])} of tests"))
    return found


def unfinished(facts: Facts) -> str:
    """How many runs are not finished, and why; empty where all are."""
    said = {"failed": "failed", "skipped": "skipped for a teacher's failure", "waiting": "not run yet"}
    counts = [f"{facts.states[state]} {words}" for state, words in said.items() if facts.states[state]]
    return f"Runs that are not finished: {', '.join(counts)}." if counts else ""


def made(facts: Facts, left_out: Sequence[str]) -> list[str]:
    """How the study was made, in sentences; ``left_out`` are tables of which the recipe has no run."""
    study, names = facts.study, facts.results.names
    axes = "; ".join(f"{axis}: {', '.join(map(str, values))}" for axis, values in study.axes.items())
    seeds = f"up to {len(facts.seeds)} seeds" if len(facts.seeds) > 1 else "one seed"
    said = [
        f"The grid {study.name} under its recipe {study.recipe}: {len(names)} runs with {seeds} each, "
        f"{len(facts.results.runs)} in all, judged by {', '.join(facts.judgings) or 'nothing'} from their "
        f"{study.checkpoint} weights." + (f" Axes: {axes}." if axes else "")
    ]
    if sum(facts.seconds):
        said.append(
            f"Fits took {clock(facts.seconds[0])} and tests {clock(facts.seconds[1])} of wall-clock time, summed over "
            f"processes of {study.threads} thread{'s' if study.threads > 1 else ''} each."
        )
    if left_out:
        said.append(f"Of these tables the recipe leaves out every run: {'; '.join(left_out)}.")
    differing = [key for key, values in facts.environment.items() if len(values) > 1]
    if differing:
        said.append(f"Not all ran alike: they differ in {', '.join(differing)}.")
    return said


def environment(facts: Facts) -> list[tuple[str, str]]:
    """The rows of versions and machines; where runs differ, with how many ran under each."""
    return [
        (key, next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({n})" for v, n in values.most_common()))
        for key, values in facts.environment.items()
    ]
