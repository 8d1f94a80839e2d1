"""Tables of annotations: what is written is read, and a malformed row is an error that names it, never another one.

TSRD's rows are ``000_0001.png;134;128;19;7;120;117;0;``; GTSRB's have no semicolon at their end and a header.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sign_helpers import GTSRB_HEADER, TRAIN, line

from datamodules.annotations import Annotation, read_annotations

CLASSES = 58
GOOD = "000_0001.png;134;128;19;7;120;117;0;"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotations") / "Annotation.txt"


@st.composite
def rows(draw: st.DrawFn) -> tuple:
    name = draw(st.from_regex(r"[\w./-]{1,20}", fullmatch=True))
    ends = []
    for _ in range(2):
        length = draw(st.integers(1, 5000))
        low = draw(st.integers(0, length - 1))
        ends.append((length, low, draw(st.integers(low + 1, length))))
    (width, x1, x2), (height, y1, y2) = ends
    return name, width, height, x1, y1, x2, y2, draw(st.integers(0, CLASSES - 1))


@given(st.lists(rows(), min_size=1, max_size=5), st.sampled_from(["", ";"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_is_written_is_read(table, written, semicolon, end) -> None:
    table.write_bytes("".join(line(row, semicolon + end) for row in written).encode())
    found = read_annotations(table, CLASSES)
    assert [(a.file, *a.box, a.label) for a in found] == [(row[0], *row[3:]) for row in written]
    assert [a.row for a in found] == [1 + number * end.count("\n") for number in range(len(written))]


def test_as_numpy_reads_it(table) -> None:
    table.write_text("\n".join(line(row, ";") for row in TRAIN))
    numbers = np.loadtxt(table, int, delimiter=";", usecols=range(1, 8))
    files = np.loadtxt(table, str, delimiter=";", usecols=0)
    found = read_annotations(table, CLASSES)
    assert [a.file for a in found] == files.tolist()
    assert [(*a.size, *a.box, a.label) for a in found] == [tuple(row) for row in numbers.tolist()]


def test_published_row(table) -> None:
    table.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # some copies begin with a byte order mark
    assert read_annotations(table, CLASSES) == [Annotation(1, "000_0001.png", (19, 7, 120, 117), 0, (134, 128))]


def test_header(table) -> None:
    table.write_text(f"{GTSRB_HEADER}\n00000_00000.ppm;29;30;5;6;24;25;0\n")
    assert read_annotations(table, 43, header=True) == [Annotation(2, "00000_00000.ppm", (5, 6, 24, 25), 0, (29, 30))]
    with pytest.raises(ValueError, match=r"Annotation\.txt, row 1: width must be a whole number .* got 'Width'"):
        read_annotations(table, 43)
    table.write_text("Filename;Width;Height;ClassId\n00000_00000.ppm;29;30;0\n")
    with pytest.raises(ValueError, match=r"row 1: the columns must be .*Roi\.X1.*got 'Filename;Width;Height;ClassId'"):
        read_annotations(table, 43, header=True)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.png;10;10;1;1;9;9;", "8 columns file;width;.*;category are expected, got 7"),
        ("a.png;10;10;1;1;9;9;0;0;", "got 9"),
        ("a.png", "got 1"),
        (";10;10;1;1;9;9;0;", "it names no file"),
        ("a.png;10;10;1;1;9;9;;", "category must be a whole number from 0 to 999999, got ''"),
        ("a.png;10;10;-1;1;9;9;0;", "x1 must be a whole number from 0 to 999999, got '-1'"),
        ("a.png;10;10;1;1.5;9;9;0;", "y1 must .* got '1.5'"),
        ("a.png;1_0;10;1;1;9;9;0;", "width must .* got '1_0'"),
        (f"a.png;{'9' * 5000};10;1;1;9;9;0;", "width must"),
        ("a.png;10;10;9;1;1;9;0;", "reversed or empty: x1=9 must be less than x2=1"),
        ("a.png;10;10;1;5;9;5;0;", "reversed or empty: y1=5 must be less than y2=5"),
        ("a.png;10;20;1;1;11;9;0;", "leaves the image: x2=11, but its width is 10"),
        ("a.png;20;10;1;1;11;11;0;", "leaves the image: y2=11, but its height is 10"),
        ("a.png;10;10;1;1;9;9;58;", "category 58 is unknown: the dataset's are 0 to 57"),
        (b"\xff\xfe.png;10;10;1;1;9;9;0;", "it is no UTF-8"),
    ],
)
def test_malformed_row_is_named(table, row, says) -> None:
    table.write_bytes(f"{GOOD}\n\n".encode() + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(ValueError, match=rf"{table}, row 3: .*{says}") as caught:
        read_annotations(table, CLASSES)
    assert "\n" not in str(caught.value)


def read_or_fault(table: Path, header: bool = False) -> tuple[list[Annotation], str]:
    """The rows, or what is wrong with them; any error but a ValueError is raised."""
    try:
        return read_annotations(table, CLASSES, header), ""
    except ValueError as error:
        return [], str(error)


@given(st.binary(max_size=60) | st.text("0123456789;-. \n\r\tax", max_size=60).map(str.encode), st.booleans())
def test_anything_is_read_or_refused_by_file_and_row(table, content, header) -> None:
    table.write_bytes(content)
    found, fault = read_or_fault(table, header)
    assert found or (str(table) in fault and "row " in fault)


@given(rows(), st.data())
def test_one_wrong_character_is_read_otherwise_or_refused(table, row, data) -> None:
    text = line(row, ";")
    place = data.draw(st.integers(0, len(text) - 1))
    table.write_text(f"{GOOD}\n{text[:place]}{data.draw(st.characters(codec='utf-8'))}{text[place + 1 :]}\n")
    found, fault = read_or_fault(table)
    if fault:
        assert fault.startswith((f"{table}, row 2: ", f"{table}, row 3: "))  # a line feed makes two rows of one
    else:
        x1, y1, x2, y2 = found[-1].box
        assert x1 < x2
        assert y1 < y2
        assert found[-1].label < CLASSES


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_table(table, content) -> None:
    table.write_text(content)
    with pytest.raises(ValueError, match=r"holds no annotations up to row \d"):
        read_annotations(table, CLASSES)


def test_missing_table(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no annotations at .*nowhere\.txt: put the published table there"):
        read_annotations(tmp_path / "nowhere.txt", CLASSES)
