"""Tables that say where the sign is in each photograph, as TSRD and GTSRB publish them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("file", "width", "height", "x1", "y1", "x2", "y2", "category")
# What GTSRB's tables begin with; TSRD's have no such row.
HEADER = ("Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


class Annotation(NamedTuple):
    """One row.

    Attributes:
        row: its number, from 1.
        file: the photograph's name.
        box: left, upper, right and lower edge of the sign in pixels, the latter two exclusive; x is horizontal.
        label: the sign's class.
        size: width and height of the photograph that the box is of.
    """

    row: int
    file: str
    box: tuple[int, int, int, int]
    label: int
    size: tuple[int, int]


def read_annotations(path: Path, classes: int, header: bool = False) -> list[Annotation]:
    """Reads rows ``file;width;height;x1;y1;x2;y2;category``, with or without a semicolon at their end.

    Args:
        path: the table, in UTF-8.
        classes: number of classes; categories are in [0, classes).
        header: whether the first row names the columns, as GTSRB's do.

    Returns:
        The rows in their order; empty ones are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a row has other columns, a value that is no whole number, a box that is not inside its
            photograph, or an unknown category, or if there is no row at all. Its message names file and row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no annotations at {path}: put the published table there.")
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            cells = _cells(line)
            if header and number == 1:
                if tuple(cells) != HEADER:
                    raise ValueError(f"the columns must be {';'.join(HEADER)}, got {';'.join(cells)[:80]!r}")
            elif cells:
                found.append(_annotation(number, cells, classes))
        except ValueError as error:
            reason = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise ValueError(f"{path}, row {number}: {reason}; correct or remove the row.") from error
    if not found:
        raise ValueError(f"{path} holds no annotations up to row {number}: put the published table there.")
    return found


def photographs(table: Path, rows: Sequence[Annotation], folder: Path) -> list[Path]:
    """The files that the rows of a table name, in a folder.

    Raises:
        FileNotFoundError: if one is not there.
    """
    files = [folder / row.file for row in rows]
    if missing := [row for row, file in zip(rows, files, strict=True) if not file.is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(rows)} images that {table} names, the first being "
            f"{missing[0].file} (row {missing[0].row}): put them there, or correct the folder's name."
        )
    return files


def _cells(line: bytes) -> list[str]:
    text = line.decode("utf-8-sig").strip()
    return [cell.strip() for cell in text.removesuffix(";").split(";")] if text else []


def _annotation(row: int, cells: list[str], classes: int) -> Annotation:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(COLUMNS)} columns {';'.join(COLUMNS)} are expected, got {len(cells)}")
    file, *rest = cells
    if not file:
        raise ValueError("it names no file")
    width, height, x1, y1, x2, y2, label = (_whole(name, cell) for name, cell in zip(COLUMNS[1:], rest, strict=True))
    for axis, side, low, high, end in (("x", "width", x1, x2, width), ("y", "height", y1, y2, height)):
        if high <= low:
            raise ValueError(f"the box is reversed or empty: {axis}1={low} must be less than {axis}2={high}")
        if high > end:
            raise ValueError(f"the box leaves the image: {axis}2={high}, but its {side} is {end}")
    if label >= classes:
        raise ValueError(f"category {label} is unknown: the dataset's are 0 to {classes - 1}")
    return Annotation(row, file, (x1, y1, x2, y2), label, (width, height))


def _whole(name: str, cell: str) -> int:
    # int() alone would also take 1_0 and digits of other scripts.
    if not re.fullmatch("[0-9]{1,6}", cell):
        raise ValueError(f"{name} must be a whole number from 0 to 999999, got {cell[:40]!r}")
    return int(cell)
