"""What ``fit`` and ``test`` say of where a student looks: figures, files, controls and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from main_helpers import COMMON, DDP, NETWORK, QUIET, ROOT, Ended, of, only, process, results, sgd, write
from pyarrow import parquet
from scipy.special import softmax
from torch.nn.functional import cross_entropy

from datamodules import Digits
from main import main
from networks.checkpoint import load_network

CNN = {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": 1}}
MEASURES = ("absolute cosine", "signed cosine", "Pearson", "Spearman", "top-10 % overlap", "SSIM")


def distilled(teacher: Path, network: dict[str, Any] = NETWORK, **interpret: Any) -> dict[str, Any]:
    init = {"network": network, "optimizer": sgd(), "temperature": 4.0, "teacher": {"checkpoint": str(teacher)}}
    model = {"class_path": "lightning_modules.Distillation", "init_args": init}
    return COMMON | {"model": model, "interpret": {"images": 40} | interpret}


def taught(folder: Path) -> Path:
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny student."""
    home = tmp_path_factory.mktemp("student")
    config = write(home / "student.yaml", distilled(taught(tiny_teacher)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return main(["fit", "--config", config, "--runs", str(home / "runs"), *QUIET]).folder


def test_a_fit_tells_what_its_own_files_come_to(student, tiny_teacher):
    found = of("student", results(student))
    maps = parquet.read_table(student / "outcomes" / "adherence-student-best.parquet").to_pydict()
    assert len(set(maps["index"])) == 40
    for method in ("Saliency", "Integrated Gradients"):
        for measure in MEASURES:
            name = f"adherence/{method}/{measure}"
            pair, *controls = (
                np.nanmean(np.array(maps[f"{method}/{measure}/{column}"], float))
                for column in ("pair", "shifted", "untrained")
            )
            assert found[name][0] == pytest.approx(pair)
            assert found[f"{name}/floor"][0] == pytest.approx(max(controls))
            assert found[f"{name}/skill"][0] == pytest.approx((pair - max(controls)) / (1 - max(controls)))
    # A fully connected network convolves nowhere.
    assert not any("Grad-CAM" in name for name in found)
    data = Digits()
    x, y, *_ = data.batch("test", torch.tensor(maps["index"]))
    with torch.no_grad():
        z = {
            name: load_network(taught(run)).network(x)
            for name, run in (("student", student), ("teacher", tiny_teacher))
        }
    p = {name: softmax(logits.double().numpy(), axis=1) for name, logits in z.items()}
    assert maps["target"] == z["teacher"].argmax(1).tolist()
    assert found["agreement"] == (pytest.approx(np.mean(p["student"].argmax(1) == p["teacher"].argmax(1))), 40)
    kl = (p["teacher"] * np.log(p["teacher"] / p["student"])).sum(1).mean()
    assert found["KL to teacher"][0] == pytest.approx(kl, rel=1e-4)
    for role, run in (("student", "best"), ("teacher", "")):
        assert of(role, results(student), run)["NLL"][0] == pytest.approx(float(cross_entropy(z[role], y)), rel=1e-4)
    pictures = {path.name for path in (student / "figures" / "interpretation").iterdir()}
    assert pictures == {
        "adherence.png",
        "attacks.png",
        "layers.png",
        "maps-Integrated-Gradients.png",
        "maps-Saliency.png",
        "models-Integrated-Gradients.png",
        "models-Saliency.png",
        "reliability.png",
        "sensitivity.png",
    }


def test_a_test_repeats_the_fits_figures_and_prints_them(student, command, tmp_path):
    words = ["--config", student / "config.yaml", "--ckpt_path", taught(student), "--runs", tmp_path / "again"]
    ended = command("test", *words)
    assert ended.status == 0, ended.err
    for title in ("Does the student look where its teacher looks?", "Agreement and calibration", "Gradient amplitudes"):
        assert title in ended.out
    assert "top-10 % overlap" in ended.out
    again = results(only(tmp_path / "again", "*/*-test"))
    assert {key: again[key] for key in again if key[1] == "best"} == {
        key: value for key, value in results(student).items() if key[1] == "best"
    }


def test_no_images_no_interpretation(student, cli, tmp_path):
    words = ["--config", student / "config.yaml", "--ckpt_path", taught(student), "--runs", tmp_path / "again"]
    folder = cli("test", *words, "--interpret.images", "0").folder
    assert not any("adherence" in metric or metric == "agreement" for _, _, metric in results(folder))
    assert not (folder / "figures" / "interpretation").exists()


@pytest.mark.slow
def test_convolutional_networks_have_grad_cam_and_a_blind_student_raises_the_floor(
    student, cli, tiny_teacher, tmp_path
):
    (tmp_path / "cnn").mkdir()
    labels = distilled(taught(tiny_teacher), CNN)
    labels["model"] = {"class_path": "lightning_modules.Teacher", "init_args": {"network": CNN, "optimizer": sgd()}}
    runs = ["--runs", tmp_path / "runs"]
    teacher, blind = (
        cli("fit", "--config", write(tmp_path / f"{name}.yaml", labels), *runs, "--seed_everything", seed).folder
        for seed, name in enumerate(("teacher", "blind"))
    )
    config = distilled(
        taught(teacher), CNN, controls={"blind": str(taught(blind))}, models={"an MLP": str(taught(tiny_teacher))}
    )
    with pytest.raises(ValueError, match="MLP has no convolutional stage"):  # the further network has no such maps
        cli("fit", "--config", write(tmp_path / "student.yaml", config), *runs)
    config["interpret"]["models"] = {}
    folder = cli("fit", "--config", write(tmp_path / "student.yaml", config), *runs).folder
    found = of("student", results(folder))
    for measure in MEASURES:
        name = f"adherence/Grad-CAM/{measure}"
        controls = [found[f"{name}/{control}"][0] for control in ("shifted", "untrained", "blind")]
        assert found[f"{name}/floor"][0] == max(controls)
    # The student itself as the control leaves it no skill.
    words = ["--config", folder / "config.yaml", "--ckpt_path", taught(folder), "--runs", tmp_path / "again"]
    again = cli("test", *words, "--interpret.controls", f"{{itself: {taught(folder)}}}").folder
    found = of("student", results(again))
    skills = [value for name, (value, _) in found.items() if name.endswith("/skill")]
    assert len(skills) == 18
    assert max(skills) <= 0


def test_a_network_without_a_teacher_is_told_calibration_and_sensitivity(cli, tiny_teacher, tmp_path):
    words = ["--config", tiny_teacher / "config.yaml", "--ckpt_path", taught(tiny_teacher), "--runs", tmp_path]
    folder = cli("test", *words, "--interpret.images", "30").folder
    found = of("network", results(folder))
    assert {"ECE", "NLL", "mean amplitude of probabilities"} <= found.keys()
    assert found["ECE"][1] == 30
    assert not any("adherence" in name or "agreement" in name for name in found)
    assert (folder / "figures" / "interpretation" / "attacks.png").is_file()


def test_decisions_in_the_plane_are_drawn(cli, tmp_path):
    config = {
        "data": {"class_path": "datamodules.ToyRing"},
        "model": {"class_path": "lightning_modules.Teacher", "init_args": {"network": NETWORK, "optimizer": sgd()}},
    }
    path = write(tmp_path / "ring.yaml", COMMON | config | {"interpret": {"images": 50}})
    folder = cli("fit", "--config", path, "--runs", tmp_path / "runs").folder
    found = of("network", results(folder))
    assert found["mean top probability"][1] == 50
    assert 1 / 3 <= found["mean top probability"][0] <= 1
    names = {path.name for path in (folder / "figures" / "interpretation").iterdir()}
    assert names == {"decisions.png", "layers.png", "reliability.png", "sensitivity.png"}


def test_an_untrained_network_draws_from_no_generator_but_its_own(student):
    from lightning_modules import Distillation

    module = Distillation.load_from_checkpoint(taught(student), map_location="cpu", weights_only=True)
    before = torch.get_rng_state()
    one, same, other = (dict(module.untrained(seed).named_parameters()) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())
    assert not any(torch.equal(value, module.network.get_parameter(name)) for name, value in one.items())


REFUSED = [
    ("--interpret.images", "-1", "images must be at least 0, got -1"),
    ("--interpret.controls", "{untrained: x.ckpt}", "'untrained' in interpret.controls"),
    ("--interpret.controls", "{blind: missing.ckpt}", "no checkpoint at missing.ckpt"),
    ("--interpret.models", "{other: missing.ckpt}", "no checkpoint at missing.ckpt"),
    ("--interpret.methods+", "interpret.GradCAM", "no convolutional stage"),
    ("--interpret.methods+", "interpret.GuidedGradCAM", "no convolutional stage"),
    ("--interpret.target", "nobody", "interpret.target"),
]


@pytest.mark.parametrize(("key", "value", "says"), REFUSED, ids=[f"{key} {value}" for key, value, _ in REFUSED])
def test_bad_input_is_refused_in_a_sentence(key, value, says, student, command, tmp_path):
    words = ["--config", student / "config.yaml", "--ckpt_path", taught(student), "--runs", tmp_path / "again"]
    ended: Ended = command("test", *words, key, value)
    assert ended.status != 0
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_a_control_of_other_classes_is_refused_before_training(cli, tiny_teacher, tmp_path):
    ring = COMMON | {
        "data": {"class_path": "datamodules.ToyRing"},
        "model": {"class_path": "lightning_modules.Teacher", "init_args": {"network": NETWORK, "optimizer": sgd()}},
    }
    other = cli("fit", "--config", write(tmp_path / "ring.yaml", ring), "--runs", tmp_path / "runs").folder
    config = distilled(taught(tiny_teacher), controls={"blind": str(taught(other))})
    with pytest.raises(ValueError, match=r"interpret\.controls\.blind"):
        cli("fit", "--config", write(tmp_path / "student.yaml", config), "--runs", tmp_path / "runs")
    assert not list((tmp_path / "runs" / "student").rglob("*.ckpt"))


@pytest.mark.slow
def test_two_processes_say_what_one_says(student, tmp_path):
    words = ["--config", student / "config.yaml", "--ckpt_path", taught(student), "--runs", tmp_path / "again"]
    ended = process("test", *words, *DDP)
    assert ended.status == 0, ended.err
    again = of("student", results(only(tmp_path / "again", "*/*-test")))
    alone = of("student", results(student))
    for name in (name for name in alone if "adherence" in name or name in ("ECE", "NLL", "agreement")):
        assert again[name][1] == alone[name][1]
        assert again[name][0] == pytest.approx(alone[name][0], rel=1e-5)
    assert sum("adherence" in name for name in again) > 50
