"""Accuracy without the class that training left out and on it alone: in the result, the tables, and the files."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from attack_helpers import Moving
from main_helpers import (
    COMMON,
    DDP,
    NETWORK,
    QUIET,
    ROOT,
    checkpoint,
    process,
    results,
    sgd,
    student_config,
    teacher_config,
    write,
)
from pyarrow import parquet
from rich.console import Console
from suite_helpers import CLEAN, LABELS, ROBUST, THREAT, batches, down, halves, up

from attacks import FGSM, Attack, AutoAttack, MinimumNorm, SuiteResult, run_suite
from attacks.records import Record, wilson
from attacks.tables import accuracies, costs

TEST_SET = 360
OMIT = 3


class Far(MinimumNorm):
    """Mirrors what is below a half, however far that is."""

    name = "far"

    def perturb(self, model, x, y, draws):
        return 1 - x


def run(*attacks: Attack, **settings) -> SuiteResult:
    return run_suite(halves(), batches(4, 6), attacks, THREAT, **settings)


def figures(records) -> dict[str, tuple[float, int]]:
    return {record.metric: (record.value, record.n) for record in records}


# --- a part of a result ---


@pytest.mark.parametrize("rows", [np.array([7, 0, 4]), np.arange(10) % 3 == 0], ids=["positions", "mask"])
def test_a_part_of_a_result_is_that_of_the_suite_on_these_images(rows):
    attacks = (FGSM(), AutoAttack(attacks=[Moving("up", up), Moving("down", down)]))
    whole = run(*attacks, examples=5)
    chosen = np.arange(10)[rows]
    part = whole[rows]
    alone = run_suite(halves(), [tuple(column[chosen] for column in batches()[0])], attacks, THREAT)
    assert part.index.tolist() == alone.index.tolist() == (100 + chosen).tolist()
    assert part.label.tolist() == alone.label.tolist()
    assert part.broken_by().tolist() == alone.broken_by().tolist()
    for ours, theirs in zip(part.records(), alone.records(), strict=True):
        for name in ("metric", "value", "n", "low", "high", "threat", "forwards", "backwards"):
            assert getattr(ours, name) == getattr(theirs, name), (ours, theirs)
    # Of five images that were kept those that are in the part, in the order in which they were kept.
    assert part.shown.tolist() == [100 + i for i in range(5) if i in chosen]
    for name, images in part.examples.items():
        assert np.array_equal(images, whole.examples[name][[i for i in range(5) if i in chosen]])
    assert len(whole.index) == 10


# --- figures ---


def test_accuracies_without_a_class_and_on_it_alone_by_hand():
    records = list(run(FGSM(), Moving("up", up)).left_out(1, "one"))
    right = {"clean": CLEAN, "FGSM": ROBUST, "up": [*ROBUST[:7], True, False, False], "worst case": ROBUST}
    expected = {}
    for part, rows in (("without one", LABELS == 0), ("only one", LABELS == 1)):
        for name, of_all in right.items():
            found = np.array(of_all)[rows.numpy()]
            expected[f"{name} {part}"] = (found.mean(), len(found))
    assert figures(records) == expected
    assert list(expected)[3] == "worst case without one"
    assert expected["clean only one"] == (0.75, 4)
    assert expected["FGSM without one"] == (2 / 6, 6)
    for record in records:
        assert (record.low, record.high) == wilson(round(record.value * record.n), record.n)
        assert record.threat == ("" if record.metric.startswith("clean") else "linf 0.1")


def test_the_parts_together_are_the_whole():
    result = run(FGSM())
    whole = figures(result.records())
    parts = figures(result.left_out(0, "0"))
    for name, (value, n) in whole.items():
        of_parts = [parts[f"{name} {part} 0"] for part in ("without", "only")]
        assert sum(count for _, count in of_parts) == n
        assert sum(share * count for share, count in of_parts) == pytest.approx(value * n)


def test_they_took_no_time_of_their_own():
    records = run(FGSM(), Moving("up", up)).left_out(1, "one")
    assert {(record.seconds, record.forwards, record.backwards) for record in records} == {(0.0, 0.0, 0.0)}


def test_attacks_are_told_as_a_whole_and_lengths_are_not():
    result = run(AutoAttack(attacks=[Moving("up", up), Moving("down", down)]), Far(unlimited=True))
    (name,) = (metric for metric in result.radii if metric.startswith("AutoAttack"))
    assert figures(result.records()).keys() >= {"far mean l2", "far mean linf"}
    assert list(figures(result.left_out(1, "one"))) == [
        f"{metric} {part} one" for part in ("without", "only") for metric in ("clean", name, "far", "worst case")
    ]


@pytest.mark.parametrize(
    ("rows", "left"), [([0, 1, 8], "without one"), ([4, 5], "only one")], ids=["none of it", "it alone"]
)
def test_a_part_without_images_has_no_figures(rows, left):
    data = [tuple(part[rows] for part in batches()[0])]
    records = run_suite(halves(), data, [FGSM()], THREAT).left_out(1, "one")
    assert figures(records).keys() == {f"{name} {left}" for name in ("clean", "FGSM", "worst case")}


# --- tables ---


def rows(table) -> list[list[str]]:
    """What a table looks like, as rows of cells; a line between sections has one cell, ``-``."""
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    shown = []
    for line in console.file.getvalue().splitlines()[4:-1]:  # behind title and head
        shown.append(["-"] if line.startswith("├") else [cell.strip() for cell in line.strip("│").split("│")])
    return shown


def test_the_parts_stand_below_all_images():
    one, other = run(FGSM(), Moving("up", up)), run(Moving("down", down))
    shown = {
        ("student", "best"): [*one.records(), Record("extra", 0.5, 10, 0.4, 0.6, 0.0), *one.left_out(1, "one")],
        ("teacher", ""): [*other.records(), *other.left_out(1, "one")],  # attacked otherwise
    }
    body = rows(accuracies(shown, "Accuracy"))
    names = [row[0] for row in body]
    assert names == [
        *("clean", "-", "FGSM", "up", "extra", "down", "-", "worst case", "-"),
        *("without one", "clean", "FGSM", "up", "down", "worst case", "-"),
        *("only one", "clean", "FGSM", "up", "down", "worst case"),
    ]
    without, only = ({row[0]: row[1:] for row in part} for part in (body[9:15], body[16:]))
    assert without["without one"] == ["", ""]
    assert without["clean"] == ["66.7 [30.0, 90.3]"] * 2
    assert only["clean"] == ["75.0 [30.1, 95.4]"] * 2
    assert without["down"][0] == only["FGSM"][1] == "–"
    priced = [row[0] for row in rows(costs(shown))]
    assert "FGSM" in priced
    assert not any("one" in name for name in priced)


def test_a_name_that_looks_like_a_part_makes_no_section():
    records = [*run(FGSM()).records(), Record("accuracy only one", 0.5, 4, 0.1, 0.9, 0.0)]
    names = [row[0] for row in rows(accuracies({("network", ""): records}, "Accuracy"))]
    assert names == ["clean", "-", "FGSM", "accuracy only one", "-", "worst case"]


def test_names_of_several_words_and_of_top_classes():
    result = run(FGSM(), top=2)
    shown = {("network", ""): [*result.records(), *result.left_out(0, "lower left")]}
    names = [row[0] for row in rows(accuracies(shown, "Accuracy"))]
    assert names[:6] == ["clean", "-", "clean top-2", "FGSM", "FGSM top-2", "-"]
    assert names[-9:] == [
        *("without lower left", "clean", "FGSM", "worst case", "-"),
        *("only lower left", "clean", "FGSM", "worst case"),
    ]


# --- through the command line ---


def omitting(config: dict, label: int | None) -> dict:
    data = config["data"] | {"init_args": config["data"]["init_args"] | {"omit": label}}
    return config | {"data": data, "suite": config["suite"] | {"images": None}}


def fit(home: Path, name: str, config: dict, *more: object) -> Path:
    from main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        path = write(home / f"{name}.yaml", config)
        return main(["fit", "--config", path, "--runs", str(home / "runs"), *map(str, more), *QUIET]).folder


@pytest.fixture(scope="module")
def student(tiny_teacher, tmp_path_factory) -> Path:
    """The run of a student that was shown no three, of a teacher that has seen them."""
    home = tmp_path_factory.mktemp("omitted")
    config = student_config({"checkpoint": str(tiny_teacher / "checkpoints" / "best.ckpt")})
    return fit(home, "student", omitting(config, OMIT))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_files_agree_with_what_became_of_each_image(student, role):
    tested = "best" if role == "student" else ""
    found = {m: value for (r, c, m), value in results(student).items() if (r, c) == (role, tested)}
    name = "-".join(filter(None, (role, tested)))
    table = parquet.read_table(student / "outcomes" / f"{name}.parquet")
    column = {key: table[key].to_numpy() for key in table.column_names}
    assert len(column["index"]) == TEST_SET
    three = column["label"] == OMIT
    assert 30 < three.sum() < 40
    right = {"clean": column["rank/clean"] == 0, "FGSM": column["rank/FGSM"] == 0}
    right["worst case"] = right["clean"] & right["FGSM"]
    expected = {metric: (rows.mean(), len(rows)) for metric, rows in right.items()}
    for part, of in ((f"without {OMIT}", ~three), (f"only {OMIT}", three)):
        expected |= {f"{metric} {part}": (rows[of].mean(), of.sum()) for metric, rows in right.items()}
    assert found == expected


def test_intervals_are_those_of_the_part(student):
    lines = [json.loads(line) for line in (student / "results.jsonl").read_text().splitlines()]
    parts = [line for line in lines if line["metric"].endswith(f"only {OMIT}")]
    assert {line["model"] for line in parts} == {"student", "teacher"}
    for line in parts:
        assert (line["low"], line["high"]) == pytest.approx(wilson(round(line["value"] * line["n"]), line["n"]))


def test_they_are_logged_like_the_others(student):
    logged = (student / "metrics.csv").read_text().splitlines()[0]
    for prefix in ("test", "test/teacher"):
        for metric in ("clean", "FGSM", "worst case"):
            assert f"{prefix}/{metric} without {OMIT}" in logged
            assert f"{prefix}/{metric} only {OMIT}" in logged


def test_a_later_test_of_another_class_or_of_none(student, cli, tmp_path, capsys):
    words = ["test", "--config", student / "config.yaml", "--ckpt_path", student / "checkpoints" / "best.ckpt"]
    other = cli(*words, "--runs", tmp_path, "--data.omit", "5").folder
    assert ("student", "best", "clean only 5") in results(other)
    assert ("student", "best", "clean only 3") not in results(other)
    assert {"without 5", "only 5"} <= set(re.findall(r"(?<=│ )\w+ 5", capsys.readouterr().out))
    none = cli(*words, "--runs", tmp_path, "--data.omit", "null").folder
    assert {metric for _, _, metric in results(none)} == {"clean", "FGSM", "worst case"}


def test_without_an_omitted_class_there_are_no_parts(tiny_teacher):
    assert {metric for _, _, metric in results(tiny_teacher)} == {"clean", "FGSM", "worst case"}


def test_a_class_that_does_not_exist_is_one_sentence(command, tmp_path):
    config = write(tmp_path / "none.yaml", omitting(teacher_config(), 12))
    ended = command("fit", "--config", config, "--runs", tmp_path / "runs")
    assert ended.status
    assert "omit=12 names no class: give one of 0 to 9 (0, 1, 2" in ended.err
    assert "Traceback" not in ended.err


def test_a_network_that_never_saw_a_class_does_not_know_it(tmp_path):
    """Hard labels push the class down: what the study compares distillation with."""
    model = {"class_path": "lightning_modules.Teacher", "init_args": {"network": NETWORK, "optimizer": sgd()}}
    config = COMMON | {"model": model, "trainer": {"max_epochs": 8, "accelerator": "cpu"}}
    found = results(fit(tmp_path, "alone", omitting(config, OMIT)))
    assert found["network", "best", "clean only 3"][0] == 0
    assert found["network", "best", "clean without 3"][0] > 0.8
    assert found["network", "best", "clean without 3"][1] + found["network", "best", "clean only 3"][1] == TEST_SET


@pytest.mark.slow
def test_two_processes_tell_the_same(tmp_path, student):
    words = ["test", "--config", student / "config.yaml", "--ckpt_path", student / "checkpoints" / "best.ckpt"]
    ended = process(*words, "--runs", tmp_path, "--wandb", "false", *DDP)
    assert ended.status == 0, ended.err
    (folder,) = (tmp_path / "student").iterdir()
    alone = {key: value for key, value in results(student).items() if key[1] != "last"}
    assert results(folder) == alone


# --- figures of the regime ---


class TestRegimeRecords:
    @pytest.fixture
    def found(self, monkeypatch, cli, student, tmp_path) -> list[dict]:
        from lightning_modules import ARD

        monkeypatch.setattr(ARD, "records", lambda self: [Record("agreement", 0.25, 360, 0.2, 0.3, 1.5)])
        words = ["test", "--config", student / "config.yaml", "--ckpt_path", student / "checkpoints" / "best.ckpt"]
        folder = cli(*words, "--runs", tmp_path, "--data.omit", "null").folder
        assert "test/agreement" in (folder / "metrics.csv").read_text()
        assert "test/teacher/agreement" not in (folder / "metrics.csv").read_text()
        return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]

    def test_they_are_the_tested_networks_and_signed(self, found):
        (record,) = (line for line in found if line["metric"] == "agreement")
        assert (record["model"], record["checkpoint"]) == ("student", "best")
        assert (record["value"], record["n"], record["seconds"]) == (0.25, 360, 1.5)

    def test_they_follow_the_suites_own(self, found):
        assert [line["metric"] for line in found if line["model"] == "student"] == [
            *("clean", "FGSM", "worst case", "agreement")
        ]


def test_the_checkpoint_says_nothing_of_it(student):
    """What is left out is the data's, so a test may say otherwise."""
    assert "omit" not in json.dumps(checkpoint(student / "checkpoints" / "best.ckpt")["hyper_parameters"], default=str)
