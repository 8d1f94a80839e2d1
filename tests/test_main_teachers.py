"""Teachers on demand: whole or not at all, trained once, and never another's."""

import os
import re
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from filelock import FileLock, Timeout
from main_helpers import (
    QUIET,
    checkpoint,
    image_folder,
    only,
    start,
    stopping,
    student_config,
    teacher_config,
    write,
)

from lightning_modules import on_demand
from main import main


@pytest.fixture
def configs(tmp_path):
    """Writes a student's config beside its teacher's, and says how to run it."""

    def of(teacher=None, **trainer):
        recipe = write(tmp_path / "teacher.yaml", teacher or teacher_config())
        student = write(tmp_path / "student.yaml", student_config({"config": recipe}, **trainer))
        return ["fit", "--config", student, "--runs", str(tmp_path / "runs")]

    return of


@pytest.fixture
def teachers(tmp_path):
    """The published teachers and the partial ones."""

    def found():
        folders = [path for path in (tmp_path / "runs" / "teachers").iterdir() if path.is_dir()]
        return [p for p in folders if not p.name.startswith(".")], [p for p in folders if p.name.startswith(".")]

    return found


# Without permission


def test_missing_teacher_stops_the_run_with_the_command(configs, command, tmp_path):
    ended = command(*configs())
    assert ended.status == 1
    assert f"python main.py fit --config {tmp_path / 'teacher.yaml'}" in ended.err
    assert "--train_teacher true" in ended.err
    assert not (tmp_path / "runs" / "teachers").exists()


def test_the_command_trains_a_teacher_that_fits(configs, command, cli, tmp_path):
    """Word for word, for a student on data of its own: three classes, where the teacher's file says ten."""
    root = image_folder(tmp_path / "images", classes=3, size=8, channels=1)
    data = {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(root), "size": 8, "channels": 1}}
    own = ["--data", write(tmp_path / "data.yaml", data)]
    said = command(*configs(), *own).err
    words = shlex.split(re.search(r"python main\.py (fit .*?)(?:, then|\. |$)", said)[1])
    folder = main([*words, "--runs", str(tmp_path / "by_hand"), *QUIET]).folder
    cli(*configs(), *own, "--model.teacher.checkpoint", folder / "checkpoints" / "best.ckpt")


# Identity


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [{"fast_dev_run": True}, {"limit_train_batches": 1}], ids=lambda limit: next(iter(limit))
)
def test_trial_runs_teacher_is_not_a_whole_runs(limit, configs, cli, teachers, tmp_path):
    key, value = next(iter(limit.items()))
    trial = cli(*configs(), "--train_teacher", "true", f"--trainer.{key}", str(value).lower())
    (published,), partial = teachers()
    assert not partial
    assert checkpoint(published / "checkpoints" / "best.ckpt")["global_step"] <= 2
    assert Path(trial.model.source.checkpoint).parent.parent == published
    # The same student in earnest does not find it.
    with pytest.raises(FileNotFoundError, match="does not exist yet"):
        cli(*configs())


def test_key_says_what_decides_the_weights_and_nothing_else():
    config = teacher_config() | {"runs": "a", "wandb": True, "name": None, "train_teacher": True, "ckpt_path": None}
    key = on_demand.key_of(config)
    assert re.fullmatch(r"[0-9a-f]{12}", key)
    for change in (
        {"runs": "b"},
        {"wandb": False},
        {"name": "n"},
        {"train_teacher": False},
        {"suite": {}},
        {"interpret": {}},
    ):
        assert on_demand.key_of(config | change) == key
    for shown in ({"enable_progress_bar": False}, {"log_every_n_steps": 9}):
        assert on_demand.key_of(config | {"trainer": config["trainer"] | shown}) == key
    for deciding in ({"max_epochs": 3}, {"fast_dev_run": 2}, {"limit_train_batches": 7}, {"precision": "bf16-mixed"}):
        assert on_demand.key_of(config | {"trainer": config["trainer"] | deciding}) != key
    assert on_demand.key_of(config | {"seed_everything": 1}) != key
    assert on_demand.key_of(teacher_config(lr=0.2)) != on_demand.key_of(teacher_config())


# Whole or not at all


def fake_fit(monkeypatch, during, status=0):
    """Stands in for the teacher's process."""

    def run(command, **kwargs):
        folder = Path(command[command.index("--config") + 1]).parent
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights")
        (folder / on_demand.COMPLETE).touch()
        during(folder)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(on_demand, "subprocess", SimpleNamespace(run=run))


def test_published_by_one_rename(monkeypatch, tmp_path):
    config = teacher_config()
    final = tmp_path / "teachers" / f"t-{on_demand.key_of(config)}"
    inodes = []

    def during(folder):
        assert not final.exists()
        inodes.append(folder.stat().st_ino)

    fake_fit(monkeypatch, during)
    assert on_demand.train_once(config, tmp_path, "t") == final / "checkpoints" / "best.ckpt"
    assert inodes == [final.stat().st_ino]
    assert on_demand.train_once(config, tmp_path, "t").read_bytes() == b"weights"
    assert len(inodes) == 1


def test_a_teachers_process_does_not_take_itself_for_one_of_the_students(monkeypatch, tmp_path):
    """Under torchrun or srun the student is one process of several; its teacher's fit is a run of its own."""
    given = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    given |= {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "KEPT": "yes"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    seen = {}

    def run(command, env, check):
        seen.update(env)
        (Path(env[on_demand.RUN_FOLDER]) / on_demand.COMPLETE).touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(on_demand, "subprocess", SimpleNamespace(run=run))
    on_demand.train_once(teacher_config(), tmp_path, "t")
    assert given.keys() & seen.keys() == {"KEPT"}


@pytest.mark.parametrize("status", [1, -9, 143, 0])
def test_failed_fit_publishes_nothing(status, monkeypatch, tmp_path):
    """A status of 0 is not believed without the mark that a fit leaves as its last act."""
    fake_fit(monkeypatch, lambda folder: status or (folder / on_demand.COMPLETE).unlink(), status)
    with pytest.raises(ChildProcessError, match=str(status)):
        on_demand.train_once(teacher_config(), tmp_path, "t")
    assert [path.name for path in (tmp_path / "teachers").iterdir() if not path.name.startswith(".")] == []


def test_nobody_trains_where_an_orphan_still_does(monkeypatch, tmp_path):
    """A student that is killed leaves its teacher's process running; its fit is waited for, and what it did is used."""
    config = teacher_config()
    final = on_demand.place(config, tmp_path, "t")
    partial = final.parent / f".{final.name}.partial"
    partial.mkdir(parents=True)
    started = []
    monkeypatch.setattr(on_demand, "_train", lambda *args: started.append(args))
    orphan = FileLock(final.parent / f".{final.name}.running.lock", thread_local=False)
    orphan.acquire()
    student = threading.Thread(target=on_demand.train_once, args=(config, tmp_path, "t"))
    student.start()
    student.join(1)
    assert student.is_alive()
    (partial / on_demand.COMPLETE).touch()
    orphan.release()
    student.join(10)
    assert final.exists()
    assert started == []


def test_the_fit_itself_holds_the_lock(monkeypatch, tmp_path):
    lock = tmp_path / "running.lock"
    held = []
    monkeypatch.setenv(on_demand.LOCK, str(lock))
    monkeypatch.setattr("main.CLI", lambda *args, **kwargs: held.append(locked(lock)))
    main(["fit"])
    assert held == [True]
    assert not locked(lock)
    assert on_demand.LOCK not in os.environ  # not for the processes that a strategy launches


def locked(path):
    """Whether somebody else holds it: flock sees two descriptors of one process as two holders."""
    try:
        with FileLock(path, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True


@pytest.mark.slow
def test_failing_teacher_is_not_published(configs, command, teachers):
    ended = command(*configs(teacher_config(lr=1e30)), "--train_teacher", "true")
    assert ended.status == 1
    assert "The teacher's fit ended with exit status" in ended.err
    assert teachers()[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGKILL,
        signal.SIGTERM,
    ],
)
def test_stopped_teacher_is_resumed_then_published(sent, configs, command, cli, teachers, tmp_path):
    """Stopped in its second epoch of 6 steps: the next run goes on after the first."""
    recipe = teacher_config(callbacks=stopping(9, sent, tmp_path / "stopped"))
    ended = command(*configs(recipe), "--train_teacher", "true")
    assert (tmp_path / "stopped").exists()
    assert teachers()[0] == [], "a truncated teacher was published"
    assert ended.status
    (partial,) = teachers()[1]
    assert checkpoint(partial / "checkpoints" / "last.ckpt")["global_step"] == 6

    student = cli(*configs(recipe), "--train_teacher", "true")
    (published,), partial = teachers()
    assert not partial
    assert checkpoint(published / "checkpoints" / "last.ckpt")["global_step"] == 12
    assert (published / "metrics-1.csv").exists()
    assert Path(student.model.source.checkpoint).parent.parent == published


@pytest.mark.slow
def test_teacher_without_validation_images_is_published_with_weights(configs, cli, teachers):
    """Nothing chooses a best epoch then, so the last one is the teacher."""
    student = cli(*configs(), "--train_teacher", "true", "--data.validation", "0")
    assert Path(student.model.source.checkpoint).is_file()
    assert Path(student.model.source.checkpoint).parent.parent == teachers()[0][0]


# Once


@pytest.mark.slow
def test_two_students_at_once_train_it_once(configs, teachers, at_root):
    command = [*configs(), "--train_teacher", "true"]
    both = [start(*command) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    said = "".join(err for _, err in ended)
    assert said.count("Training the teacher first") == 1
    (published,), partial = teachers()
    assert not partial
    assert not (published / "metrics-1.csv").exists()


@pytest.mark.slow
def test_found_without_training_again(configs, cli, teachers, monkeypatch, tmp_path):
    """A teacher that was trained once serves students that may not train one."""
    first = cli(*configs(), "--train_teacher", "true")
    monkeypatch.setattr(on_demand, "subprocess", None)  # whoever trains it again needs a process
    for allowed in ("true", "false"):
        again = cli(*configs(), "--train_teacher", allowed, "--suite.images", "2")
        assert again.model.source.checkpoint == first.model.source.checkpoint
    (published,), _ = teachers()
    # Its config is the student's file, on the student's data.
    effective = yaml.safe_load((published / "teacher.yaml").read_text())
    assert effective["model"]["class_path"] == "lightning_modules.Teacher"
    assert effective["data"]["init_args"]["batch_size"] == 64
    assert os.path.samefile(published, Path(first.model.source.checkpoint).parents[1])


@pytest.mark.slow
def test_teachers_command_names_what_is_there(configs, cli, teachers):
    cli(*configs(), "--train_teacher", "true")
    command = (teachers()[0][0] / "command.sh").read_text().splitlines()[-1]
    script = f'set -- {command.partition("fit ")[2]}; test -f "$2"'
    subprocess.run(["sh", "-c", script, str(teachers()[0][0] / "command.sh")], check=True)


# What does not fit


@pytest.mark.slow
def test_students_faults_are_found_before_the_teacher_is_trained(configs, command, teachers, tmp_path):
    """A mistyped number must not cost the hours of a teacher's training."""
    ended = command(*configs(), "--train_teacher", "true", "--model.alpha", "2")
    assert ended.status
    assert not (tmp_path / "runs" / "teachers").exists() or teachers() == ([], [])


@pytest.mark.parametrize(("classes", "size", "both"), [(3, 8, ("10", "3")), (10, 16, ("(1, 8, 8)", "(1, 16, 16)"))])
def test_teacher_that_does_not_fit_is_refused_with_both_numbers(classes, size, both, tiny_teacher, command, tmp_path):
    root = image_folder(tmp_path / "images", classes, size, channels=1)
    data = {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(root), "size": size, "channels": 1}}
    student = student_config({"checkpoint": str(tiny_teacher / "checkpoints" / "best.ckpt")}) | {"data": data}
    ended = command("fit", "--config", write(tmp_path / "student.yaml", student), "--runs", tmp_path / "runs")
    assert ended.status == 1
    sentence = next(line for line in ended.err.splitlines() if line.startswith("Error"))
    for number in both:
        assert number in sentence


def test_teacher_may_be_a_plain_state_dict(tiny_teacher, cli, tmp_path):
    weights = checkpoint(tiny_teacher / "checkpoints" / "best.ckpt")["state_dict"]
    plain = tmp_path / "plain.pt"
    torch.save({key.removeprefix("network."): value for key, value in weights.items() if "network." in key}, plain)
    teacher = {"checkpoint": str(plain), "network": {"class_path": "networks.MLP", "init_args": {"widths": [16]}}}
    folder = cli(
        "fit", "--config", write(tmp_path / "student.yaml", student_config(teacher)), "--runs", tmp_path / "runs"
    ).folder
    assert only(folder, "outcomes/teacher.parquet")
