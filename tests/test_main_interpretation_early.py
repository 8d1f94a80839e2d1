"""What cannot be explained ends a run before it begins; what was found is kept, whatever fails behind it."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from main_helpers import COMMON, NETWORK, QUIET, only, results, sgd, write
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional as F

import interpret.callback
from attacks import PGD, Threat
from datamodules import Digits
from interpret import Saliency
from interpret.callback import Interpretation
from lightning_modules import Distillation
from lightning_modules.teachers import TeacherSource
from networks import MLP, Facts
from networks.checkpoint import load_network

CNN = {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": 1}}


class Functional(nn.Module):
    """Rectifies outside any module."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.features = nn.Conv2d(facts.channels, 4, 3)
        self.head = nn.Linear(4, facts.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.features(x)).mean((2, 3)))


class Drawing(nn.Module):
    """A teacher that draws at random however it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(x.flatten(1), 0.5, training=True))


def weights(folder: Path) -> Path:
    return folder / "checkpoints" / "best.ckpt"


def student(teacher: dict, network: dict = NETWORK, **interpret) -> dict:
    init = {"network": network, "optimizer": sgd(), "teacher": teacher}
    model = {"class_path": "lightning_modules.Distillation", "init_args": init}
    return COMMON | {
        "model": model,
        "interpret": {"images": 12, "methods": [{"class_path": "interpret.Saliency"}]} | interpret,
    }


REFUSED = {
    "a layer that is not there": (
        {"methods": [{"class_path": "interpret.GradCAM", "init_args": {"layer": "nope"}}]},
        "no module 'nope'",
    ),
    "one method twice": ({"methods": [{"class_path": "interpret.Saliency"}] * 2}, "a name of its own"),
    "no method": ({"methods": []}, "interpret.methods is empty"),
    "F.relu": ({"methods": [{"class_path": "interpret.GuidedGradCAM", "init_args": {"layer": "features"}}]}, "F.relu"),
}


@pytest.mark.parametrize(("interpret", "says"), REFUSED.values(), ids=REFUSED)
def test_what_a_method_refuses_is_refused_before_training(interpret, says, cli, tiny_teacher, tmp_path):
    network = {"class_path": "test_main_interpretation_early.Functional"}
    config = write(tmp_path / "student.yaml", student({"checkpoint": str(weights(tiny_teacher))}, network, **interpret))
    with pytest.raises(ValueError, match=says):
        cli("fit", "--config", config, "--runs", tmp_path / "runs")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_network_that_draws_at_random_is_refused_before_training(cli, tmp_path):
    teacher = {"module": {"class_path": "test_main_interpretation_early.Drawing"}}
    config = write(tmp_path / "student.yaml", student(teacher))
    with pytest.raises(ValueError, match=r"Of the teacher: Drawing draws at random.*--interpret\.images 0"):
        cli("fit", "--config", config, "--runs", tmp_path / "runs")
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture(scope="module")
def run(tiny_teacher, tmp_path_factory):
    """The run folder of a tiny student, made without interpretation."""
    from main import main

    home = tmp_path_factory.mktemp("early")
    config = student({"checkpoint": str(weights(tiny_teacher))}, interpret={}) | {"interpret": {"images": 0}}
    return main(["fit", "--config", write(home / "student.yaml", config), "--runs", str(home / "runs"), *QUIET]).folder


@pytest.fixture
def words(run, tmp_path):
    return ["--config", run / "config.yaml", "--ckpt_path", weights(run), "--runs", tmp_path / "again"]


@pytest.mark.parametrize("kind", ["controls", "models"])
def test_a_network_that_diverged_is_no_control(kind, words, run, cli, tmp_path):
    content = torch.load(weights(run), weights_only=True)
    name = [key for key in content["state_dict"] if key.startswith("network.") and key.endswith("bias")][-1]
    content["state_dict"][name].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match=rf"interpret\.{kind}\.blind.*not finite"):
        cli("test", *words, "--interpret.images", "12", f"--interpret.{kind}", f"{{blind: {tmp_path / 'nan.ckpt'}}}")


@pytest.mark.parametrize("verb", ["predict", "validate"])
def test_other_verbs_ask_for_no_control(verb, words, cli):
    cli(verb, *words, "--interpret.images", "12", "--interpret.controls", "{blind: moved-since.ckpt}")


def test_what_was_found_before_a_failure_is_kept(words, cli, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(interpret.callback, "adherence", fails)
    with pytest.raises(OSError, match="No space"):
        cli("test", *words, "--interpret.images", "12")
    found = results(only(tmp_path / "again", "*/*-test"))
    assert {metric for model, _, metric in found if model == "student"} >= {
        "FGSM",
        "agreement",
        "ECE",
        "mean amplitude of probabilities",
    }


def test_agreement_under_attack_is_kept_image_by_image(words, cli, run, tiny_teacher):
    folder = cli("test", *words, "--interpret.images", "60").folder
    kept = parquet.read_table(folder / "outcomes" / "agreement-student-best.parquet").to_pydict()
    found = {metric: value for (model, _, metric), value in results(folder).items() if model == "student"}
    same = [a == b for a, b in zip(kept["student/adversarial"], kept["teacher/adversarial"], strict=True)]
    assert found["agreement under PGD-20 margin"] == (pytest.approx(sum(same) / 60), 60)
    moved = [hit for hit, broken in zip(kept["transferred"], kept["teacher/broken"], strict=True) if broken]
    assert found["transfer of PGD-20 margin from the teacher"] == (pytest.approx(sum(moved) / len(moved)), len(moved))
    x, y, *_ = Digits().batch("test", torch.tensor(kept["index"]))
    with torch.no_grad():
        both = [(load_network(weights(each)).network(x).argmax(1) == y) for each in (run, tiny_teacher)]
    assert all(
        right for right, broken in zip((both[0] & both[1]).tolist(), kept["teacher/broken"], strict=True) if broken
    )


@pytest.mark.slow
def test_published_maps_are_drawn_where_they_are_scored(cli, tmp_path):
    teacher = {"model": {"class_path": "lightning_modules.Teacher", "init_args": {"network": CNN, "optimizer": sgd()}}}
    taught = cli(
        "fit", "--config", write(tmp_path / "teacher.yaml", COMMON | teacher), "--runs", tmp_path / "runs"
    ).folder
    method = [{"class_path": "interpret.GradCAM"}]
    config = student({"checkpoint": str(weights(taught))}, CNN, compat="zou2023", methods=method)
    folder = cli("fit", "--config", write(tmp_path / "student.yaml", config), "--runs", tmp_path / "runs").folder
    names = {path.name for path in (folder / "figures" / "interpretation").glob("ma*.png")}
    assert names == {"maps-Guided-Grad-CAM.png"}


def test_lightnings_own_trainer_may_stay_in_inference_mode(tiny_teacher, tmp_path):
    data = Digits()
    source = TeacherSource(checkpoint=str(weights(tiny_teacher)))
    module = Distillation(network=lambda facts: MLP(facts, widths=[16]), facts=data.facts, teacher=source)
    callback = Interpretation([Saliency()], PGD(Threat("linf", 0.1), steps=2), images=10)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **quiet)
    trainer.test(module, datamodule=data, verbose=False)
    assert {"agreement", "adherence/Saliency/SSIM"} <= {record.metric for record in callback.results["student", ""]}
