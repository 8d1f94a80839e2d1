"""The study of temperatures: both networks are trained at T, and its tables say what was recorded."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binomtest
from study_helpers import cells, checkpoint

from datamodules import ToyRing
from main import main
from networks.checkpoint import load_network
from studies import temperatures as study
from studies.pairs import Column, Pair, Plane, Setting, Trained, arguments, median
from studies.temperatures import draw, run, summary


def parsed(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict:
    with pytest.raises(SystemExit) as end:
        main(["fit", *words, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_both_networks_are_told_what_differs(at_root, capsys):
    both = {"trainer": {"max_epochs": 3}, "model": {"init_args": {"optimizer": {"class_path": "torch.optim.AdamW"}}}}
    setting = Setting("configs/toy_ring.yaml", ("--data.batch_size", "60"), both, 10, Path("runs"))
    whole = parsed(capsys, arguments(Column("T = 40", 40.0, 0.25), 2, setting))
    teacher = whole["model"]["init_args"].pop("teacher")
    other = parsed(capsys, ["--config", teacher["config"], "--config", json.dumps(teacher["override"])])
    for config in (whole, other):
        assert config["model"]["init_args"]["temperature"] == 40
        assert config["model"]["init_args"]["network"]["init_args"]["dropout"] == 0.25
        assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"
        assert config["trainer"]["max_epochs"] == 3
        assert config["seed_everything"] == 2
        assert config["suite"]["attacks"] == []
    assert whole["data"]["init_args"]["validation"] == 0
    assert whole["data"]["init_args"]["batch_size"] == 60


@pytest.mark.parametrize("config", ["configs/distill_mnist.yaml", "configs/toy_ring.yaml"])
def test_what_is_not_asked_for_stays_as_the_config_has_it(config, at_root, capsys):
    own = parsed(capsys, ["--config", config])
    whole = parsed(capsys, arguments(Column("T = 7", 7.0), 0, Setting(config, (), {}, 10, Path("runs"))))
    assert whole["model"]["init_args"].pop("temperature") == 7
    del own["model"]["init_args"]["temperature"]
    assert whole["model"]["init_args"]["teacher"].pop("override")
    del own["model"]["init_args"]["teacher"]["override"]
    assert whole["model"] == own["model"]
    assert whole["trainer"]["max_epochs"] == own["trainer"]["max_epochs"]


@pytest.mark.parametrize("n", [20, 51, 200])
def test_the_interval_of_a_median_is_the_sign_tests(n):
    """Inside it lie those values that a two-sided sign test at 5 % does not refuse for the median."""
    values = np.random.default_rng(n).lognormal(size=n)
    record = median("size", values)
    kept = [v for v in values if binomtest(int((values < v).sum()), n).pvalue > 0.05]
    assert record.value == np.median(values)
    assert record.low <= min(kept) < max(kept) <= record.high


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Pair]:
    """Networks that were never trained, at 30 points."""
    draws = np.random.default_rng(0)
    data = ToyRing()
    batch = data.batch("test", torch.arange(0, 1200, 40))
    plane = Plane(batch.x.numpy(), batch.y.numpy(), data.facts.names, data.facts.box)
    found = {}
    for seed, title in enumerate(("T = 1", "T = 10")):
        networks = {}
        for number, side in enumerate(("teacher", "student")):
            path = tmp_path / f"{side} {title}.ckpt"
            weights = checkpoint(path, "MLP", data.facts, 2 * seed + number, widths=[8])
            with torch.no_grad():
                top = load_network(path).network(batch.x).double().softmax(1).amax(1).numpy()
            correct, sizes = draws.random(30) < 0.7, 10 ** draws.uniform(-50, 0, 20)
            heat = {"hidden1": {"0": 1e-3}, "fc": {"fc": 1e-2 * number}}
            networks[side] = Trained(weights, correct, top, sizes, heat)
        found[title] = Pair(networks, plane)
    return found


def test_figures_and_tables_of_a_seed(pairs, tmp_path, capsys):
    draw(pairs, tmp_path / "out", eps=0.5)
    pictures = {f"{what}_{side}.png" for what in ("amplitudes", "layers") for side in ("teacher", "student")}
    figures = list((tmp_path / "out" / "figures").iterdir())
    assert {path.name for path in figures} == pictures | {"decisions.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    head, *rows = cells(tmp_path / "out" / "amplitudes_student.md")
    assert head[1:] == ["T = 1", "T = 10"]
    for column, pair in enumerate(pairs.values(), 1):
        sizes = pair.networks["student"].amplitudes
        bins = np.histogram(sizes, [0, *10.0 ** np.arange(-40, -4, 5), 1e-3, 1])[0] / 20
        assert [float(row[column].replace("·", "0")) for row in rows[:10]] == pytest.approx(100 * bins)
        assert float(rows[10][column]) == pytest.approx(np.median(sizes), rel=0.06)
    _, *rows = cells(tmp_path / "out" / "hardness.md")
    expected = [pair.networks[side].top for side in ("teacher", "student") for pair in pairs.values()]
    assert [float(row[2].split()[0]) for row in rows] == pytest.approx([top.mean() for top in expected], abs=6e-4)


def test_images_have_no_decision_map(pairs, tmp_path):
    draw({title: Pair(pair.networks, None) for title, pair in pairs.items()}, tmp_path / "out", None)
    assert {path.name for path in tmp_path.glob("out/*.md")} == {"amplitudes_student.md", "amplitudes_teacher.md"}
    assert not (tmp_path / "out" / "figures" / "decisions.png").exists()


def test_summary_is_over_the_seeds(pairs):
    networks = [pairs[title].networks["teacher"] for title in pairs]  # as if of two seeds
    table = summary([record for network in networks for record in network.records("teacher, T = 1")], 2)
    (row,) = zip(*(column.cells for column in table.columns), strict=True)
    shares = [100 * network.correct.mean() for network in networks]
    tops = [network.top.mean() for network in networks]
    assert row[:2] == ("teacher", "T = 1")
    assert row[2] == f"{np.mean(shares):.1f} ± {np.std(shares, ddof=1):.1f}"
    assert row[3] == f"{np.mean(tops):.4f} ± {np.std(tops, ddof=1):.4f}"
    assert [float(value) for value in row[5].split(", ")] == pytest.approx(
        [np.median(network.amplitudes) for network in networks], rel=0.06
    )


def total(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Each class's probabilities, summed over images of which none knows the others."""
    return network(x).softmax(1).sum(0)


@pytest.mark.slow
def test_the_study_trains_teacher_and_student_at_every_temperature(tmp_path, at_root, monkeypatch):
    def one_by_one(task: Callable, arguments: list[tuple], jobs: int, title: str) -> list:
        return [task(*each) for each in arguments]

    monkeypatch.setattr(study, "side_by_side", one_by_one)
    words = "--config configs/toy_ring.yaml --temperatures 1 40 --images 20 --data.batch_size 600"
    run([*words.split(), "--both", "{trainer: {max_epochs: 2}}", "--runs", str(tmp_path)])
    (folder,) = (tmp_path / "toy_ring").iterdir()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    weights = {row["model"]: row["checkpoint"] for row in rows}
    assert list(weights) == [f"{side}, T = {t}" for side in ("teacher", "student") for t in (1, 40)]
    for model, path in weights.items():
        content = torch.load(path, map_location="cpu", weights_only=True)
        assert content["trained_at"] == float(model.rpartition(" ")[2])
        assert content["global_step"] == 2 * 2  # 1,200 points, none held out, in batches of 600, two epochs
        assert len(load_network(path).network.hidden) == (9 if model.startswith("teacher") else 4)
        found = {row["metric"]: float(row["value"]) for row in rows if row["model"] == model}
        drawn = torch.randperm(1200, generator=torch.Generator().manual_seed(0))[:20]
        test = ToyRing().batch("test", drawn)
        with torch.no_grad():
            logits = load_network(path).network(test.x)
        assert found["accuracy"] == pytest.approx((logits.argmax(1) == test.y).float().mean().item())
        assert found["mean top probability"] == pytest.approx(logits.softmax(1).amax(1).mean().item(), abs=1e-5)
        network = load_network(path).network.double()
        jacobian = torch.autograd.functional.jacobian(partial(total, network), test.x.double())  # (classes, n, 2, 1, 1)
        sizes = jacobian.abs().mean((0, 2, 3, 4)).numpy()
        assert found["median amplitude"] == pytest.approx(np.median(sizes), rel=1e-6)
    taught = {model: torch.load(path, weights_only=True).get("teacher") for model, path in weights.items()}
    assert taught["student, T = 40"]["sha256"] == load_network(weights["teacher, T = 40"]).sha256
    assert (folder / "seed 0" / "figures" / "decisions.png").exists()
    assert len(cells(folder / "summary.md")) == 5


@pytest.mark.parametrize("words", [["--temperatures", "hot"], ["--temperatures", "1", "--both", "nonsense"]])
def test_bad_input_is_a_sentence(words, capsys):
    with pytest.raises(SystemExit) as end:
        run(["--config", "configs/toy_ring.yaml", *words])
    assert end.value.code == 2
    assert words[-1] in capsys.readouterr().err
