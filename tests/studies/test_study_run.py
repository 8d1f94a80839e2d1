"""``python -m studies`` as a process: it runs a grid on Snakemake, survives what befalls it, and says what failed."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from main_helpers import ROOT

from studies import worker
from studies.__main__ import main
from studies.grid import read
from studies.plan import plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # many processes, each of which imports torch
    pytest.mark.skipif(
        not (Path(sys.executable).with_name("snakemake").exists() or shutil.which("snakemake")),
        reason="Snakemake is not installed: pip install -e '.[study]'",
    ),
]

RING = "configs/flavours_ring.yaml"
SHORT = {"trainer.max_epochs": 6}
GRID: dict[str, Any] = {
    "title": "A short one",
    "seeds": [0, 1],
    "checkpoint": "last",
    "group": 4,
    "runs": [
        {"name": "teacher", "config": RING, "set": {"flavour.name": "RT_temp1", **SHORT}},
        {
            "name": "student",
            "config": RING,
            "set": {"flavour.name": "RS_tempT_from_RT_temp1", **SHORT},
            "teacher": "teacher",
        },
    ],
    "judge": {"attacks": {"set": {"suite": "configs/suite/zou2023_ring.yaml"}}},
    "tables": [
        {
            "title": "Accuracy",
            "rows": [{"label": "teacher", "run": "teacher"}, {"label": "student", "run": "student"}],
            "columns": [{"label": "clean", "metric": "clean"}, {"label": "FGSM", "metric": "FGSM"}],
        }
    ],
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a grid, and runs a verb on it in a process of its own, in the folder ``runs`` or another."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(verb, *more, runs="runs", grid=GRID):
        path = tmp_path / "short.yaml"
        path.write_text(yaml.safe_dump(grid))
        words = [sys.executable, "-m", "studies", verb, str(path), "--runs", str(tmp_path / runs), *more]
        pipe = subprocess.PIPE
        # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
        hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(
            words, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=hears
        )

    def run(*words, **options):
        process = start(*words, **options)
        said, _ = process.communicate()
        return process.returncode, re.sub(r"\s+", " ", said)

    run.start, run.folder = start, tmp_path
    return run


def complete(runs):
    """When each complete fit and test was completed."""
    cells = runs / "studies" / "cells"
    found = [*cells.glob("*/cell.json"), *cells.glob("*/judgings/*/cell.json")]
    return {str(path.relative_to(runs)): path.stat().st_mtime_ns for path in found}


def figures(runs):
    """Every figure of every test, by run and seed; times are no figures."""
    found = {}
    for path in (runs / "studies" / "cells").glob("*/judgings/*/results.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                found[path.parts[-4], row["metric"]] = row["value"]
    return found


def whole(folder):
    """The same study in one go and one process, without Snakemake."""
    (folder / "short.yaml").write_text(yaml.safe_dump(GRID))
    found = plan(read(folder / "short.yaml"), folder / "whole")
    found.write()
    for group in found.groups:
        assert worker.main(found.file, group.name) == 0
    assert main(["report", str(folder / "short.yaml"), "--runs", str(folder / "whole")]) == 0


def test_a_study_that_was_killed_ends_with_the_same_figures_and_repeats_nothing(study):
    whole(study.folder)
    process = study.start("run")
    cells = study.folder / "runs" / "studies" / "cells"
    while not [*cells.glob("*/cell.json")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = complete(study.folder / "runs")
    assert 1 <= len(before) < 8

    status, said = study("run")
    assert status == 0, said
    after = complete(study.folder / "runs")
    assert len(after) == 8
    assert before.items() <= after.items()
    assert figures(study.folder / "runs") == figures(study.folder / "whole")
    tables = [path.read_text() for path in sorted(study.folder.glob("*/studies/short-paper/report/tables/*.csv"))]
    assert len(tables) == 2
    assert tables[0] == tables[1]

    status, said = study("run")
    assert status == 0
    assert complete(study.folder / "runs") == after
    status, said = study("status")
    assert "4 done" in said


def test_ctrl_c_is_no_failure(study):
    endless = {**GRID["runs"][0], "set": {**GRID["runs"][0]["set"], "trainer.max_epochs": 100_000}}
    grid = {**GRID, "runs": [endless], "tables": []}
    process = study.start("run", grid=grid)
    cells = study.folder / "runs" / "studies" / "cells"
    while not [*cells.glob(".*.partial/checkpoints/last.ckpt")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Interrupted; the same command goes on" in said
    assert "Traceback" not in said
    status, said = study("status", grid=grid)
    assert (status, "2 waiting" in said) == (0, True), said


def test_what_fails_is_told_with_its_log_and_costs_no_other_run(study):
    hot = {"name": "hot", "config": RING, "set": {"flavour.name": "RT_temp1", "model.optimizer.lr": 1e30, **SHORT}}
    learns = {**GRID["runs"][1], "name": "hot student", "teacher": "hot"}
    grid = {**GRID, "seeds": [0], "runs": [hot, learns, *GRID["runs"]]}
    status, said = study("run", grid=grid)
    assert status == 1
    assert "failed hot #0, fit: The loss became nan or inf" in said
    assert "skipped hot student #0: its teacher hot #0 failed" in said
    log = Path(re.search(r"log: ?(\S+)\)", said)[1])
    assert "FloatingPointError" in log.read_text()
    report = (study.folder / "runs" / "studies" / "short-paper" / "report" / "report.html").read_text()
    assert "The loss became nan or inf" in report
    status, said = study("status", grid=grid)
    assert (status, "2 done, 1 failed, 1 skipped" in said) == (1, True)

    hot["set"]["model.optimizer.lr"] = 0.01
    status, said = study("run", grid=grid)
    assert status == 0, said
    assert len(complete(study.folder / "runs")) == 8


def test_the_smallest_quick_study_from_nothing_to_its_report(tmp_path, at_root):
    words = [sys.executable, "-m", "studies", "run", "mnist_kd", "--quick", "--runs", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "studies" / "mnist_kd-quick" / "report"
    assert "- runs: 21 of 21 done" in (report / "report.md").read_text()
    with (report / "claims.csv").open() as file:
        assert "not measured" not in {claim["verdict"] for claim in csv.DictReader(file)}
    rows = [row for path in sorted((report / "tables").glob("*.csv")) for row in csv.DictReader(path.open())]
    assert {row["run"] for row in rows} >= {"large", "small alone", "small distilled, without 1"}
    assert all(row["mean"] for row in rows)
    learnt = [float(row["mean"]) for row in rows if row["metric"] == "clean" and "without" not in row["run"]]
    assert len(learnt) >= 3
    assert min(learnt) > 90  # and not a network that never trained


def test_a_plan_says_what_there_is_to_do(study):
    status, said = study("plan", "--profile", "slurm")
    assert status == 0, said
    assert "4 runs in 4 jobs; 0 complete" in said
    assert "To do: 4 fits and 4 tests of 4 runs, in 4 jobs" in said
    assert "No run like 4 of them is complete" in said
    assert "This was a dry-run" in said
    assert not (study.folder / "runs" / "studies" / "cells").exists()
    assert "There is no profile nowhere" in study("plan", "--profile", "nowhere")[1]


def test_bad_words_are_one_sentence(study):
    status, said = study("plan", "--quick")
    assert status == 1
    assert said.startswith("Error: ")
    assert "has no recipe quick: there are paper" in said
    assert "Traceback" not in said


def test_a_fit_that_another_study_made_is_tested_by_this_ones_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = []
    for eps in (0.01, 2.0):
        suite = {"threat": {"norm": "linf", "eps": eps}, "attacks": [{"class_path": "attacks.FGSM"}]}
        path = tmp_path / "suites.yaml"
        runs = [{**GRID["runs"][0], "set": {**GRID["runs"][0]["set"], "suite": suite}}]
        path.write_text(yaml.safe_dump({**GRID, "seeds": [0], "runs": runs, "judge": {"own": {}}}))
        planned = plan(read(path), tmp_path / "runs")
        planned.write()
        assert worker.main(planned.file, "group_0_0") == 0
        (cell,) = planned.cells.values()
        with (cell.judgings["own"] / "results.csv").open() as file:
            found.append({row["metric"]: row["threat"] for row in csv.DictReader(file)})
    assert len(complete(tmp_path / "runs")) == 3  # one fit, two tests
    assert [each["FGSM"] for each in found] == ["linf 0.01", "linf 2"]
