"""A suite that is stopped goes on by the same command, and ends where it would have ended; so do two processes."""

import csv
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_helpers import DDP, QUIET, Ended, only, process, start, write
from pyarrow import parquet

from attacks.state import State


def attack(name: str, **init: Any) -> dict[str, Any]:
    return {"class_path": f"attacks.{name}", "init_args": init}


QUICK = {
    "threat": {"norm": "linf", "eps": 0.05},
    "images": 60,
    "attacks": [
        attack("PGD", steps=3),
        attack("AutoAttack", attacks=[attack("APGD", steps=5), attack("Square", queries=20)]),
        attack("JSMA"),
    ],
    "keep_images": True,
}
# Batches of 20 for some seconds: PGD, APGD-CE, APGD-T, FAB-T, Square; then a curve.
LONG = {
    "threat": {"norm": "linf", "eps": 0.05},
    "images": 160,
    "attacks": [attack("PGD", steps=20), attack("AutoAttack")],
    "curves": [{"attack": attack("PGD", steps=5), "eps": [0.05, 0.1]}],
    "keep_images": True,
}


@dataclass
class Seen:
    """What a suite read and wrote while it ran."""

    read: list[tuple[str, int]] = field(default_factory=list)
    written: list[tuple[str, int]] = field(default_factory=list)
    at_the_end: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def seen(monkeypatch) -> Seen:
    seen = Seen()
    read, written, finish = State.read, State.write, State.finish

    def spy_read(self: State, stage: str, batch: int, where: np.ndarray) -> Any:
        done = read(self, stage, batch, where)
        if done is not None:
            seen.read.append((stage, batch))
        return done

    def spy_write(self: State, stage: str, batch: int, *args: Any) -> None:
        seen.written.append((stage, batch))
        written(self, stage, batch, *args)

    def spy_finish(self: State) -> None:
        if self.folder is not None and self.folder.is_dir():
            seen.at_the_end |= stamps(self.folder)
        finish(self)

    for name, spy in (("read", spy_read), ("write", spy_write), ("finish", spy_finish)):
        monkeypatch.setattr(State, name, spy)
    return seen


def stamps(folder: Path) -> dict[str, int]:
    """When each finished part below a folder was last written."""
    return {f"{p.parent.name}/{p.name}": p.stat().st_mtime_ns for p in sorted(folder.rglob("[0-9]*.npz"))}


@pytest.fixture
def words(tiny_teacher, tmp_path) -> Callable[..., list[Any]]:
    """A test's command line, the same each time."""

    def of(content: dict[str, Any], *more: Any, runs: str = "runs") -> list[Any]:
        path = write(tmp_path / "suite.yaml", content)
        weights = ["--ckpt_path", tiny_teacher / "checkpoints" / "best.ckpt", "--suite", path]
        return ["test", "--config", tiny_teacher / "config.yaml", *weights, "--runs", tmp_path / runs, *more]

    return of


SMALL = ["--data.eval_batch_size", "20"]


def outcome(folder: Path, name: str = "network-best.parquet") -> bytes:
    return (folder / "outcomes" / name).read_bytes()


def untimed(folder: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv`` but for seconds."""
    with (folder / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def images(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "outcomes" / "network-best.npz") as file:
        return dict(file)


def same_kept(one: Path, other: Path) -> None:
    a, b = images(one), images(other)
    assert a.keys() == b.keys()
    rows, others = a["index"].argsort(), b["index"].argsort()
    for name in a:
        np.testing.assert_array_equal(a[name][rows], b[name][others], err_msg=name)


def stop(arguments: list[Any], sent: signal.Signals, unfinished: Path, part: str) -> Ended:
    """Starts a command, and sends it a signal as soon as it has finished a part."""
    running = start(*arguments)
    try:
        limit = time.monotonic() + 100
        while not list(unfinished.glob(f"*/{part}.npz")):
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < limit, "no part was finished"
            time.sleep(0.002)
        running.send_signal(sent)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    return Ended(running.returncode, out, err)


# Stopped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (signal.SIGKILL, "001-00001"),  # PGD's second batch
        (signal.SIGINT, "005-00000"),  # Square's
    ],
)
def test_stopped_and_resumed_is_the_suite_that_was_not_stopped(sent, part, words, cli, seen, tmp_path):
    unfinished = tmp_path / "runs" / "tiny" / ".unfinished"
    ended = stop(words(LONG, *SMALL), sent, unfinished, part)
    assert ended.status
    assert "Traceback" not in ended.err
    stopped = only(tmp_path, "runs/tiny/*-test")
    assert not (stopped / "results.csv").exists()
    before = stamps(unfinished)
    assert before

    folder = cli(*words(LONG, *SMALL)).folder
    assert folder != stopped
    assert {name: seen.at_the_end[name] for name in before} == before, "what was done is not written again"
    assert len(seen.read) == len(before), "but read"
    assert len(seen.written) == len(seen.at_the_end) - len(before)
    assert not unfinished.exists()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []

    whole = cli(*words(LONG, *SMALL, runs="whole")).folder
    assert outcome(folder) == outcome(whole)
    assert untimed(folder) == untimed(whole)
    same_kept(folder, whole)


@pytest.mark.slow
def test_stopped_twice(words, cli, tmp_path):
    unfinished = tmp_path / "runs" / "tiny" / ".unfinished"
    stop(words(LONG, *SMALL), signal.SIGKILL, unfinished, "001-00003")
    first = stamps(unfinished)
    stop(words(LONG, *SMALL), signal.SIGKILL, unfinished, "004-00000")
    second = stamps(unfinished)
    assert first.items() < second.items()
    folder = cli(*words(LONG, *SMALL)).folder
    assert outcome(folder) == outcome(cli(*words(LONG, *SMALL, runs="whole")).folder)
    assert not unfinished.exists()


@pytest.fixture
def kept(words, cli, monkeypatch, tmp_path) -> tuple[Path, Path]:
    """A suite that has finished but for its last act: its folder, and what it has kept to go on from."""
    with monkeypatch.context() as patch:
        patch.setattr(State, "finish", lambda self: None)
        folder = cli(*words(QUICK, *SMALL)).folder
    return folder, tmp_path / "runs" / "tiny" / ".unfinished"


def test_all_done_but_the_end(kept, words, cli, seen):
    folder, unfinished = kept
    count = len(stamps(unfinished))
    again = cli(*words(QUICK, *SMALL)).folder
    assert seen.written == []
    assert len(seen.read) == count
    assert outcome(again) == outcome(folder)
    assert untimed(again) == untimed(folder)
    same_kept(again, folder)
    assert not unfinished.exists()


@pytest.mark.parametrize(
    "other",
    [
        ["--suite.threat.eps", "0.06"],
        ["--suite.seed", "1"],
        ["--suite.precision", "bf16"],
        ["--suite.rng", "official"],
        ["--suite.votes", "2"],
        ["--suite.keep_images", "false"],
        ["--suite.images", "50"],
        ["--data.eval_batch_size", "10"],
    ],
    ids=lambda option: option[0].rsplit(".", 1)[1],
)
def test_another_suite_does_not_go_on_there(other, kept, words, cli, seen):
    _, unfinished = kept
    before = stamps(unfinished)
    cli(*words(QUICK, *SMALL, *other))
    assert seen.read == []
    assert stamps(unfinished) == before, "nor does its end remove another's parts"


@pytest.mark.parametrize("damage", ["empty", "half", "text", "flipped"])
def test_damaged_part_is_attacked_again(damage, kept, words, cli, seen):
    folder, unfinished = kept
    path = sorted(unfinished.rglob("002-*.npz"))[0]
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "text": b"hello",
        "flipped": whole[:400] + bytes(255 - byte for byte in whole[400:440]) + whole[440:],
    }
    path.write_bytes(damaged[damage])
    again = cli(*words(QUICK, *SMALL)).folder
    assert seen.written == [("002", 0)]
    assert outcome(again) == outcome(folder)


@pytest.mark.parametrize("damage", ["an array", "without positions", "without a column"])
def test_part_that_is_another_file_is_attacked_again(damage, kept, words, cli, seen):
    """Such as one that an older version wrote."""
    folder, unfinished = kept
    path = sorted(unfinished.rglob("002-*.npz"))[0]
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "an array":
        with path.open("wb") as file:
            np.save(file, arrays["l2"])
    else:
        arrays.pop("where" if damage == "without positions" else "l2")
        np.savez(path, **arrays)
    again = cli(*words(QUICK, *SMALL)).folder
    assert outcome(again) == outcome(folder)


def test_what_a_killed_process_left_half_written_is_no_part(kept, words, cli, seen):
    folder, unfinished = kept
    path = sorted(unfinished.rglob("001-*.npz"))[-1]
    shutil.move(path, path.with_name(f".{path.stem}.partial.npz"))
    again = cli(*words(QUICK, *SMALL)).folder
    assert seen.written == [("001", int(path.stem[-5:]))]
    assert outcome(again) == outcome(folder)
    assert not unfinished.exists()


def test_other_files_in_the_folder_of_unfinished_suites_stay(words, cli, tmp_path):
    unfinished = tmp_path / "runs" / "tiny" / ".unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "note").write_text("mine")
    cli(*words(QUICK))
    assert [path.name for path in unfinished.iterdir()] == ["note"]


def test_no_folder_to_keep_parts_in(words, command, tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / ".unfinished").write_text("a file")
    ended = command(*words(QUICK))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert ".unfinished" in ended.err.split("rror: ")[-1]


def test_run_folder_that_is_a_dead_link(tmp_path):
    from lightning_modules.run_folder import new_folder

    (tmp_path / "tiny").symlink_to(tmp_path / "missing" / "disk")
    refused: list[Exception] = []

    def make() -> None:
        try:
            new_folder(tmp_path, "tiny", "test")
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(2)
    ended = not thread.is_alive()
    (tmp_path / "missing" / "disk").mkdir(parents=True)  # lets the loop end
    thread.join(5)
    assert ended
    assert refused


def test_two_of_the_same_suite_at_once(monkeypatch, tmp_path):
    """The same command given twice shares what is kept: here the other finishes a part while this one writes it."""
    one, other = State(tmp_path), State(tmp_path)
    where = np.arange(3)
    for state in (one, other):
        state.open("key")
    columns = ("prediction", "rank", "linf", "l2", "forwards", "backwards", "seconds", "x_adv")
    done = {name: np.zeros(3) for name in columns}
    save, own = np.savez, os.getpid()

    def slow(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        monkeypatch.setattr(np, "savez", save)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: own + 1)
            other.write("001", 0, where, done)

    monkeypatch.setattr(np, "savez", slow)
    one.write("001", 0, where, done)
    assert one.read("001", 0, where) is not None


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize("count", [121])
def test_two_processes_give_the_outcomes_of_one(count, words, cli, tmp_path):
    """Of an odd count the two have shares of different size; of 121 the first's last batch is one image."""
    more = [attack("JSMA"), attack("Noise"), attack("DeepFool", unlimited=True)]
    content = LONG | {"images": count, "attacks": [*LONG["attacks"], *more]}
    ended = process(*words(content, *SMALL, *DDP, *QUIET[2:], runs="two"), timeout=250)
    assert ended.status == 0, ended.err
    two = only(tmp_path, "two/tiny/*-test")
    assert not (two.parent / ".unfinished").exists()
    one = cli(*words(content)).folder
    same_but_for_rounding(one, two)
    assert [(r["metric"], r["n"]) for r in untimed(two)] == [(r["metric"], r["n"]) for r in untimed(one)]
    values = [[float(r["value"]) for r in untimed(folder)] for folder in (one, two)]
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    a, b = images(one), images(two)
    for name in a:
        close = {"rtol": 0, "atol": 1e-4, "err_msg": name}
        np.testing.assert_allclose(a[name][a["index"].argsort()], b[name][b["index"].argsort()], **close)
    drawn = sorted(path.name for path in (one / "figures").iterdir())
    assert sorted(path.name for path in (two / "figures").iterdir()) == drawn


def same_but_for_rounding(one: Path, two: Path) -> None:
    """What became of every image; the rounding of sums, and so lengths, follows the shape of a batch."""
    here, there = (parquet.read_table(folder / "outcomes" / "network-best.parquet") for folder in (one, two))
    assert there.column_names == here.column_names
    for name in here.column_names:
        a, b = here[name].to_numpy(), there[name].to_numpy()
        if name.split("/")[0] in ("linf", "l2"):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
        elif name in ("forwards/DeepFool unlimited", "backwards/DeepFool unlimited"):
            continue  # see test_passes_of_deepfool_do_not_depend_on_the_batch
        elif name.startswith("features/"):
            np.testing.assert_array_equal(np.stack(a), np.stack(b), err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.slow
def test_two_processes_are_stopped_and_go_on(words, cli, tmp_path):
    unfinished = tmp_path / "two" / "tiny" / ".unfinished"
    arguments = words(LONG, *SMALL, *DDP, runs="two")
    ended = stop(arguments, signal.SIGINT, unfinished, "002-00000")
    assert ended.status
    before = stamps(unfinished)
    assert before
    shutil.rmtree(only(tmp_path, "two/tiny/*-test"))
    again = process(*arguments, *QUIET[2:], timeout=250)
    assert again.status == 0, again.err
    assert not unfinished.exists()
    two = only(tmp_path, "two/tiny/*-test")
    same_but_for_rounding(cli(*words(LONG)).folder, two)
