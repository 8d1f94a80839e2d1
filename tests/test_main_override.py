"""What a student says otherwise of its teacher's config: who the teacher is, how it is trained, what is kept of it."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from main_helpers import ROOT, checkpoint, environment, sgd, student_config, teacher_config, write

from lightning_modules import TeacherSource, on_demand
from main import main

OVERRIDE = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 1, "limit_train_batches": 2},
    "data": {"init_args": {"validation": 0.2}},
    "model": {"init_args": {"optimizer": {"init_args": {"lr": 1e-5}}, "network": {"init_args": {"dropout": 0.5}}}},
}


@pytest.fixture
def student(tmp_path):
    """The command that fits a student with an override, in its config unless words say it."""

    def of(override=None, *words):
        teacher = {"config": write(tmp_path / "teacher.yaml", teacher_config())}
        teacher |= {} if override is None else {"override": override}
        path = write(tmp_path / "student.yaml", student_config(teacher))
        return ["fit", "--config", path, "--runs", str(tmp_path / "runs"), *words]

    return of


@pytest.fixture
def effective(student, cli, monkeypatch):
    """The config that the teacher would be trained with."""
    asked = []
    monkeypatch.setattr("main.train_once", lambda config, runs, name: asked.append(config) or 1 / 0)

    def of(override=None, *words):
        with pytest.raises(ZeroDivisionError):
            cli(*student(override, *words), "--train_teacher", "true")
        return asked[-1]

    return of


def said_command(err):
    return shlex.split(re.search(r"python main\.py (fit .*), then name", err)[1])


# What it changes


def test_override_is_behind_all_else(effective):
    """Behind the teacher's file (dropout, lr) and behind what it has from its student (batches, validation)."""
    words = ["--data.validation", "0.3", "--trainer.limit_train_batches", "5", "--data.batch_size", "16"]
    plain, config = effective(None, *words), effective(OVERRIDE, *words)
    assert plain["data"]["init_args"]["validation"] == 0.3
    assert config["data"]["init_args"] == plain["data"]["init_args"] | {"validation": 0.2}
    assert config["data"]["init_args"]["batch_size"] == 16
    assert config["trainer"] == plain["trainer"] | {"max_epochs": 1, "limit_train_batches": 2}
    assert plain["trainer"]["limit_train_batches"] == 5
    assert config["seed_everything"] == 3
    init = config["model"]["init_args"]
    assert init["optimizer"]["init_args"] == plain["model"]["init_args"]["optimizer"]["init_args"] | {"lr": 1e-5}
    assert init["network"]["init_args"]["widths"] == [16]
    assert init["network"]["init_args"]["dropout"] == 0.5


def test_null_takes_back_what_the_student_has(effective):
    """As for a class that the student, but not its teacher, never sees."""
    assert effective(None, "--data.omit", "3")["data"]["init_args"]["omit"] == 3
    assert effective({"data": {"init_args": {"omit": None}}}, "--data.omit", "3")["data"]["init_args"]["omit"] is None


def test_same_from_the_command_line(effective):
    assert effective(None, "--model.teacher.override", json.dumps(OVERRIDE)) == effective(OVERRIDE)
    assert effective(None, "--model.teacher.override", yaml.safe_dump(OVERRIDE)) == effective(OVERRIDE)


def test_command_line_replaces_the_files(effective):
    assert effective(OVERRIDE, "--model.teacher.override", "{}") == effective()


def test_classes_that_it_names_are_the_teachers(effective, cli, student, tiny_teacher):
    """They are built for the teacher's fit, with that config's other arguments, and not for the student's."""
    noise = {"class_path": "lightning_modules.LabelCorruption", "init_args": {"p": 0.1}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    override = {"model": {"init_args": {"noise": [noise], "optimizer": optimizer}}}
    for config in (effective(override), effective(None, "--model.teacher.override", json.dumps(override))):
        init = config["model"]["init_args"]
        assert init["noise"] == [noise | {"init_args": {"p": 0.1, "fixed": False}}]
        assert (init["optimizer"]["class_path"], init["optimizer"]["init_args"]["lr"]) == ("torch.optim.Adam", 0.01)
        assert init["network"]["init_args"]["widths"] == [16]
    given = ["--model.teacher.checkpoint", tiny_teacher / "checkpoints" / "best.ckpt", "--trainer.max_epochs", "1"]
    done = cli(*student(override), *given)
    assert done.model.source.override == override
    assert checkpoint(done.folder / "checkpoints" / "last.ckpt")["hyper_parameters"]["teacher"]["override"] == override


def test_override_decides_who_the_teacher_is(effective):
    plain = on_demand.key_of(effective())
    assert on_demand.key_of(effective(OVERRIDE)) != plain
    for nothing in ({}, {"model": {"init_args": {"optimizer": sgd(0.1)}}}, {"suite": {"images": 3}}):
        assert on_demand.key_of(effective(nothing)) == plain


# The command that it prints


def test_command_trains_that_teacher(student, effective, command, capsys):
    """Word for word, as a shell would hand it on: the config that it is parsed to is the teacher's."""
    words = ["--data.batch_size", "16", "--trainer.limit_train_batches", "5", "--data.omit", "3"]
    override = OVERRIDE | {"data": {"init_args": {"omit": None}}, "name": "it's"}
    expected = effective(override, *words)
    ended = command(*student(override, *words))
    assert ended.status == 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*said_command(ended.err), "--print_config"])
    assert end.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["data"]["init_args"]["batch_size"] == 16
    assert on_demand.key_of(found) == on_demand.key_of({key: expected[key] for key in found})
    assert found["name"] == "it's"


@pytest.mark.slow
def test_command_is_run_by_a_shell(student, command, tmp_path, cli):
    (line,) = re.findall(r"python main\.py fit .*(?=, then name)", command(*student(OVERRIDE)).err)
    more = f" --runs {tmp_path / 'by_hand'} --wandb false --trainer.enable_progress_bar false"
    subprocess.run(
        ["sh", "-c", line.replace("python", sys.executable, 1) + more],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )
    (best,) = (tmp_path / "by_hand" / "teacher").glob("*/checkpoints/best.ckpt")
    assert checkpoint(best)["global_step"] == 2
    cli(*student(OVERRIDE), "--model.teacher.checkpoint", best)


def test_source_in_a_notebook_says_the_same(tmp_path):
    source = TeacherSource(config="configs/t.yaml", override={"trainer": {"max_epochs": 1}})
    with pytest.raises(FileNotFoundError) as error:
        source.load(None)
    words = said_command(str(error.value))
    assert words == ["fit", "--config", "configs/t.yaml", "--config", '{"trainer": {"max_epochs": 1}}']


# What is kept of it


@pytest.mark.slow
def test_kept_in_config_and_checkpoint(student, cli, tmp_path):
    done = cli(*student(OVERRIDE), "--train_teacher", "true")
    assert checkpoint(done.model.source.checkpoint)["global_step"] == 2
    saved = yaml.safe_load((done.folder / "config.yaml").read_text())["model"]["init_args"]["teacher"]
    kept = checkpoint(done.folder / "checkpoints" / "best.ckpt")["hyper_parameters"]["teacher"]
    for teacher in (saved, kept):
        assert teacher["override"] == OVERRIDE
        assert teacher["checkpoint"] == done.model.source.checkpoint
    # All three ways back: again, on, and a test.
    again = cli("fit", "--config", done.folder / "config.yaml")
    assert again.model.source.override == OVERRIDE
    last = ["--config", done.folder / "config.yaml", "--ckpt_path", done.folder / "checkpoints" / "last.ckpt"]
    assert cli("fit", *last, "--trainer.max_epochs", "3").folder == done.folder
    assert cli("test", *last).model.source.override == OVERRIDE
    # Another student finds the teacher, and one with another override does not.
    assert cli(*student(OVERRIDE)).model.source.checkpoint == done.model.source.checkpoint
    with pytest.raises(FileNotFoundError, match="does not exist yet"):
        cli(*student(OVERRIDE | {"seed_everything": 4}))


# What is no override


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"trainer": {"max_epok": 3}}, ["max_epok", "teacher.yaml", "override"]),
        ({"trianer": {"max_epochs": 3}}, ["trianer", "override"]),
        ({"model": {"init_args": {"network": {"init_args": {"widths": "abc"}}}}}, ["widths", "abc", "override"]),
        ({"data": {"init_args": {"validation": "much"}}}, ["much", "override"]),
        ({"flavour": {"name": "FT_temp1"}}, ["flavour", "full", "reduced", "override"]),
        ("max_epochs", ["teacher.override", "dict"]),
        ([1], ["teacher.override", "dict"]),
    ],
    ids=str,
)
def test_override_that_is_no_config(override, says, student, command, tmp_path):
    ended = command(*student(None, "--model.teacher.override", json.dumps(override)), "--train_teacher", "true")
    assert ended.status
    assert "Traceback" not in ended.err
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    for word in says:
        assert word in sentence
    assert "Namespace(" not in sentence
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


def test_override_of_no_config():
    with pytest.raises(ValueError, match=r"name the config that trains the teacher"):
        TeacherSource(checkpoint="best.ckpt", override={"ema": 0.9})
