"""The benchmark of stored answers measures what it says: one student asks its teacher, the other never does."""

import pytest
from rich.console import Console

from benchmarks import cache
from benchmarks.arms import Setting
from lightning_modules.teachers import FrozenTeacher


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path))


def test_what_is_stored_is_not_asked_again(monkeypatch) -> None:
    asked, answers = [], []
    step, answer = cache.take_step, FrozenTeacher.__call__

    def answering(teacher, x):
        answers.append(1)
        return answer(teacher, x)

    def counting(regime, *args) -> None:
        answers.clear()
        step(regime, *args)
        asked.append((regime.answers is not None, len(answers)))

    monkeypatch.setattr(FrozenTeacher, "__call__", answering)
    monkeypatch.setattr(cache, "take_step", counting)
    taken = cache.measure("ARD", Setting("cnn", 4, steps=1, images=8), 2, Console(quiet=True))
    assert asked == [(False, 1), (True, 0)] * 3
    assert [len(seconds) for seconds in taken.values()] == [2, 2]


def test_a_row_says_whether_the_target_is_met() -> None:
    taken = {"asked": [2.0, 3.0, 4.0], "cached": [1.0, 1.0, 1.0]}
    assert cache.cells("KD", taken) == [
        "KD",
        "3.000",
        "1.000",
        "3.00 (2.00–4.00); target ≥ 2: met",
        "0.67 (0.50–0.75)",
    ]
    assert cache.cells("ARD", {"asked": [1.0], "cached": [1.0]})[3] == "1.00 (1.00–1.00)"


@pytest.mark.slow
def test_the_command_prints_a_table(capsys) -> None:
    cache.main(["--pairs", "cnn", "--batch", "4", "--rounds", "1", "--steps", "1"])
    printed = capsys.readouterr().out
    assert "DefensiveCNN → DefensiveCNN, batches of 4, K = 1" in printed
    assert "Opening the cache of 50,000 images" in printed
