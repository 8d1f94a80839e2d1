"""A checkpoint restores itself, with nothing repeated and no code run."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from regime_helpers import FACTS, REGIMES, assert_identical, build, digits, everything, mlp, name, trainer

from lightning_modules import (
    AKD,
    ARD,
    FGSMRS,
    IAD,
    NFGSM,
    RSLAD,
    TRADES,
    AdaAD,
    DefensiveDistillation,
    Distillation,
    FastARD,
    FreeAdversarialTraining,
    InputNoise,
    LabelCorruption,
    Regime,
    ReversedKD,
    SelfDistillation,
    Swap,
    Teacher,
    TeacherSource,
    TfKDReg,
    TfKDSelf,
)
from main import main
from networks import MLP, WideResNet
from networks.checkpoint import load_network

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


PLAIN = {int, float, str, bool, type(None)}
TEACHERS = {"alpha": 0.3, "temperature": 2.5}
# Every plain argument of its own that a regime has, at another value than its default.
GIVEN: dict[type[Regime], dict[str, Any]] = {
    AKD: TEACHERS | {"teacher_sees": "clean", "igdm": 0.5, "ce_temperature": "t", "kl_reduction": "mean"},
    ARD: TEACHERS | {"attack_temperature": "t", "igdm": 0.5, "ce_temperature": "t", "kl_reduction": "mean"},
    IAD: TEACHERS | {"attack_temperature": "t", "igdm": 0.5, "beta": 0.4, "warmup": 2},
    RSLAD: {"alpha": 0.3, "igdm": 0.5, "kl_reduction": "mean"},
    AdaAD: {"alpha": 0.3, "igdm": 0.5, "kl_reduction": "mean"},
    FastARD: TEACHERS | {"delta_loss": "ce", "replays": 3, "ce_temperature": "t"},
    Distillation: TEACHERS | {"ce_temperature": "t", "kl_reduction": "mean"},
    DefensiveDistillation: {"temperature": 7.0, "student_temperature": 2.0},
    ReversedKD: TEACHERS | {"ce_temperature": "t", "kl_reduction": "mean"},
    TfKDReg: TEACHERS | {"confidence": 0.95, "compat": "yuan2020", "multiplier": 7.0},
    TfKDSelf: TEACHERS | {"compat": "yuan2020", "multiplier": 7.0},
    SelfDistillation: TEACHERS | {"feature_weight": 0.02},
    Teacher: {"temperature": 3.0, "smoothing": 0.2},
    TRADES: {"beta": 2.0},
    FGSMRS: {"step": 0.8},
    NFGSM: {"reach": 1.5, "step": 0.8},
    FreeAdversarialTraining: {"replays": 3},
}


def types(value: Any) -> set[type]:
    """The types of all that a nest of dictionaries and lists holds."""
    if isinstance(value, (dict, list, tuple)):
        parts = value.values() if isinstance(value, dict) else value
        return set().union(*map(types, parts))
    return {type(value)}


def write_images(root: Path) -> None:
    """Seven classes, each of its own brightness."""
    rng = np.random.default_rng(0)
    for label, word in enumerate(CLASSES):
        (root / word).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(rng.normal(30 + 30 * label, 5, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / word / f"{i}.png")


def config(folder: Path, regime: str, network: dict[str, object], **init: object) -> str:
    adversary = {"attack": {"class_path": "attacks.PGD", "init_args": {"threat": {"eps": "8/255"}, "steps": 2}}}
    content = {
        "data": {
            "class_path": "datamodules.ImageFolder",
            "init_args": {"root": str(folder / "images"), "size": 8, "batch_size": 14, "mean": [0.4, 0.5, 0.6]},
        },
        "model": {
            "class_path": f"lightning_modules.{regime}",
            "init_args": {"network": network, **(adversary if regime == "ARD" else {}), **init},
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False},
        "suite": {"threat": {"eps": "8/255"}, "attacks": [{"class_path": "attacks.FGSM"}], "images": 7},
    }
    path = folder / f"{regime}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The best checkpoints of a teacher and of its student, both made on the command line."""
    folder = tmp_path_factory.mktemp("command line")
    write_images(folder / "images")
    wrn = {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": 1}}
    mlp = {"class_path": "networks.MLP", "init_args": {"widths": [9]}}
    before = dict(os.environ)
    made = {}
    try:
        for regime, network, init in (("Teacher", wrn, {"temperature": 5.0}), ("ARD", mlp, {"alpha": 0.8})):
            if regime == "ARD":
                init["teacher"] = {"checkpoint": str(made["Teacher"])}
            path = config(folder, regime, network, **init)
            cli = main(["fit", "--config", path, "--runs", str(folder / "runs"), "--wandb", "false"])
            made[regime] = cli.folder / "checkpoints" / "best.ckpt"
            made[f"{regime} network"] = cli.model.network.cpu().eval()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return made


def weights(runs, regime):
    state = torch.load(runs[regime], weights_only=True)["state_dict"]
    return {key.removeprefix("network."): value for key, value in state.items()}


@pytest.mark.parametrize(("regime", "trained_at"), [("Teacher", 5.0), ("ARD", 4.0)])
def test_a_network_reloads_with_nothing_repeated(runs, regime, trained_at):
    loaded = load_network(runs[regime])
    assert loaded.facts.classes == len(CLASSES)
    assert tuple(loaded.facts.names) == CLASSES
    assert tuple(loaded.facts.mean) == (0.4, 0.5, 0.6)
    assert loaded.facts.shape == (3, 8, 8)
    assert loaded.trained_at == trained_at
    assert isinstance(loaded.network, WideResNet if regime == "Teacher" else MLP)
    assert not loaded.network.training
    assert_identical(dict(loaded.network.state_dict()), weights(runs, regime))
    x = torch.rand(3, 3, 8, 8)
    assert loaded.network(x).shape == (3, len(CLASSES))
    # One epoch: what was kept as the best is what the run ended with, normalisation included.
    assert torch.equal(loaded.network(x), runs[f"{regime} network"](x))


@pytest.mark.parametrize(("regime", "cls"), [("Teacher", Teacher), ("ARD", ARD)])
def test_a_regime_reloads_with_nothing_repeated(runs, regime, cls):
    loaded = cls.load_from_checkpoint(runs[regime], weights_only=True, map_location="cpu")
    assert type(loaded) is cls
    assert loaded.facts.classes == len(CLASSES)
    assert tuple(loaded.facts.names) == CLASSES
    assert_identical(dict(loaded.network.state_dict()), weights(runs, regime))
    if cls is ARD:
        assert loaded.alpha == 0.8
        assert loaded.attack.steps == 2
        assert str(loaded.threat) == "linf 8/255"
        assert loaded.teacher.module.fc.out_features == len(CLASSES)
    else:
        assert loaded.trained_at == 5.0
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), load_network(runs[regime]).network(x))


def test_a_student_reloads_where_its_teacher_is_gone(runs, tmp_path):
    content = torch.load(runs["ARD"], weights_only=True)
    content["hyper_parameters"]["teacher"]["checkpoint"] = str(tmp_path / "gone.ckpt")
    torch.save(content, tmp_path / "student.ckpt")
    loaded = ARD.load_from_checkpoint(tmp_path / "student.ckpt", weights_only=True)
    assert loaded(torch.rand(2, 3, 8, 8)).shape == (2, len(CLASSES))
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        _ = loaded.teacher
    assert load_network(tmp_path / "student.ckpt").facts.classes == len(CLASSES)


def test_a_runs_checkpoint_is_a_teacher_with_nothing_repeated(runs):
    loaded = load_network(runs["Teacher"])
    teacher = TeacherSource(checkpoint=str(runs["Teacher"])).load(loaded.facts)
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(teacher(x), loaded.network(x))
    assert (teacher.sha256, teacher.trained_at) == (loaded.sha256, 5.0)
    with pytest.raises(ValueError, match=r"7 classes .*, the data has 10 of"):
        TeacherSource(checkpoint=str(runs["Teacher"])).load(FACTS)


def test_a_checkpoint_holds_plain_values_alone(runs):
    for regime in ("Teacher", "ARD"):
        content = torch.load(runs[regime], weights_only=True)
        assert types(content["hyper_parameters"]) <= PLAIN
        assert content["hyper_parameters"]["facts"]["classes"] == len(CLASSES)


# Notebooks


def saved(regime: Regime, path: Path) -> Path:
    run = trainer(path.parent)
    run.fit(regime, datamodule=digits())
    run.save_checkpoint(path)
    return path


def test_a_network_given_as_a_function_asks_for_it_again(tmp_path, batch):
    regime = build(Teacher, network=lambda facts: MLP(facts, widths=(5,)))
    path = saved(regime, tmp_path / "notebook.ckpt")
    with pytest.raises(ValueError, match=r"notebook\.ckpt does not say which architecture .*network:") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
    loaded = load_network(path, network=lambda facts: MLP(facts, widths=(5,)))
    assert torch.equal(loaded.network(batch.x), regime.network.eval()(batch.x))
    again = Teacher.load_from_checkpoint(
        path, weights_only=True, network=lambda facts: MLP(facts, widths=(5,)), facts=loaded.facts
    )
    assert_identical(everything(again.network), everything(regime.network))


def test_a_notebooks_checkpoint_knows_its_facts(tmp_path):
    """The facts are in the file, so a reload need not repeat them; the network's function cannot be."""
    path = saved(build(Teacher), tmp_path / "notebook.ckpt")
    assert Teacher.load_from_checkpoint(path, weights_only=True, network=mlp).facts.classes == 10


def test_saving_leaves_the_regimes_own_hyperparameters_alone(tmp_path):
    regime = build(Teacher, temperature=3.0)
    before = dict(regime.hparams)
    path = saved(regime, tmp_path / "a.ckpt")
    assert dict(regime.hparams) == before
    assert torch.load(path, weights_only=True)["hyper_parameters"]["temperature"] == 3.0


def test_a_distiller_of_a_notebook(tmp_path, mlp_teacher):
    path = saved(build(Distillation, mlp_teacher, alpha=0.3), tmp_path / "student.ckpt")
    again = Distillation.load_from_checkpoint(
        path, weights_only=True, network=mlp, facts=FACTS, teacher=mlp_teacher, optimizer=torch.optim.Adam
    )
    assert again.alpha == 0.3
    assert again.optimizer is torch.optim.Adam


def plain(regime: Any) -> dict[str, Any]:
    """What a regime knows of itself, its attack's and its threat's settings included; counters of a fit apart."""
    own = {key: value for key, value in vars(regime).items() if types(value) <= PLAIN and key[0] != "_"}
    settings = vars(regime.attack) if hasattr(regime, "attack") else {}
    settings = {f"attack.{key}": value for key, value in settings.items() if types(value) <= PLAIN}
    return own | settings | {"trained_at": regime.trained_at, "threat": regime.threat, "monitor": regime.monitor}


@pytest.mark.parametrize("noisy", [False, True], ids=["", "noise"])
@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_every_regime_of_a_notebook(regime, noisy, tmp_path, mlp_teacher):
    """Only objects are given again: what is a number or a word comes from the file, what a regime fixes does not."""
    given: dict[str, Any] = {"scheduler_interval": "step"} | GIVEN.get(regime, {})
    if noisy:
        given["noise"] = [LabelCorruption(0.2), InputNoise(0.1), *[Swap(0.2)] * regime.has_teacher]
    student = build(regime, mlp_teacher, **given)
    objects = {key: value for key, value in student.hparams.items() if key != "facts" and not types(value) <= PLAIN}
    assert {"network", "optimizer"} <= objects.keys()
    path = saved(student, tmp_path / "student.ckpt")
    parameters = torch.load(path, weights_only=True)["hyper_parameters"]
    assert types(parameters) <= PLAIN
    for key, value in given.items():
        assert parameters.get(key, value if key == "noise" else None) == value
    again = regime.load_from_checkpoint(path, weights_only=True, **objects)
    assert type(again) is regime
    assert_identical(everything(again), everything(student))
    compared = plain(again)
    for key, value in plain(student).items():
        if key not in ("epochs", "training", "prepare_data_per_node"):
            assert compared[key] == value, key
    assert (again.noise == given["noise"]) if noisy else (again.noise == [])


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_a_subclass_keeps_the_same_hyperparameters(regime, mlp_teacher):
    assert set(build(type("Sub", (regime,), {}), mlp_teacher).hparams) == set(build(regime, mlp_teacher).hparams)
