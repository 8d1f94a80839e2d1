"""What studies share: quiet fits, spread over the seeds, processes side by side, tables."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from scipy import stats
from study_helpers import cells

from studies.runs import existing, fit, half_width, parser_of, printing_to, read, show, side_by_side, spread

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6).filter(lambda values: np.ptp(values) > 1e-6)


@given(VALUES)
def test_half_width_is_that_of_students_interval(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-6)


def test_one_seed_has_no_spread():
    assert half_width([3.0]) == float("inf")
    assert spread([3.14159], 2) == "3.14"


@given(VALUES)
def test_spread_is_mean_and_deviation(values):
    average, deviation = map(float, spread(values, 3).split(" ± "))
    assert average == pytest.approx(np.mean(values), abs=6e-4)
    assert deviation == pytest.approx(np.std(values, ddof=1), abs=6e-4)


def test_a_table_is_the_same_in_markdown(tmp_path):
    table = Table("mean |dF/dX|", "n", title="Amplitudes")
    table.add_row("a", "1", end_section=True)
    table.add_row("b", "2")
    show(table, tmp_path / "new" / "table.md")
    text = (tmp_path / "new" / "table.md").read_text()
    assert text.startswith("Amplitudes\n\n|")
    assert cells(tmp_path / "new" / "table.md") == [[r"mean \|dF/dX\|", "n"], ["a", "1"], ["b", "2"]]


def test_what_is_printed_goes_to_the_log_alone(tmp_path, capfd):
    log = tmp_path / "new" / "run.log"
    with printing_to(log):
        print("from here")
        subprocess.run([sys.executable, "-c", "import sys; print('from there', file=sys.stderr)"], check=True)
    print("afterwards")
    assert sorted(log.read_text().splitlines()) == ["from here", "from there"]
    assert capfd.readouterr() == ("afterwards\n", "")


def test_a_fit_that_is_refused_ends_with_a_sentence(tmp_path, at_root, capfd):
    with pytest.raises(SystemExit) as end:
        fit(["--config", "configs/kd_mnist.yaml", "--model.temperature", "cold"], "cold", tmp_path)
    assert "temperature: Expected a float. Got value: cold" in end.value.code
    assert str(tmp_path / "cold.log") in end.value.code
    with pytest.raises(SystemExit) as end:
        fit(["--config", "configs/toy_ring.yaml", "--model.temperature", "-1"], "colder", tmp_path)
    assert "-1" in end.value.code
    assert capfd.readouterr() == ("", "")


def test_shares_are_read_and_the_last_weights_win(tmp_path):
    rows = ["metric,value,unit,checkpoint", "clean,0.75,,last", "clean,0.5,,best", "only,0.25,,best", "KL,3,nats,last"]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    assert read(tmp_path) == {"clean": 0.75, "only": 0.25}


def test_side_by_side_keeps_the_order_and_ends_with_the_first_failure():
    assert side_by_side(pow, [(2, power) for power in range(4)], 2, "powers") == [1, 2, 4, 8]
    with pytest.raises(ZeroDivisionError):
        side_by_side(divmod, [(1, 0), (1, 1)], 1, "quotients")


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--jobs", "two"], ["--seed", "1"]])
def test_bad_input_is_a_sentence(words, capsys):
    with pytest.raises(SystemExit) as end:
        parser_of("claims", "", 3).parse_args(words)
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_folder_must_exist(tmp_path):
    assert existing(str(tmp_path)) == tmp_path
    with pytest.raises(Exception, match="nowhere"):
        existing(str(tmp_path / "nowhere"))
