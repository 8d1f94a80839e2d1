"""Records: their files and their intervals."""

import csv
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from suite_helpers import THREAT, batches, halves

from attacks import FGSM, Record, run_suite, wilson
from attacks.records import mean, median, share, write_records

# --- files ---


def read(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return lines, rows


def test_records_are_appended_and_the_table_holds_them_all(tmp_path):
    first = [Record("clean", 0.7, 10, 0.4, 0.9, 0.1, model="student", checkpoint="best")]
    second = [Record('PGD-20 "x5", l2', 0.4, 10, 0.2, 0.7, 1.5, threat="linf 8/255", model="teacher")]
    write_records(tmp_path, first)
    write_records(tmp_path, second)
    lines, rows = read(tmp_path)
    assert [Record(**line) for line in lines] == first + second
    assert [row["metric"] for row in rows] == ["clean", 'PGD-20 "x5", l2']
    assert [float(row["value"]) for row in rows] == [0.7, 0.4]
    assert [int(row["n"]) for row in rows] == [10, 10]
    assert rows[1]["threat"] == "linf 8/255"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.jsonl"]


def test_an_interrupted_write_loses_nothing_that_stood_there(tmp_path, monkeypatch):
    record = Record("clean", 0.7, 10, 0.4, 0.9, 0.1)
    write_records(tmp_path, [record])
    before = (tmp_path / "results.csv").read_text()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, [record])
    assert (tmp_path / "results.csv").read_text() == before
    monkeypatch.undo()
    write_records(tmp_path, [record])
    lines, rows = read(tmp_path)
    assert len(lines) == len(rows) >= 2


def test_a_line_that_was_torn_off_does_not_stop_what_follows(tmp_path):
    """A process killed while it appends leaves half a line; the runs after it must still be recorded."""
    record = Record("clean", 0.7, 10, 0.4, 0.9, 0.1)
    write_records(tmp_path, [record])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"metric": "cle')
    write_records(tmp_path, [record])
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["metric"] for row in csv.DictReader(file)] == ["clean", "clean"]


def test_a_folder_that_does_not_exist_yet_is_made(tmp_path):
    write_records(tmp_path / "runs" / "ard", [Record("clean", 0.7, 10, 0.4, 0.9, 0.1)])
    assert len(read(tmp_path / "runs" / "ard")[0]) == 1


def test_what_the_suite_finds_can_be_written(tmp_path):
    records = list(run_suite(halves(), batches(), [FGSM()], THREAT).records())
    write_records(tmp_path, records)
    assert [Record(**line) for line in read(tmp_path)[0]] == records


# --- intervals ---


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair):
    successes, n = pair
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    low, high = wilson(successes, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= successes / n <= high <= 1  # matplotlib refuses error bars of negative length


def test_wilson_at_other_levels():
    expected = stats.binomtest(30, 40).proportion_ci(0.99, "wilson")
    assert wilson(30, 40, stats.norm.ppf(0.995)) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (0, -1)])
def test_wilson_needs_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_share():
    record = share("PGD-20", 3, 4, 1.25, "linf 8/255")
    assert (record.metric, record.value, record.n, record.threat) == ("PGD-20", 0.75, 4, "linf 8/255")
    assert (record.low, record.high) == wilson(3, 4)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=50))
def test_means_interval_is_students(values):
    values = np.array(values)
    record = mean("far", values, "l2", 1.25)
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), error) if error else (values.mean(),) * 2
    assert (record.value, record.n, record.unit) == (values.mean(), len(values), "l2")
    # no length is negative
    assert (record.low, record.high) == pytest.approx((max(expected[0], 0.0), expected[1]), abs=1e-9)


@pytest.mark.parametrize("n", [20, 51, 200])
def test_the_interval_of_a_median_is_the_sign_tests(n):
    """Inside it lie those values that a two-sided sign test at 5 % does not refuse for the median."""
    values = np.random.default_rng(n).lognormal(size=n)
    record = median("size", values, "nm", 0.1234)
    kept = [v for v in values if stats.binomtest(int((values < v).sum()), n).pvalue > 0.05]
    assert record.value == np.median(values)
    assert record.low <= min(kept) < max(kept) <= record.high
    mirrored = median("size", -values, "nm", 0.0)
    assert (mirrored.low, mirrored.high) == (-record.high, -record.low)
    below, above = (int((np.sort(values) < end).sum()) for end in (record.low, record.high))
    assert stats.binom.cdf(above, n, 0.5) - stats.binom.cdf(below, n, 0.5) >= 0.95  # it covers what it says
    assert (record.n, record.unit, record.seconds) == (n, "nm", 0.123)
