"""``--ema``: what validation, checkpoints, tests and students of a fit see is the average of its weights."""

import csv
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from main_helpers import (
    DDP,
    QUIET,
    checkpoint,
    of,
    only,
    process,
    results,
    same_weights,
    stopping,
    student_config,
    teacher_config,
    write,
)

from datamodules import Digits
from lightning_modules import on_demand
from lightning_modules.averaging import Averaging
from main import main
from networks.checkpoint import load_network, weights_hash

DECAY = 0.8
WRN = {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": 1}}


class Recorder(pl.Callback):
    """Keeps the network's weights after every step, and what is tested, in files of every process's own."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_step:03d}-{trainer.global_rank}.pt")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with (self.folder / "tested.txt").open("a") as file:
            file.write(f"{Path(trainer.ckpt_path).stem} {weights_hash(pl_module.network)}\n")


@pytest.fixture
def recorded(tmp_path):
    """A config whose weights are recorded at every step, of 12 steps; keywords go to the trainer."""
    folder = tmp_path / "steps"
    folder.mkdir()
    callback = {"class_path": "test_main_averaging.Recorder", "init_args": {"folder": str(folder)}}

    def of(network=None, **trainer):
        config = teacher_config(callbacks=[callback, *trainer.pop("callbacks", [])], **trainer)
        config["model"]["init_args"] |= {"network": network} if network else {}
        return ["fit", "--config", write(tmp_path / "r.yaml", config), "--runs", tmp_path / "runs", "--ema", DECAY]

    return of


def averages(folder):
    """The average after every step, in double precision, from the recorded weights of one process."""
    steps = [torch.load(path, weights_only=True) for path in sorted((folder / "steps").glob("*-0.pt"))]
    steps = [{key: value.double().numpy() for key, value in step.items()} for step in steps]
    found = steps[:1]
    for weights in steps[1:]:
        found.append({key: DECAY * found[-1][key] + (1 - DECAY) * value for key, value in weights.items()})
    return found


def holds(path, average):
    weights = checkpoint(path)["state_dict"]
    assert weights.keys() == average.keys()
    return all(
        np.allclose(value.numpy(), average[key], rtol=1e-5, atol=1e-6)
        for key, value in weights.items()
        if value.is_floating_point()
    )


# What a fit leaves


@pytest.mark.parametrize("network", [None, WRN], ids=["MLP", "WideResNet"])
def test_checkpoints_hold_the_average(network, recorded, cli, tmp_path):
    """Of the weights of every step, batch-norm's moving averages included."""
    folder = cli(*recorded(network)).folder
    expected = averages(tmp_path)
    assert len(expected) == 12
    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        step = checkpoint(path)["global_step"]
        assert holds(path, expected[step - 1])
        assert not holds(path, expected[step - 2])
    # What a fit goes on from stands beside it.
    raw = torch.load(tmp_path / "steps" / "012-0.pt", weights_only=True)
    kept = checkpoint(folder / "checkpoints" / "last.ckpt")["current_model_state"]
    assert all(torch.equal(kept[key], raw[key]) for key in raw)


def test_best_is_chosen_by_the_average(recorded, cli, tmp_path):
    """Validation's accuracy is that of the average, by an evaluation of our own, and not that of the weights."""
    folder = cli(*recorded(max_epochs=6)).folder
    data = Digits(batch_size=64)
    data.setup("fit")
    x, y, *_ = data.batch("validation", data.split_index("validation"))
    spec = checkpoint(folder / "checkpoints" / "last.ckpt")
    own, raw = [], []
    for epoch, average in enumerate(averages(tmp_path)[5::6], 1):
        weights = torch.load(tmp_path / "steps" / f"{6 * epoch:03d}-0.pt", weights_only=True)
        for into, state in ((own, {key: torch.tensor(value) for key, value in average.items()}), (raw, weights)):
            path = tmp_path / "evaluated.ckpt"
            torch.save(spec | {"state_dict": {key: value.float() for key, value in state.items()}}, path)
            into.append(float((load_network(path).network(x).argmax(1) == y).float().mean()))
    with (folder / "metrics.csv").open() as file:
        logged = [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]]
    assert logged == pytest.approx(own)
    assert logged != pytest.approx(raw)
    assert checkpoint(folder / "checkpoints" / "best.ckpt")["epoch"] == int(np.argmax(logged))


def test_average_is_what_is_tested(recorded, cli, tmp_path):
    """By the trainer that has just fitted, and by one of a process of its own: the same weights, the same figures."""
    folder = cli(*recorded(max_epochs=3)).folder
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    tested = dict(line.split() for line in (tmp_path / "steps" / "tested.txt").read_text().splitlines())
    for path in {path for path in (best, last) if path.stem in tested}:
        assert tested[path.stem] == weights_hash(load_network(path).network)
    again = cli("test", "--config", folder / "config.yaml", "--ckpt_path", best, "--runs", tmp_path / "again").folder
    assert of("network", results(again)) == of("network", results(folder))
    assert "best" in tested


@pytest.mark.slow
def test_nothing_is_warned_of(recorded, at_root, tmp_path):
    """As a shell sees it: nor of a callback that a test would lack, which Lightning would have us add."""
    said = process(*recorded(), *QUIET).err
    folder = only(tmp_path, "runs/r/*")
    last = ["--config", folder / "config.yaml", "--ckpt_path", folder / "checkpoints" / "last.ckpt", *QUIET]
    said += process("fit", *last, "--trainer.max_epochs", "3").err
    for verb in ("test", "validate", "predict"):
        said += process(verb, *last, "--runs", tmp_path / "other").err
    assert said.count("Loaded model weights") >= 4
    about = [line for line in said.splitlines() if re.search("averag|callback|current_model_state", line, re.I)]
    assert len(about) == 1, about
    assert "Found current_model_state in the checkpoint" in about[0]


def test_trial_run(recorded, cli, tmp_path):
    folder = cli(*recorded(), "--trainer.fast_dev_run", "2").folder
    assert holds(folder / "checkpoints" / "best.ckpt", averages(tmp_path)[-1])


def test_only_the_network_is_copied(recorded, cli):
    """The command line's factory of an optimiser knows the parser, and that the trainer with all its data."""
    done = cli(*recorded())
    (callback,) = [callback for callback in done.trainer.callbacks if isinstance(callback, Averaging)]
    assert callback._average_model.module.optimizer is None
    assert done.model.optimizer is not None


# Going on


def test_longer_fit_goes_on_from_a_shorter_one(recorded, cli):
    whole = cli(*recorded(WRN, max_epochs=3)).folder
    part = cli(*recorded(WRN, max_epochs=2)).folder
    last = part / "checkpoints" / "last.ckpt"
    cli("fit", "--config", part / "config.yaml", "--ckpt_path", last, "--trainer.max_epochs", "3")
    assert same_weights(last, whole / "checkpoints" / "last.ckpt")
    raw = [checkpoint(path / "checkpoints" / "last.ckpt")["current_model_state"] for path in (part, whole)]
    assert all(torch.equal(raw[0][key], raw[1][key]) for key in raw[1])
    assert same_weights(part / "checkpoints" / "best.ckpt", whole / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_killed_then_resumed_is_the_fit_that_was_not_killed(recorded, cli, tmp_path):
    whole = cli(*recorded(WRN)).folder
    killing = recorded(WRN, callbacks=stopping(9, signal.SIGKILL, tmp_path / "marker"))
    ended = process(*killing, "--name", "killed", *QUIET)
    assert ended.status == -signal.SIGKILL
    folder = only(tmp_path, "runs/killed/*")
    last = folder / "checkpoints" / "last.ckpt"
    assert checkpoint(last)["global_step"] == 6
    cli("fit", "--config", folder / "config.yaml", "--ckpt_path", last)
    for name in ("last", "best"):
        assert same_weights(folder / "checkpoints" / f"{name}.ckpt", whole / "checkpoints" / f"{name}.ckpt")
    assert of("network", results(folder)) == of("network", results(whole))


# Two processes


@pytest.mark.slow
def test_two_processes_average_the_same(recorded, at_root, tmp_path):
    ended = process(*recorded(WRN), *DDP, *QUIET)
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    folder = only(tmp_path, "runs/r/*")
    expected = averages(tmp_path)
    assert len(expected) == 12
    assert holds(folder / "checkpoints" / "last.ckpt", expected[-1])
    tested = {line for line in (tmp_path / "steps" / "tested.txt").read_text().splitlines() if line[:4] == "best"}
    assert tested == {f"best {weights_hash(load_network(folder / 'checkpoints' / 'best.ckpt').network)}"}


# Teachers


def test_average_is_the_teachers_own_business(cli, tmp_path, monkeypatch, command):
    """It is part of who the teacher is, and no student's average is its teacher's."""
    asked = []
    monkeypatch.setattr("main.train_once", lambda config, runs, name: asked.append(config) or 1 / 0)

    def effective(teacher, *words):
        path = write(tmp_path / "teacher.yaml", teacher)
        student = write(tmp_path / "student.yaml", student_config({"config": path}))
        with pytest.raises(ZeroDivisionError):
            cli("fit", "--config", student, "--runs", tmp_path / "runs", "--train_teacher", "true", *words)
        return asked[-1]

    alone = effective(teacher_config())
    assert alone["ema"] is None
    assert effective(teacher_config(), "--ema", "0.9") == alone
    averaged = effective(teacher_config() | {"ema": 0.9})
    assert averaged["ema"] == 0.9
    assert averaged == effective(teacher_config(), "--model.teacher.override", '{"ema": 0.9}')
    assert len({on_demand.key_of(config) for config in (alone, averaged, averaged | {"ema": 0.99})}) == 3


@pytest.mark.slow
def test_students_teacher_is_the_average(cli, tmp_path):
    recipe = write(tmp_path / "teacher.yaml", teacher_config() | {"ema": DECAY})
    config = write(tmp_path / "student.yaml", student_config({"config": recipe}))
    done = cli("fit", "--config", config, "--runs", tmp_path / "runs", "--train_teacher", "true", "--ema", "0.5")
    teacher = checkpoint(Path(done.model.source.checkpoint))
    assert weights_hash(done.model.teacher.module) == weights_hash(load_network(done.model.source.checkpoint).network)
    assert any(
        not torch.equal(value, teacher["current_model_state"][key]) for key, value in teacher["state_dict"].items()
    )
    student = checkpoint(done.folder / "checkpoints" / "last.ckpt")
    assert not [key for part in ("state_dict", "current_model_state") for key in student[part] if "teacher" in key]
    assert yaml.safe_load((done.folder / "config.yaml").read_text())["ema"] == 0.5


# Bad input


@pytest.mark.parametrize("decay", ["1", "-0.5", "2", ".nan"])
def test_decay_outside_its_range(decay, command, tmp_path):
    path = write(tmp_path / "t.yaml", teacher_config())
    ended = command("fit", "--config", path, "--runs", tmp_path / "runs", "--ema", decay)
    assert ended.status == 1
    assert "[0, 1)" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "runs").exists()


def test_average_from_a_config(tmp_path, cli):
    path = write(tmp_path / "t.yaml", teacher_config() | {"ema": 0.9})
    folder = main(["fit", "--config", path, "--runs", str(tmp_path / "runs"), *QUIET]).folder
    assert "averaging_state" in checkpoint(folder / "checkpoints" / "last.ckpt")
    assert "averaging_state" not in checkpoint(
        cli("fit", "--config", path, "--runs", tmp_path / "runs", "--ema", "null").folder / "checkpoints" / "last.ckpt"
    )
