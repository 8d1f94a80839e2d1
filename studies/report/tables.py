"""A study's tables with their figures."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attacks.records import Record
from studies.gather import Results
from studies.layout import Column, Layout
from studies.report.units import Unit, unit_of
from studies.report.verdicts import Compared, beside
from studies.stats import Spread, spread_of


@dataclass(frozen=True)
class Cell:
    """A figure of a table, in the table's unit.

    Attributes:
        run: whose it is; None for an empty place of the table.
        seeds: the figure under each seed that has one.
        spread: over the seeds; None for no figure.
        ends: the 95 % interval over the images, where there is one seed.
        lacking: what there is in the place of a figure, or how many seeds are lacking.
        published: the paper's figure, as it is written.
        mean: ours, as it is written, or what there is in its place.
        around: its standard deviation over the seeds, or that interval.
        compared: with the table's run of reference.
    """

    run: str | None
    seeds: Mapping[int, float]
    spread: Spread | None
    ends: tuple[float, float] | None
    lacking: str
    published: str
    mean: str
    around: str = ""
    compared: Compared | None = None

    @property
    def text(self) -> str:
        """Our figure in one line."""
        return " ".join(filter(None, [self.mean, self.around]))

    @property
    def key(self) -> str:
        """What it is sorted by."""
        return "" if self.spread is None else repr(self.spread.mean)


@dataclass(frozen=True)
class Shown:
    """A table to be shown.

    Attributes:
        layout: its title, columns and rows.
        units: of the columns.
        rows: the cells of each row.
        recipe: of the study.
    """

    layout: Layout
    units: tuple[Unit, ...]
    rows: tuple[tuple[Cell, ...], ...]
    recipe: str = "paper"

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]

    @property
    def heads(self) -> list[str]:
        """The columns' labels with their units, behind an empty one."""
        pairs = zip(self.layout.columns, self.units, strict=True)
        return ["", *(f"{column.label}, {unit.name}" if unit.name else column.label for column, unit in pairs)]

    @property
    def texts(self) -> list[list[str]]:
        """The rows in one line each, published figures in italics as Markdown has them."""
        return [
            [row.label, *(cell.text + (f" *{cell.published}*" if cell.published else "") for cell in cells)]
            for row, cells in zip(self.layout.rows, self.rows, strict=True)
        ]

    @property
    def reference(self) -> str:
        """The runs that every row is compared with."""
        return ", ".join(dict.fromkeys(name for name in self.layout.against if name))

    @property
    def legend(self) -> str:
        """What its figures mean."""
        said = []
        if any(cell.spread and cell.spread.n > 1 for cell in self.cells):
            counts = sorted({cell.spread.n for cell in self.cells if cell.spread and cell.spread.n > 1})
            said.append(f"Mean ± standard deviation over {' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} seeds.")
        if any(cell.ends for cell in self.cells):
            said.append("In brackets, of one seed: the 95 % interval over the images.")
        if any(cell.published for cell in self.cells):
            said.append(
                f"In italics: the published figure{'' if self.recipe == 'paper' else ', at the paper’s scale'}."
            )
        if self.layout.left_out:
            said.append(f"Left out by this recipe: {'; '.join(self.layout.left_out)}.")
        return " ".join(said)


def shown(layout: Layout, results: Results) -> Shown:
    """A table with what the finished runs say."""
    columns = [_column(layout, results, place) for place in range(len(layout.columns))]
    units = tuple(unit for unit, _ in columns)
    return Shown(layout, units, tuple(zip(*(cells for _, cells in columns), strict=True)), results.study.recipe)


def _column(layout: Layout, results: Results, place: int) -> tuple[Unit, list[Cell]]:
    column = layout.columns[place]
    names = [row.runs[place] for row in layout.rows]
    published = [row.published[place] for row in layout.rows]
    records = [
        {} if name is None else results.values(name, column.metric, column.judge, column.model) for name in names
    ]
    unit = unit_of([record for of_run in records for record in of_run.values()], published)
    reference = layout.against[place] if layout.against else None
    cells = []
    for name, of_run, figure in zip(names, records, published, strict=True):
        compared = None
        if name is not None and reference is not None and name != reference and of_run:
            compared = beside(results, name, reference, column.metric, column.judge, column.model)
        cells.append(_cell(results, name, column, of_run, unit, figure, compared))
    return unit, cells


def _cell(
    results: Results,
    name: str | None,
    column: Column,
    records: Mapping[int, Record],
    unit: Unit,
    published: float | str | None,
    compared: Compared | None,
) -> Cell:
    values = {seed: unit.factor * record.value for seed, record in records.items()}
    figure = "" if published is None else published if isinstance(published, str) else _published(published, unit)
    if name is None:
        return Cell(None, {}, None, None, "", figure, "")
    states = [ran.state for ran in results.of(name).values()]
    if not values:
        state = next((each for each in ("failed", "skipped", "waiting") if each in states), "")
        said = {"waiting": "not run"}.get(state, state) or "–"
        return Cell(name, {}, None, None, "", figure, said)
    lacking = f"{len(values)} of {len(states)} seeds" if len(values) < len(states) else ""
    only = next(iter(records.values())) if len(records) == 1 else None
    ends = (unit.factor * only.low, unit.factor * only.high) if only is not None and only.n > 1 else None
    return Cell(name, values, spread_of(list(values.values())), ends, lacking, figure, *unit.written(records), compared)


def _published(value: float, unit: Unit) -> str:
    """As the paper has it: where nothing of ours is known, nor is the unit."""
    return unit.text(value) if unit.name == "%" else Unit(decimals=None).text(value)


def as_csv(table: Shown) -> str:
    """A line for every figure, with its seeds' single values."""
    seeds = sorted({seed for cell in table.cells for seed in cell.seeds})
    head = ["row", "run", "column", "metric", "judge", "model", "unit", "seeds", "mean", "sd", "low", "high"]
    lines: list[Sequence[object]] = [[*head, "published", "lacking", *(f"seed {seed}" for seed in seeds)]]
    for row, cells in zip(table.layout.rows, table.rows, strict=True):
        for column, unit, cell in zip(table.layout.columns, table.units, cells, strict=True):
            if cell.run is None:
                continue
            what = [row.label, cell.run, column.label, column.metric, column.judge or "", column.model, unit.name]
            spread = cell.spread
            mean = (
                ["", "", ""] if spread is None else [spread.n, spread.mean, "" if math.isnan(spread.sd) else spread.sd]
            )
            own = [*mean, *(cell.ends or ("", "")), cell.published, cell.lacking]
            lines.append([*what, *own, *(cell.seeds.get(seed, "") for seed in seeds)])
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue()
