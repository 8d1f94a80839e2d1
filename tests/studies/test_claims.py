"""The study of the papers' claims: what it compares, and what it makes of the figures."""

from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats
from study_helpers import cells

from datamodules import Digits
from main import main
from networks.checkpoint import load_network
from studies import claims as study
from studies.claims import MARGIN, MNIST_KD, MNIST_LABELS, Claim, arms, claims, config, rows, run


@pytest.mark.parametrize(
    ("claimed", "differences", "verdict"),
    [
        ("higher", [7.4, 7.6, 7.8], "holds"),
        ("higher", [-7.4, -7.6, -7.8], "does not hold"),
        ("higher", [-10.0, 13.0, 0.5], "undecided"),
        ("lower", [-7.4, -7.6, -7.8], "holds"),
        ("lower", [7.4, 7.6, 7.8], "does not hold"),
        ("no lower", [-0.1, 0.0, 0.1], "holds"),  # a little worse than level is level
        ("no lower", [-2.2, -2.3, -2.4], "does not hold"),
        ("no higher", [0.1, 0.0, -0.1], "holds"),
        ("no higher", [0.0, 0.5, 1.0], "undecided"),
        ("higher", [50.0], "undecided"),  # one seed says nothing of its spread
    ],
)
def test_verdict(claimed, differences, verdict):
    assert Claim("x", "a", claimed, "b").verdict(differences) == verdict


@pytest.mark.parametrize("differences", [[3.0, 1.0, 2.0], [0.4, 1.9, 0.6], [-0.2, -1.1, -0.5, -0.9]])
def test_verdict_is_that_of_a_t_test(differences):
    bounds = {"higher": (0.0, 1), "no lower": (-MARGIN, 1), "no higher": (MARGIN, -1), "lower": (0.0, -1)}
    for claimed, (bound, side) in bounds.items():
        t, p = stats.ttest_1samp(differences, bound)
        expected = "undecided" if p > 0.05 else "holds" if t * side > 0 else "does not hold"
        assert Claim("x", "a", claimed, "b").verdict(differences) == expected


def test_teachers_come_before_their_students_and_claims_are_about_arms():
    names = list(arms())
    for place, arm in enumerate(arms().values()):
        assert arm.teacher is None or arm.teacher in names[:place]
    for claim in claims(mnist=True):
        assert {claim.one, claim.other} <= {*names, MNIST_KD, MNIST_LABELS}


def test_rows_take_differences_seed_by_seed():
    same = {"clean": 90.0, "confidence": 50.0, "clean only 3": 0.0}
    figures = [
        {name: {study.PGD: 10.0 * seed + place, **same} for place, name in enumerate(arms())} for seed in range(3)
    ]
    by_letter = {row[0]: row for row in rows(figures)}
    places = {name: place for place, name in enumerate(arms())}
    apart = places["KD from the robust teacher"] - places["KD from the natural teacher"]
    assert by_letter["a"][4] == f"{apart:.1f} ± 0.0"


@pytest.mark.parametrize(("words", "message"), [(["--seeds", "0"], "--seeds"), (["--mnist", "/nowhere"], "/nowhere")])
def test_bad_input_is_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_study_from_its_command_to_its_table(tmp_path, monkeypatch):
    same = {study.PGD: 50.0, "clean": 90.0, "confidence": 50.0, "clean only 3": 0.0}
    found = [{name: same for name in arms()}] * 2
    monkeypatch.setattr(study, "side_by_side", lambda task, arguments, jobs, title: found[: len(arguments)])
    run(["--seeds", "2", "--runs", str(tmp_path)])
    head, *table = cells(tmp_path / "claims.md")
    assert head == list(study.HEAD)
    assert table == rows(found)


@pytest.mark.slow
def test_arms_are_trained_and_read(tmp_path, at_root, monkeypatch):
    two = {name: arms()[name] for name in ("natural teacher", "KD without 3")}
    monkeypatch.setattr(study, "arms", lambda: two)
    monkeypatch.setattr("studies.arms.STEPS", 2)
    figures = study.train(1, tmp_path, None)
    assert list(figures) == list(two)
    assert {"clean", study.PGD, "clean only 3", "confidence"} <= set(figures["KD without 3"])
    for name in two:
        weights = next((tmp_path / f"{name} seed 1").glob("*/checkpoints/last.ckpt"))
        content = torch.load(weights, map_location="cpu", weights_only=True)
        assert content["global_step"] == 2
        test = Digits().batch("test")
        with torch.no_grad():
            probabilities = load_network(weights).network(test.x).softmax(1)
        assert figures[name]["clean"] == pytest.approx(100 * (probabilities.argmax(1) == test.y).float().mean().item())
        assert figures[name]["confidence"] == pytest.approx(100 * probabilities.amax(1).mean().item(), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(arms()))
def test_every_arm_is_a_config_of_the_command_line(name, at_root, capsys):
    arm = arms()[name]
    text = yaml.safe_dump(config(arm, 1, Path("teacher.ckpt") if arm.teacher else None, study.SUITE))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", text, "--print_config"])
    assert end.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    assert whole["model"]["class_path"] == f"lightning_modules.{arm.regime}"
    assert whole["trainer"]["max_steps"] == study.STEPS
