"""The study of adherence: what is compared, above which floor, and how it is judged."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from study_helpers import cells, checkpoint

from attacks.records import Record
from datamodules import Digits
from interpret import MEASURES
from main import main
from networks.checkpoint import load_network
from studies import adherence as study
from studies.adherence import BLIND, STUDENT, SUITE, TEACHER, Compared, compare, skills, table, trios
from studies.arms import config, wrn
from studies.runs import show


def test_the_blind_student_differs_by_the_teacher_alone():
    for trio in trios(Path("mnist")).values():
        student, blind = trio.arms[STUDENT], trio.arms[BLIND]
        configs = [config(arm, 1, None, SUITE) for arm in (student, blind)]
        models = [each.pop("model") for each in configs]
        assert configs[0] == configs[1]
        networks = [model["init_args"]["network"] for model in models]
        assert networks[0] == networks[1] != trio.arms[TEACHER].network
        for key in ("optimizer", "scheduler", "scheduler_interval"):
            assert models[0]["init_args"][key] == models[1]["init_args"][key]
        assert student.options.get("attack") == blind.options.get("attack")
        assert (student.teacher, blind.teacher) == (TEACHER, None)


@pytest.mark.slow
@pytest.mark.parametrize("role", [TEACHER, STUDENT, BLIND])
@pytest.mark.parametrize("name", list(trios(Path("mnist"))))
def test_every_arm_is_a_config_of_the_command_line(name, role, at_root, capsys):
    arm = trios(Path("mnist"))[name].arms[role]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", yaml.safe_dump(config(arm, 0, None, SUITE)), "--print_config"])
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] == f"lightning_modules.{arm.regime}"


@pytest.mark.parametrize("differences", [[0.3, 0.1, 0.2], [-0.3, -0.31, -0.29], [0.4, -0.3, 0.1], [0.2, 0.21]])
def test_verdict_is_that_of_a_t_test(differences):
    t, p = stats.ttest_1samp(differences, 0)
    expected = "not decided" if p > 0.05 else "higher" if t > 0 else "lower"
    compared = Compared([0.5 + each for each in differences], [0.5] * len(differences))
    assert compared.verdict == expected
    low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
    assert compared.cells(1, 4)[2] == f"{np.mean(differences):.4f} [{low:.4f}, {high:.4f}]"


def test_one_seed_decides_nothing():
    assert Compared([0.9], [0.1]).verdict == "not decided"


@pytest.fixture
def runs() -> list[list[Record]]:
    """Figures of two seeds and two methods, at random."""
    draws = np.random.default_rng(0)

    def seed() -> list[Record]:
        names = [f"adherence/{method}/{measure}" for method in ("A", "B") for measure in MEASURES]
        metrics = [*names, *(f"{name}/floor" for name in names), *study.AGREEMENT]
        return [
            Record(metric, draws.uniform(0, 0.8), 9, 0.0, 1.0, 0.0, model=role)
            for role in (STUDENT, BLIND)
            for metric in metrics
        ]

    return [seed(), seed()]


def test_both_skills_stand_above_the_highest_of_all_controls(runs):
    found = skills(runs)
    assert set(found) == {(method, measure) for method in ("A", "B") for measure in MEASURES}
    for (method, measure), (compared, floors) in found.items():
        name = f"adherence/{method}/{measure}"
        values = np.array(
            [
                [next(r.value for r in run if (r.model, r.metric) == (role, metric)) for run in runs]
                for metric in (name, f"{name}/floor")
                for role in (STUDENT, BLIND)
            ]
        )
        floor = np.maximum(values[2], values[3])
        assert floors == pytest.approx(floor)
        assert compared.student == pytest.approx((values[0] - floor) / (1 - floor))
        assert compared.blind == pytest.approx((values[1] - floor) / (1 - floor))


def test_a_dead_student_decides_nothing(runs, tmp_path):
    name = "adherence/A/SSIM"
    runs[0] = [record for record in runs[0] if (record.model, record.metric) != (STUDENT, name)]
    show(table("KD", runs), tmp_path / "table.md")
    row = next(row for row in cells(tmp_path / "table.md") if row[:2] == ["A", "SSIM"])
    assert row[3] == "nan ± nan"
    assert row[6] == "not decided"


def test_table_says_what_was_recorded(runs, tmp_path):
    show(table("KD", runs), tmp_path / "table.md")
    head, *rows = cells(tmp_path / "table.md")
    assert len(head) == 7
    assert [row[1] for row in rows] == [*MEASURES, *MEASURES, "accuracy, %", "agreement, %", "KL to teacher, nats"]
    for metric, row, unit in zip(study.AGREEMENT, rows[-3:], (100, 100, 1), strict=True):
        for place, role in ((3, STUDENT), (4, BLIND)):
            values = [unit * r.value for run in runs for r in run if (r.model, r.metric) == (role, metric)]
            assert float(row[place].split(" ± ")[0]) == pytest.approx(np.mean(values), abs=0.06)


def test_a_student_that_is_its_teacher_has_a_skill_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "IMAGES", 12)
    own, other = (
        checkpoint(tmp_path / f"{seed}.ckpt", "WideResNet", Digits().facts, seed, **wrn()["init_args"])
        for seed in (5, 6)
    )
    records = compare(Digits(), {TEACHER: own, STUDENT: own, BLIND: other}, wrn(), seed=0)
    assert {record.model for record in records} == {STUDENT, BLIND}
    found = skills([records])
    assert {method for method, _ in found} == {"Saliency", "Integrated Gradients", "Grad-CAM", "SmoothGrad"}
    for compared, floors in found.values():
        assert compared.student == pytest.approx([1])
        assert compared.blind[0] < 1
        assert floors[0] < 1
    values = {(record.model, record.metric): record for record in records}
    assert values[STUDENT, "agreement"].value == 1
    assert values[STUDENT, "KL to teacher"].value == pytest.approx(0, abs=1e-9)
    assert values[BLIND, "KL to teacher"].value > 0
    assert values[STUDENT, "accuracy"].n == 12
    # The two have one floor in common where it is the untrained student's.
    untrained = [values[role, "adherence/Saliency/absolute cosine/untrained"].value for role in (STUDENT, BLIND)]
    assert untrained[0] == pytest.approx(untrained[1])


def test_the_study_from_its_command_to_its_table(tmp_path, monkeypatch, runs, capsys):
    monkeypatch.setattr(study, "side_by_side", lambda task, arguments, jobs, title: [runs[0]] * len(arguments))
    study.run(["--seeds", "2", "--runs", str(tmp_path), "--mnist", str(tmp_path)])
    (folder,) = (tmp_path / "tables").iterdir()
    assert {path.stem for path in folder.glob("*.md")} == {"KD on Digits", "ARD on Digits", "KD on MNIST"}
    for path in folder.glob("*.md"):
        lines = (folder / path.stem / "results.jsonl").read_text().splitlines()
        assert len(lines) == 2 * len(runs[0])


@pytest.mark.slow
def test_a_trio_is_trained_and_compared(tmp_path, at_root, monkeypatch):
    """At a learning rate of 0 both students end as they began, and they began alike."""

    def still(*given):
        whole = config(*given)
        whole["model"]["init_args"]["optimizer"]["init_args"] = {"lr": 0.0}
        return whole

    weights: dict[str, Path] = {}
    monkeypatch.setattr("studies.arms.STEPS", 2)
    monkeypatch.setattr(study, "config", still)
    monkeypatch.setattr(study, "compare", lambda data, found, *rest: weights.update(found) or [])
    assert study.train("KD on Digits", trios(None)["KD on Digits"], 3, tmp_path) == []
    contents = {role: torch.load(path, map_location="cpu", weights_only=True) for role, path in weights.items()}
    assert [content["global_step"] for content in contents.values()] == [2, 2, 2]
    assert contents[STUDENT]["teacher"]["origin"] == str(weights[TEACHER])
    states = [dict(load_network(weights[role]).network.named_parameters()) for role in (STUDENT, BLIND)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
