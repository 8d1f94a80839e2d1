"""The first command that a person types, from beginning to end."""

import csv
import json
import re
from importlib.metadata import version

import pytest
import yaml
from main_helpers import only, results
from pyarrow import parquet

pytestmark = pytest.mark.slow


@pytest.fixture
def quickstart(cli, tmp_path, capfd):
    def run(*more):
        ended = cli("fit", "--config", "configs/quickstart.yaml", "--runs", tmp_path / "runs", *more)
        return ended.folder, capfd.readouterr().out

    return run


@pytest.mark.timeout(900)  # several minutes where others use the machine too
def test_quickstart(quickstart, tmp_path):
    folder, out = quickstart()

    # The table.
    table = out[out.rindex("Accuracy, %") :]
    for row in ("clean", "FGSM", "PGD-20", "worst case"):
        cells = re.search(rf"{row} +│(.*)", table)[1]
        assert len(re.findall(r"\d+\.\d \[", cells)) >= 2, f"{row}: {cells}"
    assert "student" in table
    assert "teacher" in table

    # The figures that the issue expects, with room for another machine's arithmetic.
    figures = results(folder)
    student = {metric: value for (m, c, metric), (value, _) in figures.items() if (m, c) == ("student", "best")}
    teacher = {metric: value for (m, _, metric), (value, _) in figures.items() if m == "teacher"}
    assert {"clean", "FGSM", "PGD-20", "worst case"} <= student.keys() & teacher.keys()
    assert student["clean"] > 0.93
    assert teacher["clean"] > 0.96
    assert student["PGD-20"] > 0.6
    assert teacher["PGD-20"] > 0.75
    attacks = ("clean", "FGSM", "PGD-20", "PGD-20 margin", "worst case")
    for values in (student, teacher):
        assert values["worst case"] <= min(values[attack] for attack in attacks)
    assert {n for (_, _, metric), (_, n) in figures.items() if metric in attacks} == {360}
    assert student["adherence/Saliency/absolute cosine/skill"] <= 1
    assert "Does the student look where its teacher looks?" in out

    # The folder.
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    whole = {"config.yaml", "results.jsonl", "results.csv", "metrics.csv", "environment.json", "command.sh"}
    assert whole | {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/curves.png"} <= held
    assert "outcomes/student-best.parquet" in held
    assert any(re.fullmatch(r"figures/examples-student-best\.png", name) for name in held)
    outcomes = parquet.read_table(folder / "outcomes/student-best.parquet").to_pydict()
    assert sorted(outcomes["index"]) == list(range(360))
    right = [p == y for p, y in zip(outcomes["prediction/PGD-20"], outcomes["label"], strict=True)]
    assert sum(right) / 360 == student["PGD-20"]
    assert max(outcomes["linf/PGD-20"]) <= 0.15 + 1e-6
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"] == "lightning_modules.ARD"
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == version("torch")
    assert 'python main.py fit --config "$(dirname "$0")/config.yaml"' in (folder / "command.sh").read_text()
    with (folder / "metrics.csv").open() as file:
        epochs = {int(row["epoch"]) for row in csv.DictReader(file) if row["val/robust_acc"]}
    assert epochs == set(range(15))

    # Once more, shorter: the teacher that is there is used, untouched.
    home = only(tmp_path / "runs" / "teachers", "at_digits-*")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    again, _ = quickstart("--trainer.max_epochs", "1", "--suite.images", "2", "--interpret.images", "0")
    assert again != folder
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert only(tmp_path / "runs" / "teachers", "at_digits-*") == home


@pytest.fixture
def on_labels(cli, tmp_path):
    """Accuracies by attack of a network that is trained on digits and labels alone."""

    def run(*more):
        folder = cli("fit", "--config", "configs/teacher_digits.yaml", "--runs", tmp_path / "runs", *more).folder
        return {metric: value for (_, c, metric), (value, _) in results(folder).items() if c == "best"}

    return run


def test_the_quickstarts_student_is_not_robust_by_itself(on_labels):
    figures = on_labels("--model.network.widths", "[128]")
    assert figures["clean"] > 0.95
    assert figures["PGD-20"] < 0.2


def test_a_high_temperature_masks_gradients_and_strong_attacks_see_through_it(on_labels):
    """Paper 001's pattern: at T = 40 weak attacks look harmless, strong ones and the margin loss undo it."""
    figures = on_labels("--model.temperature", "40")
    assert figures["clean"] > 0.95
    assert min(figures["FGSM"], figures["PGD-20"]) > 0.8
    assert max(figures["FGSM strong"], figures["PGD-20 strong"], figures["PGD-20 margin"]) < 0.3
