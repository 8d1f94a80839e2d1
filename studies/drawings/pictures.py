"""What the runs' judgings have drawn already."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.gather import Results

DPI = 150  # of the package's own pictures


def pictures(results: Results, entries: Sequence[Entry], *, files: str, judge: str | None = None) -> list[Drawn]:
    """The files of a pattern in the runs' judgings, of each run's first seed that has any."""
    found = {entry.run: list(_files(results, entry.run, files, judge)) for entry in entries}
    missing = common.left_out(results, entries, [run for run, paths in found.items() if paths], f"files {files}")
    made = []
    for entry in entries:
        for path in found[entry.run]:
            name = path.stem.replace("-", " ").replace("_", " ")
            alt = f"{entry.label()}: the picture '{name}' that its test drew."
            made.append(Drawn(_figure(path), alt, f"{entry.label()}: {name}."))
    if not made:
        return common.nothing(missing)
    last = made[-1]
    return [*made[:-1], Drawn(last.figure, last.alt, style.sentences(last.caption, missing))]


def _files(results: Results, run: str, pattern: str, judge: str | None) -> Iterator[Path]:
    for ran in results.of(run).values():
        folders = [folder for name, folder in ran.planned.judgings.items() if judge in (None, name)]
        paths = [path for folder in folders for path in sorted(folder.glob(pattern))]
        if paths:
            yield from paths
            return


def _figure(path: Path) -> Figure:
    """A picture, pixel by pixel."""
    pixels = imread(path)
    high, wide = pixels.shape[:2]
    figure = Figure(figsize=(wide / DPI, high / DPI), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(pixels, cmap="gray", interpolation="none")
    ax.set_axis_off()
    return figure
