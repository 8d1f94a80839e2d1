"""What a suite prints: accuracies with their intervals, and what they cost."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from attacks.records import Record
from attacks.results import CLEAN, WORST

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
    metrics.sort(key=lambda metric: metric == WORST)  # the sum of all goes last
    return table, metrics, [{record.metric: record for record in records} for _, records in columns]


def accuracies(results: Results, title: str) -> Table:
    """A row per attack, a column per network: accuracy, or the mean length of the changes, with 95 % intervals."""

    def cell(record: Record | None) -> str:
        if record is None:
            return "–"
        if record.unit:
            return f"{record.value:.4g} [{record.low:.4g}, {record.high:.4g}]"
        return f"{record.value:.1%} [{record.low:.1%}, {record.high:.1%}]".replace("%", "")

    table, metrics, found = _table(results, title)
    for position, metric in enumerate(metrics):
        last = metric == CLEAN or metrics[position + 1 : position + 2] == [WORST]
        table.add_row(metric, *[cell(records.get(metric)) for records in found], end_section=last)
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
