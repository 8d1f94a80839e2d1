"""Runs under another logger, strategy or precision than the default's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from main_helpers import (
    DDP,
    QUIET,
    ROOT,
    checkpoint,
    environment,
    of,
    only,
    process,
    results,
    student_config,
    teacher_config,
    write,
)
from pyarrow import parquet

from main import main

TEST_SET = 360


@pytest.fixture
def student(tmp_path, tiny_teacher):
    source = {"checkpoint": str(tiny_teacher / "checkpoints" / "best.ckpt")}
    return ["--config", write(tmp_path / "student.yaml", student_config(source)), "--runs", tmp_path / "runs"]


# W&B


@pytest.mark.slow
def test_wandb_without_login_is_offline_and_asks_nothing(tmp_path):
    config = write(tmp_path / "run.yaml", teacher_config(max_epochs=1))
    (tmp_path / "home").mkdir()
    bare = dict.fromkeys(("WANDB_MODE", "WANDB_API_KEY", "NETRC", "XDG_CONFIG_HOME"))
    arguments = ["fit", "--config", config, "--runs", tmp_path / "runs", "--wandb", "true"]
    ended = process(*arguments, HOME=str(tmp_path / "home"), **bare)
    assert ended.status == 0, ended.err
    folder = only(tmp_path, "runs/run/*")
    assert only(folder, "wandb/offline-run-*").is_dir()
    for question in ("Enter your choice", "API key:", "(1) Create"):
        assert question not in ended.out + ended.err
    assert (folder / "metrics.csv").exists()


def test_without_wandb_csv_alone(at_root, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    config = write(tmp_path / "run.yaml", teacher_config(max_epochs=1))
    arguments = ["fit", "--config", config, "--runs", str(tmp_path / "runs"), "--wandb", "true"]
    folder = main([*arguments, *QUIET[2:]]).folder
    assert (folder / "metrics.csv").exists()
    assert of("network", results(folder))
    assert not (folder / "wandb").exists()


def test_project_does_not_import_wandb_before_it_is_used(tmp_path):
    code = "import sys, main; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False).returncode == 0


# DDP


@pytest.mark.slow
def test_two_processes_count_every_image_once(cli, tmp_path):
    """A tiny ARD fit on two processes, its teacher's first, and the same checkpoint tested by one."""
    recipe = write(tmp_path / "teacher.yaml", teacher_config())
    config = write(tmp_path / "student.yaml", student_config({"config": recipe}))
    arguments = ["--config", config, "--runs", tmp_path / "runs", "--train_teacher", "true", *DDP, *QUIET[2:]]
    # An odd count, so that the two shares differ.
    ended = process("fit", *arguments, "--suite.images", "359")
    assert ended.status == 0, ended.err
    assert ended.err.count("Training the teacher first") == 1
    assert len(list((tmp_path / "runs" / "teachers").glob("teacher-*"))) == 1
    folder = only(tmp_path, "runs/student/*")
    figures = results(folder)
    assert {n for _, n in figures.values()} == {359}
    outcomes = parquet.read_table(folder / "outcomes" / "student-best.parquet")["index"].to_pylist()
    assert len(outcomes) == len(set(outcomes)) == 359
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 12

    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--runs", tmp_path / "runs"]
    weights = ["--ckpt_path", folder / "checkpoints" / "best.ckpt"]
    tested = cli("test", "--config", folder / "config.yaml", *weights, *alone).folder
    assert parquet.read_table(tested / "outcomes" / "student-best.parquet")["index"].to_pylist() == outcomes
    assert of("student", results(tested)) == of("student", figures)
    assert of("teacher", results(tested), "") == of("teacher", figures, "")


@pytest.mark.slow
def test_two_processes_predict_every_image_once(tiny_teacher, tmp_path):
    weights = ["--ckpt_path", tiny_teacher / "checkpoints" / "best.ckpt"]
    ended = process("predict", "--config", tiny_teacher / "config.yaml", *weights, *DDP, "--runs", tmp_path)
    assert ended.status == 0, ended.err
    table = parquet.read_table(only(tmp_path, "*/*/predictions.parquet")).to_pydict()
    assert table["index"] == list(range(TEST_SET))
    np.testing.assert_allclose(np.sum(table["probabilities"], 1), 1, atol=1e-5)


@pytest.mark.slow
def test_torchrun(student, tmp_path):
    """Processes that another launcher started share one run folder too."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "main.py", "fit", *map(str, student), *DDP, *QUIET]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert results(only(tmp_path, "runs/student/*"))


# Precision and accumulation


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("regime", ["ARD", "FastARD"])
def test_precision_and_accumulation(regime, precision, student, cli, tmp_path):
    config = yaml.safe_load(Path(student[1]).read_text())
    init = config["model"]["init_args"]
    if regime == "FastARD":
        config["model"]["class_path"] = "lightning_modules.FastARD"
        init |= {"threat": init.pop("attack")["init_args"]["threat"], "replays": 2}
    path = write(tmp_path / "run.yaml", config)
    arguments = ["--trainer.precision", precision, "--trainer.accumulate_grad_batches", "2"]
    folder = cli("fit", "--config", path, "--runs", tmp_path / "runs", *arguments).folder
    last = checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 6
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert 0 <= of("student", results(folder))["FGSM"][0] <= of("student", results(folder))["clean"][0] <= 1
