"""A fit that is stopped says how to go on, loses nothing, and ends where it would have ended."""

import copy
import csv
import re
import shlex
import signal

import matplotlib.axes
import pytest
from main_helpers import (
    QUIET,
    checkpoint,
    of,
    only,
    process,
    results,
    same_weights,
    stopping,
    teacher_config,
    write,
)

from main import main


def config(**trainer):
    """Two epochs of 6 steps, with dropout, whose draws must be those of the fit that was never stopped."""
    changed = copy.deepcopy(teacher_config(**trainer))
    changed["model"]["init_args"]["network"]["init_args"]["dropout"] = 0.2
    return changed


@pytest.fixture
def stopped(tmp_path, at_root):
    """Runs a fit that gets a signal after a step, in a process of its own; returns its end and its folder."""

    def run(sent, step=9):
        path = write(tmp_path / "stopped.yaml", config(callbacks=stopping(step, sent, tmp_path / "marker")))
        ended = process("fit", "--config", path, "--runs", tmp_path / "runs", "--trainer.enable_progress_bar", "false")
        return ended, only(tmp_path, "runs/stopped/*")

    return run


@pytest.fixture
def uninterrupted(cli, tmp_path):
    return cli("fit", "--config", write(tmp_path / "whole.yaml", config()), "--runs", tmp_path / "runs").folder


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_told_how_to_go_on(sent, stopped, at_root):
    ended, folder = stopped(sent)
    assert ended.status
    assert "Traceback" not in ended.err
    words = shlex.split(re.search(r"python main\.py (fit .*)", ended.err)[1])
    assert main([*words, *QUIET]).folder == folder
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 12
    assert of("network", results(folder))


@pytest.mark.slow
def test_stopped_before_the_first_checkpoint(stopped):
    """There is nothing to go on from; what to do is begin again, and the person is told so."""
    ended, folder = stopped(signal.SIGINT, step=3)
    assert ended.status
    assert "Traceback" not in ended.err
    assert not list((folder / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
def test_killed_then_resumed_is_the_fit_that_was_not_killed(stopped, uninterrupted, cli, monkeypatch):
    ended, folder = stopped(signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    last = folder / "checkpoints" / "last.ckpt"
    assert checkpoint(last)["global_step"] == 6

    drawn = {}
    plot = matplotlib.axes.Axes.plot

    def spy(self, x, y, *args, **kwargs):
        drawn[kwargs["label"]] = list(x)
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    assert cli("fit", "--config", folder / "config.yaml", "--ckpt_path", last).folder == folder
    # The end: the same steps, the same weights, the same figures.
    assert (
        checkpoint(last)["global_step"] == checkpoint(uninterrupted / "checkpoints" / "last.ckpt")["global_step"] == 12
    )
    assert same_weights(last, uninterrupted / "checkpoints" / "last.ckpt")
    assert same_weights(folder / "checkpoints" / "best.ckpt", uninterrupted / "checkpoints" / "best.ckpt")
    assert of("network", results(folder)) == of("network", results(uninterrupted))
    # The figures of before are kept, and drawn with those of after.
    assert epochs(folder / "metrics-1.csv") == {0}
    assert epochs(folder / "metrics.csv") == {1}
    assert drawn["train/loss"] == drawn["val/acc"] == [0, 1]
    assert (folder / "figures" / "curves.png").stat().st_size > 1000


def epochs(file):
    with file.open() as lines:
        return {int(row["epoch"]) for row in csv.DictReader(lines) if row["val/acc"]}


def test_longer_fit_goes_on_from_a_shorter_one(uninterrupted, cli, tmp_path):
    """At an epoch's boundary, without a process that dies: two epochs and one more are three."""
    path = write(tmp_path / "three.yaml", config(max_epochs=3))
    three = cli("fit", "--config", path, "--runs", tmp_path / "runs").folder
    last = uninterrupted / "checkpoints" / "last.ckpt"
    assert not same_weights(three / "checkpoints" / "last.ckpt", last)
    more = ["--trainer.max_epochs", "3"]
    assert cli("fit", "--config", uninterrupted / "config.yaml", "--ckpt_path", last, *more).folder == uninterrupted
    assert checkpoint(last)["global_step"] == 18
    assert same_weights(three / "checkpoints" / "last.ckpt", last)


def test_curves_count_each_resumption(cli, tmp_path, uninterrupted):
    last = uninterrupted / "checkpoints" / "last.ckpt"
    for total in (3, 4):
        again = ["--config", uninterrupted / "config.yaml", "--ckpt_path", last, "--trainer.max_epochs", total]
        cli("fit", *again)
    parts = sorted(path.name for path in uninterrupted.glob("metrics*.csv"))
    assert parts == ["metrics-1.csv", "metrics-2.csv", "metrics.csv"]
    assert [epochs(uninterrupted / part) for part in parts] == [{0, 1}, {2}, {3}]
