"""Traffic signs in the formats in which TSRD and GTSRB are published, a few pixels each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# file, width, height, x1, y1, x2, y2, category
Row = tuple[str, int, int, int, int, int, int, int]
TABLES = {"train": "TsignRecgTrain4170Annotation.txt", "test": "TsignRecgTest1994Annotation.txt"}
GTSRB_HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"

TRAIN: tuple[Row, ...] = (
    ("000_0001.png", 10, 6, 3, 1, 7, 5, 0),
    ("000_0002.png", 6, 12, 0, 8, 4, 12, 0),
    ("057_0001.png", 9, 9, 5, 5, 9, 9, 57),
)
TEST: tuple[Row, ...] = (("000_1_0001_1_j.png", 10, 7, 2, 3, 6, 7, 0), ("005_1_0002_1_j.png", 4, 4, 0, 0, 4, 4, 5))


def line(row: Iterable[Any], end: str = "") -> str:
    return ";".join(map(str, row)) + end


def photograph(row: Row) -> np.ndarray:
    """Every pixel tells where it is and of which class: (height, width, 3), red is 10 x, green 10 y, blue the class."""
    _, width, height, *_, label = row
    y, x = np.mgrid[:height, :width]
    return np.stack([10 * x, 10 * y, np.full_like(x, label)], 2).astype(np.uint8)


def cut(row: Row) -> np.ndarray:
    """What is inside the row's box, (3, y2 - y1, x2 - x1)."""
    x1, y1, x2, y2 = row[3:7]
    return photograph(row)[y1:y2, x1:x2].transpose(2, 0, 1)


def write_tsrd(root: Path, train: tuple[Row, ...] = TRAIN, test: tuple[Row, ...] = TEST) -> Path:
    """TSRD's two folders of PNGs and two tables, whose rows end in a semicolon."""
    for split, rows in (("train", train), ("test", test)):
        (root / split).mkdir(parents=True)
        for row in rows:
            Image.fromarray(photograph(row)).save(root / split / row[0])
        (root / TABLES[split]).write_text("".join(line(row, ";\n") for row in rows))
    return root


def write_gtsrb(root: Path, train: tuple[Row, ...], test: tuple[Row, ...]) -> Path:
    """GTSRB as torchvision unpacks it, PPMs: a folder and a table per class to train, one of each to test."""
    training, tested = root / "gtsrb/GTSRB/Training", root / "gtsrb/GTSRB/Final_Test/Images"
    places = [
        (training / f"{c:05}", training / f"{c:05}/GT-{c:05}.csv", [r for r in train if r[7] == c]) for c in range(43)
    ]
    for folder, table, rows in [*places, (tested, root / "gtsrb/GT-final_test.csv", test)]:
        folder.mkdir(parents=True)
        for row in rows:
            Image.fromarray(photograph(row)).save(folder / row[0])
        table.write_text("\n".join([GTSRB_HEADER, *map(line, rows), ""]))
    return root
