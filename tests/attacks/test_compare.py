"""Two runs compared image by image, as numbers and on the command line."""

import runpy
import sys

import numpy as np
import pyarrow as pa
import pytest
from attack_helpers import Moving
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.stats import binom
from suite_helpers import THREAT, batches, down, halves, up

from attacks import run_suite
from attacks.compare import compare, main


def write(path, ranks, index=None, label=None):
    """Outcomes of a suite as far as a comparison looks at them: ranks by attack."""
    count = len(next(iter(ranks.values())))
    columns = {"index": np.arange(count) if index is None else np.array(index)}
    columns["label"] = np.zeros(count, int) if label is None else np.array(label)
    columns |= {f"rank/{name}": np.array(values) for name, values in ranks.items()}
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def files(tmp_path):
    """Eight images: on five both are right, on two the first alone, on one neither."""
    first = write(tmp_path / "a.parquet", {"clean": [0] * 8, "FGSM": [0, 0, 0, 0, 0, 0, 0, 1], "only a": [0] * 8})
    second = write(tmp_path / "b.parquet", {"clean": [0] * 8, "only b": [0] * 8, "FGSM": [0, 0, 0, 0, 0, 1, 3, 2]})
    return first, second


def test_by_hand(files):
    clean, fgsm = compare(*files)
    assert (clean.name, clean.n, clean.first, clean.second, clean.only_first, clean.only_second) == (
        "clean", 8, 1.0, 1.0, 0, 0,
    )  # fmt: skip
    assert clean.p == 1.0
    assert (fgsm.name, fgsm.first, fgsm.second, fgsm.only_first, fgsm.only_second) == ("FGSM", 7 / 8, 5 / 8, 2, 0)
    assert fgsm.p == pytest.approx(0.5)  # two coins, both the same side


@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any))
def test_mcnemars_exact_test(tmp_path_factory, table):
    both, first, second, neither = table
    folder = tmp_path_factory.mktemp("outcomes")
    ranks = [0] * (both + first) + [1] * (second + neither), [0] * both + [2] * first + [0] * second + [1] * neither
    (found,) = compare(*(write(folder / f"{n}.parquet", {"clean": column}) for n, column in enumerate(ranks)))
    assert (found.only_first, found.only_second, found.n) == (first, second, sum(table))
    assert (found.first, found.second) == pytest.approx(((both + first) / found.n, (both + second) / found.n))
    # The smaller count, or fewer, of a fair coin's heads; either way round.
    expected = min(1.0, 2 * binom.cdf(min(first, second), first + second, 0.5))
    assert found.p == pytest.approx(expected)


def test_images_are_found_by_their_index_whatever_their_order(tmp_path):
    """Of the first run's images 5, 6, 7, 8 and the second's 8, 6, 9, 7 three are common."""
    first = write(tmp_path / "a.parquet", {"clean": [1, 0, 0, 1]}, [5, 6, 7, 8], [3, 1, 2, 0])
    second = write(tmp_path / "b.parquet", {"clean": [0, 1, 0, 1]}, [8, 6, 9, 7], [0, 1, 3, 2])
    (found,) = compare(first, second)
    assert (found.n, found.first, found.second, found.only_first, found.only_second) == (3, 2 / 3, 1 / 3, 2, 1)
    (back,) = compare(second, first)
    assert (back.n, back.first, back.second, back.p) == (3, found.second, found.first, found.p)


def test_what_a_suite_writes_can_be_compared(tmp_path):
    """One model under two attacks that go by the same name."""
    for name, move, sizes in (("a", up, (4, 6)), ("b", down, (10,))):
        result = run_suite(halves(), batches(*sizes), [Moving("move", move)], THREAT)
        result.write(tmp_path / f"{name}.parquet")
    clean, moved = compare(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert (clean.name, clean.first, clean.second, clean.p) == ("clean", 0.7, 0.7, 1.0)
    # "up" breaks two images, "down" another
    assert (moved.first, moved.second, moved.only_first, moved.only_second, moved.p) == (0.5, 0.6, 1, 2, 1.0)


# --- refusals ---


def test_a_missing_file_is_refused(files, tmp_path):
    for pair in ((tmp_path / "none.parquet", files[0]), (files[0], tmp_path / "none.parquet"), (tmp_path, files[0])):
        with pytest.raises(FileNotFoundError, match="no outcomes at"):
            compare(*pair)


def damaged(kind, files, tmp_path):
    path = tmp_path / "other.parquet"
    if kind == "no parquet":
        path.write_text("index,label")
    elif kind == "empty":
        path.touch()
    elif kind == "cut short":
        path.write_bytes(files[0].read_bytes()[:-20])
    elif kind == "another table":
        parquet.write_table(pa.table({"index": [0, 1], "label": [0, 0], "accuracy": [0.1, 0.2]}), path)
    elif kind == "no common image":
        write(path, {"clean": [0, 0]}, index=[8, 9])
    else:
        write(path, {"clean": [0] * 8}, label=[0] * 7 + [1])
    return path


DAMAGES = {
    "no parquet": "cannot be read as Parquet",
    "empty": "cannot be read as Parquet",
    "cut short": "cannot be read as Parquet",
    "another table": "holds no outcomes",
    "no common image": "no image in common",
    "other labels": "different test sets",
}


@pytest.mark.parametrize(("kind", "match"), DAMAGES.items(), ids=DAMAGES)
def test_files_that_cannot_be_compared_are_refused(files, tmp_path, kind, match):
    other = damaged(kind, files, tmp_path)
    for pair in ((files[0], other), (other, files[0])):
        with pytest.raises(ValueError, match=match):
            compare(*pair)


# --- the command line ---


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def command(monkeypatch, *args):
    """``python -m attacks.compare`` in this process."""
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, args)])
    monkeypatch.delitem(sys.modules, "attacks.compare")
    runpy.run_module("attacks.compare", run_name="__main__")


def test_the_command_prints_a_table(files, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    command(monkeypatch, *files)
    text = capsys.readouterr().out
    assert "8 images in common" in text
    (row,) = [line for line in text.splitlines() if "FGSM" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["FGSM", "87.5", "62.5", "-25.0", "2", "0", "0.5"]
    assert not any(name in text for name in ("only a ", "only b "))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_command_needs_two_files(files, count):
    with pytest.raises(ValueError, match="Give two files"):
        main([str(files[0])] * count)


@pytest.mark.parametrize("kind", ["missing", "no parquet", "no common image", "one file"])
def test_the_command_ends_with_a_sentence(files, tmp_path, monkeypatch, capsys, kind):
    if kind == "one file":
        args = [files[0]]
    else:
        args = [files[0], tmp_path / "none.parquet" if kind == "missing" else damaged(kind, files, tmp_path)]
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *args)
    # A text as exit code is printed to the standard error, and the code is 1.
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith("Error: ")
    assert len(ended.value.code.splitlines()) == 1
    assert capsys.readouterr().out == ""
