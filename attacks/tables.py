"""What a suite prints: accuracies with their intervals, and what they cost."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from attacks.records import Record
from attacks.results import CLEAN, ONLY, WITHOUT, WORST

Results = Mapping[tuple[str, str], Sequence[Record]]


def _columns(results: Results) -> list[tuple[str, Sequence[Record]]]:
    """Networks by title: the newest test first, so the best checkpoint before the last; the teacher beside them."""
    ordered = sorted(reversed(list(results.items())), key=lambda column: column[0][0] == "teacher")
    return [(f"{role} ({checkpoint})" if checkpoint else role, records) for (role, checkpoint), records in ordered]


def _table(results: Results, title: str) -> tuple[Table, list[str], list[dict[str, Record]]]:
    columns = _columns(results)
    table = Table(title=title, title_style="bold")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    metrics = list(dict.fromkeys(record.metric for _, records in columns for record in records))
    metrics.sort(key=lambda metric: metric.startswith(WORST))  # the sum of all goes last
    return table, metrics, [{record.metric: record for record in records} for _, records in columns]


def _parts(metrics: Sequence[str]) -> dict[str, list[str]]:
    """The metrics of all images, then those of each part, by how they end."""
    parts = [m.removeprefix(CLEAN) for m in metrics if m.startswith((f"{CLEAN} {WITHOUT} ", f"{CLEAN} {ONLY} "))]
    rows: dict[str, list[str]] = {part: [] for part in ("", *parts)}
    for metric in metrics:
        rows[next((part for part in parts if metric.endswith(part)), "")].append(metric)
    return rows


def accuracies(results: Results, title: str) -> Table:
    """A row per attack, a column per network: accuracy, or the mean length of the changes, with 95 % intervals.

    Figures of a part of the images follow those of all, below the part's name.
    """

    def cell(record: Record | None) -> str:
        if record is None:
            return "–"
        if record.unit:
            return f"{record.value:.4g} [{record.low:.4g}, {record.high:.4g}]"
        return f"{record.value:.1%} [{record.low:.1%}, {record.high:.1%}]".replace("%", "")

    table, metrics, found = _table(results, title)
    for part, rows in _parts(metrics).items():
        if part:
            table.add_row(Text(part.strip(), style="bold"))
        for metric, following in zip(rows, [*rows[1:], None], strict=True):
            last = following is None or (not part and (metric == CLEAN or following == WORST))
            cells = [cell(records.get(metric)) for records in found]
            table.add_row(metric.removesuffix(part), *cells, end_section=last)
    return table


def costs(results: Results) -> Table:
    """A row per attack, a column per network: forward and backward passes for an attacked image, and seconds."""

    def cell(record: Record | None) -> str:
        if record is None:
            return "–"
        return f"{record.forwards:.1f} + {record.backwards:.1f}, {record.seconds:.1f} s"

    table, metrics, found = _table(results, "Passes per attacked image (forward + backward), and time")
    for metric in metrics:
        cells = [records.get(metric) for records in found]
        if any(record is not None and record.backwards + record.forwards for record in cells) and metric != CLEAN:
            table.add_row(metric, *map(cell, cells))
    return table
