"""What a grid file says of its report: tables in the papers' own layout, and what the papers claim.

A grid file may have these keys; names in braces are axes of the study, or of the entry's own ``over``::

    tables:
      - title: "Table 5: accuracy, %"        # {T} in it makes a table for each T
        note: one sentence
        columns:
          - {label: PGD-20, metric: PGD-20}  # {T} in it makes a column for each T
          - {label: teacher, metric: PGD-20, judge: attacks, model: teacher}
        rows:                                # {T} in label or run, but in no column, makes a row for each T
          - {label: "KD, T = {T}", run: "KD at {T}"}
          - plain                            # a run, which is called like it
          - {label: KD as published, run: KD at 40, published: {PGD-20: 38.21}}   # by column, in the table's unit
        against: "KD at 40"                  # every row is compared with this run, seed by seed
    claims:
      - {says: one sentence, one: RUN, other: RUN, metric: PGD-20, claimed: higher}     # lower, no lower, no higher
      - {says: one sentence, one: RUN, than: 5.0, metric: PGD-20, claimed: no lower}    # than a figure, likewise

Metrics are those of ``results.csv`` of the run's tests, and ``parameters``, ``multiply-adds`` and ``hours`` of its fit;
shares are shown, and their bounds and published figures given, in per cent. ``judge`` names a judging, by default the
first that knows the metric. ``except`` excludes combinations, as it does for runs; combinations that are no runs of the
grid are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from studies.cells import Study
from studies.entries import Scope
from studies.shapes import listed
from studies.stats import SIDES

TABLE = {"title", "note", "rows", "columns", "against", "over", "except"}
ROW = {"label", "run", "published", "over", "except"}
COLUMN = {"label", "metric", "judge", "model"}
CLAIM = {"says", "one", "other", "than", "metric", "judge", "claimed", "over", "except"}
MODELS = ("own", "teacher")


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        label: its head.
        metric: as ``results.csv`` calls it, or of the fit.
        judge: the judging; None for the first that knows the metric.
        model: ``own`` for what was trained, ``teacher`` for its teacher.
        place: where on the axes it lies.
    """

    label: str
    metric: str
    judge: str | None = None
    model: str = "own"
    place: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its head.
        runs: the run of each column; None where the grid has none.
        published: what the paper has in each column; None for nothing.
    """

    label: str
    runs: tuple[str | None, ...]
    published: tuple[float | str | None, ...]


@dataclass(frozen=True)
class Layout:
    """A table before its figures are known.

    Attributes:
        title: above it.
        note: below it.
        columns: from left to right.
        rows: from top to bottom.
        against: the run of each column with which every row is compared; empty for none.
        left_out: labels of rows whose runs the recipe leaves out.
    """

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    against: tuple[str | None, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What a paper claims of a run's figure.

    Attributes:
        says: the claim, as one sentence.
        one: the run.
        metric: of which it is claimed.
        claimed: a key of :data:`studies.stats.SIDES`.
        other: the run that it is compared with.
        than: or the figure.
        judge: as in :class:`Column`.
    """

    says: str
    one: str
    metric: str
    claimed: str
    other: str | None = None
    than: float | None = None
    judge: str | None = None


def check(study: Study) -> None:
    """Refuses tables and claims that could never be shown; see :func:`tables` and :func:`claims`."""
    tables(study)
    claims(study)


def tables(study: Study) -> list[Layout]:
    """The study's tables.

    Raises:
        ValueError: for a key that is none, a run, a judging or a model that the study does not have, or a published
            figure of no column.
    """
    found = []
    for number, said in enumerate(study.tables, 1):
        root = Scope(study, study.name, study.axes).entry(
            said, TABLE, ("title", "rows", "columns"), f", table {number}"
        )
        for key in ("rows", "columns"):
            listed(said, key, root.where)
        found += [_table(said, scope) for scope in root.places(said, "title")]
    return found


def claims(study: Study) -> list[Claim]:
    """What is claimed, each repeated over the axes that it names.

    Raises:
        ValueError: likewise, or for a ``claimed`` that is none.
    """
    found = []
    for number, said in enumerate(study.claims, 1):
        root = Scope(study, study.name, study.axes).entry(
            said, CLAIM, ("says", "one", "metric", "claimed"), f", claim {number}"
        )
        found += _claims(said, root)
    return found


def _table(said: Mapping[str, Any], scope: Scope) -> Layout:
    title, note = str(scope.filled(said["title"])), str(scope.filled(said.get("note", "")))
    scope = replace(scope, where=f"{scope.where} ({title})")
    columns = [column for each in said["columns"] for column in _columns(each, scope)]
    labels = [column.label for column in columns]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{scope.where} has two columns {twice[0]!r}.")
    made = [_rows(each, scope, columns) for each in said["rows"]]
    rows, left_out = (tuple(chain(*each)) for each in zip(*made, strict=True))
    against = said.get("against")
    compared = () if against is None else _runs(against, scope, columns)
    if against is not None and not any(compared):
        scope.refuse_run(against)
    return Layout(title, note, tuple(columns), rows, compared, left_out)


def _columns(said: Mapping[str, Any], table: Scope) -> list[Column]:
    scope = table.entry(said, COLUMN, ("label", "metric"), ", a column")
    model = said.get("model", "own")
    if model not in MODELS:
        raise ValueError(f"{scope.where}: model is own or teacher, got {model!r}.")
    return [
        Column(str(at.filled(said["label"])), str(at.filled(said["metric"])), said.get("judge"), model, at.place)
        for at in scope.places(said, "label", "metric")
    ]


def _rows(said: Any, table: Scope, columns: Sequence[Column]) -> tuple[list[Row], list[str]]:
    """A row for each place of the axes that no column has and at which the grid has a run; the labels of all if none.

    A row that is a run alone is called like it.
    """
    said = {"run": said} if isinstance(said, str) else said
    scope = table.entry(said, ROW, ("run",), ", a row")
    said = {"label": said["run"], **said}
    across = {axis for column in columns for axis in column.place} - set(table.place)
    down = replace(scope, axes={axis: values for axis, values in scope.axes.items() if axis not in across})
    found, left_out = [], []
    for at in down.places(said, "label", "run"):
        runs = _runs(said["run"], at, columns)
        left_out.append(str(at.filled(said["label"])))
        if any(runs):
            found.append(Row(str(at.filled(said["label"])), runs, _published(said, at, columns)))
    if not found:
        scope.refuse_run(said["run"])
    if len(found) > 1 and said.get("published"):
        raise ValueError(
            f"{scope.where}: {said['label']!r} stands for {len(found)} rows, whose published figures cannot all be the "
            "same: give each a row of its own."
        )
    return found, [] if found else left_out


def _runs(template: str, scope: Scope, columns: Sequence[Column]) -> tuple[str | None, ...]:
    return tuple(replace(scope, place={**column.place, **scope.place}).run(template) for column in columns)


def _published(said: Mapping[str, Any], scope: Scope, columns: Sequence[Column]) -> tuple[float | str | None, ...]:
    published = {str(key): value for key, value in (scope.filled(said.get("published")) or {}).items()}
    labels = [column.label for column in columns]
    if unknown := [key for key in published if key not in labels]:
        raise ValueError(f"{scope.where}: {unknown[0]!r} is published, but no column; there are {', '.join(labels)}.")
    return tuple(published.get(label) for label in labels)


def _claims(said: Mapping[str, Any], scope: Scope) -> list[Claim]:
    if said["claimed"] not in list(SIDES):
        raise ValueError(f"{scope.where}: claimed is one of {', '.join(SIDES)}, got {said['claimed']!r}.")
    if ("other" in said) == ("than" in said):
        raise ValueError(f"{scope.where} needs either the run that it compares with, other, or a figure, than.")
    if "than" in said and (isinstance(said["than"], bool) or not isinstance(said["than"], int | float)):
        raise ValueError(f"{scope.where}: than must be a figure, got {said['than']!r}.")
    templates = [said[key] for key in ("one", "other") if key in said]
    found, left_out = [], []
    for at in scope.places(said, "says", "metric", "one", "other"):
        names = {key: str(at.filled(said[key])) for key in ("says", "one", "metric", "other") if key in said}
        if all(at.run(template) for template in templates):
            found.append(Claim(claimed=said["claimed"], than=said.get("than"), judge=said.get("judge"), **names))
        else:
            left_out.append(Claim(names["says"], names["one"], names["metric"], said["claimed"]))
    if not found:
        for template in templates:
            if not any(at.run(template) for at in scope.places(said, "says", "metric", "one", "other")):
                scope.refuse_run(template)
    return found or left_out  # those are told all the same, as not put to the test
