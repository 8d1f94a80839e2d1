"""What finished runs say, by name and seed, and what is refused."""

import math

import pytest
from report_helpers import fail, finish, first, grid, whole

from attacks.records import Record, write_records
from studies.gather import Results


def test_a_figure_by_seed(tmp_path):
    results = whole(tmp_path)
    assert {seed: record.value for seed, record in results.values("KD at 10", "PGD-20").items()} == {
        0: pytest.approx(0.60),
        1: pytest.approx(0.61),
        2: pytest.approx(0.62),
    }
    assert [record.value for record in results.values("plain", "hours").values()] == pytest.approx([1 / 60] * 3)
    assert results.values("plain", "PGD-20", model="teacher") == {}
    assert results.names == ["teacher", "KD at 10", "KD at 40", "plain"]


def test_the_teachers_figure_is_apart(tmp_path):
    found = grid(tmp_path)
    planned = found.cells["plain #0"]
    finish(planned, {"clean": first(50)})
    teachers = Record("clean", 0.75, 100, 0.7, 0.8, 0.1, model="teacher")
    write_records(planned.judgings["attacks"], [teachers])
    (ran,) = (ran for ran in Results(found).runs if ran.planned is planned)
    assert ran.record("clean") != ran.record("clean", model="teacher") == teachers
    assert ran.outcomes("clean") == planned.judgings["attacks"] / "outcomes" / "network-best.parquet"
    assert ran.outcomes("clean", model="teacher") is None
    assert ran.record("parameters", model="teacher") is None


def test_what_is_no_number_is_no_figure(tmp_path):
    found = grid(tmp_path)
    finish(found.cells["plain #0"], {}, [Record("distance", math.nan, 1, math.nan, math.nan, 0.0, unit="l2")])
    assert Results(found).values("plain", "distance") == {}


def test_a_test_that_measured_nothing(tmp_path):
    found = grid(tmp_path)
    finish(found.cells["plain #0"], {})
    (found.cells["plain #0"].judgings["attacks"] / "results.csv").unlink()
    assert Results(found).values("plain", "clean") == {}


def test_states(tmp_path):
    found = grid(tmp_path)
    finish(found.cells["plain #0"], {})
    fail(found.cells["plain #1"], "the disk is full")
    fail(found.cells["teacher #0"], "the disk is full")
    states = {ran.planned.cell.id: ran.state for ran in Results(found).runs}
    assert [states[f"plain #{seed}"] for seed in range(3)] == ["done", "failed", "waiting"]
    assert (states["teacher #0"], states["KD at 10 #2"]) == ("failed", "skipped")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("KD", "clean"), "no run 'KD'.*KD at 10"),
        (("plain", "clean", "look"), "no judging 'look'"),
        (("plain", "clean", None, "student"), "'student'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        Results(grid(tmp_path)).values(*asked)
