"""The 20 flavours on the command line: one config and a name train any of them, and what is left is an ordinary run."""

import os
import re
import shlex

import pytest
import torch
import yaml
from main_helpers import QUIET, ROOT, checkpoint, image_folder, of, only, results, same_weights

from lightning_modules import on_demand
from lightning_modules.flavours import NAMES
from main import main

RING = ROOT / "configs" / "flavours_ring.yaml"
CONFIGS = sorted((ROOT / "configs").glob("flavours_*.yaml"))
SHORT = ["--trainer.max_epochs", "2", "--suite.images", "20", "--trainer.accelerator", "cpu"]


@pytest.fixture
def printed(at_root, capsys):
    """The config as the command line understands it."""

    def of(*words, config=RING):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", os.path.relpath(config), *map(str, words), "--print_config"])
        assert end.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return of


# What a name stands for


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_an_ordinary_config(name, printed):
    """Read back from the name with a pattern of its own; nothing of the flavour is left to expand."""
    config = printed("--flavour.name", name)
    assert config["flavour"] is None
    assert config["name"] == name
    init = config["model"]["init_args"]
    size, role, at, teacher = re.fullmatch(r"(.)(.)_temp(.)(?:_from_(.*))?", name).groups()
    assert init["network"]["class_path"] == "networks.MLP"
    assert init["network"]["init_args"]["widths"] == [{"F": 32, "R": 16}[size]]
    assert init["optimizer"]["init_args"]["lr"] == 0.01
    if role == "T":
        assert config["model"]["class_path"] == "lightning_modules.Teacher"
        assert init["temperature"] == {"1": 1, "T": 10}[at]
    else:
        assert config["model"]["class_path"] == "lightning_modules.DefensiveDistillation"
        assert init["temperature"] == 10
        assert init["student_temperature"] == {"1": 1, "T": 10}[at]
        assert init["teacher"]["config"] == "configs/flavours_ring.yaml"
        assert init["teacher"]["override"] == {"flavour": {"name": teacher}}


@pytest.mark.parametrize(
    ("config", "full", "reduced"),
    [
        ("cifar10", {"form": "cifar", "reduced": False}, {"form": "cifar", "reduced": True}),
        ("tsrd", {"reduced": False}, {"reduced": True}),
    ],
)
def test_other_configs(config, full, reduced, printed):
    path = ROOT / "configs" / f"flavours_{config}.yaml"
    student = printed("--flavour.name", "RS_tempT_from_FT_tempT", config=path)
    teacher = printed("--config", yaml.safe_dump(student["model"]["init_args"]["teacher"]["override"]), config=path)
    for found, network in ((student, reduced), (teacher, full)):
        init = found["model"]["init_args"]
        assert network.items() <= init["network"]["init_args"].items()
        assert init["temperature"] == 20
        assert init["optimizer"]["init_args"]["lr"] == 1e-3
        assert init["scheduler"]["init_args"] == {"step_size": 10, "gamma": 0.5, "last_epoch": -1}
        assert found["trainer"]["max_epochs"] == 80
    assert student["suite"]["images"], student["suite"]["top"] == {"cifar10": (1000, 1), "tsrd": (300, 3)}[config]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_printed_config_is_read_as_itself(config, printed, tmp_path):
    words = ["--flavour.name", "RS_temp1_from_FT_tempT", "--flavour.temperature", "40"]
    first = printed(*words, config=config)
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(first))
    assert printed(config=tmp_path / "printed.yaml") == first


def test_command_line_says_the_rest(printed):
    words = ["--model.optimizer.lr", "0.5", "--data.batch_size", "7", "--trainer.max_epochs", "3", "--name", "mine"]
    for name in ("RT_tempT", "RS_tempT_from_RT_tempT"):
        config = printed("--flavour.name", name, *words)
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
        assert (config["data"]["init_args"]["batch_size"], config["trainer"]["max_epochs"]) == (7, 3)
        assert config["name"] == "mine"
        assert config["model"]["init_args"]["network"]["init_args"]["widths"] == [16]


def test_file_behind_may_say_more(printed, tmp_path):
    (tmp_path / "more.yaml").write_text("flavour: {name: RT_tempT, temperature: 70}\nmodel: {init_args: {noise: []}}\n")
    config = printed("--config", tmp_path / "more.yaml")
    assert config["name"] == "RT_tempT"
    assert config["model"]["init_args"]["temperature"] == 70
    assert config["model"]["init_args"]["noise"] == []


# Its teacher


@pytest.fixture
def teacher_of(at_root, monkeypatch, cli, tmp_path):
    """The config that a student's teacher would be trained with, and what it is called."""
    asked = []
    monkeypatch.setattr("main.train_once", lambda config, runs, name: asked.append((config, name)) or 1 / 0)

    def of(name, *words):
        with pytest.raises(ZeroDivisionError):
            cli("fit", "--config", "configs/flavours_ring.yaml", "--flavour.name", name, *words, *SHORT,
                "--runs", tmp_path / "runs", "--train_teacher", "true")  # fmt: skip
        return asked[-1]

    return of


def test_temperature_is_the_students_and_its_teachers(teacher_of):
    hot = ["--flavour.temperature", "40"]
    config, name = teacher_of("RS_temp1_from_FT_tempT", *hot)
    assert name == config["name"] == "FT_tempT"
    assert config["model"]["init_args"]["temperature"] == 40
    assert config["model"]["init_args"]["network"]["init_args"]["widths"] == [32]
    assert config["trainer"]["max_epochs"] == 100, "the student's epochs are its own"


@pytest.mark.slow
def test_students_of_one_teacher_share_it(printed):
    """Four students each, at whatever T: a teacher at T = 1 is the same for all of them."""
    keys = {}
    for number, student in enumerate(NAMES[4:]):
        hot = ["--flavour.temperature", ("10", "40")[number % 2]]
        source = printed("--flavour.name", student, *hot)["model"]["init_args"]["teacher"]
        teacher = printed("--config", yaml.safe_dump(source["override"]), config=ROOT / source["config"])
        keys.setdefault((teacher["name"], *(hot if "tempT" in teacher["name"] else [])), set()).add(
            on_demand.key_of(teacher)
        )
    assert {name for name, *_ in keys} == set(NAMES[:4])
    assert all(len(of_one) == 1 for of_one in keys.values())
    assert len(set.union(*keys.values())) == len(keys) == 6


def test_missing_teacher_stops_the_run_with_the_command(command, printed, teacher_of, tmp_path):
    words = ["--flavour.name", "RS_temp1_from_FT_tempT", "--flavour.temperature", "40", "--data.batch_size", "100"]
    ended = command("fit", "--config", "configs/flavours_ring.yaml", *words, "--runs", tmp_path / "runs")
    assert ended.status == 1
    assert "The teacher FT_tempT of configs/flavours_ring.yaml does not exist yet." in ended.err
    said = shlex.split(re.search(r"python main\.py fit --config configs/flavours_ring\.yaml (.*), then", ended.err)[1])
    by_hand = printed(*said)
    assert by_hand["name"] == "FT_tempT"
    config, _ = teacher_of(words[1], *words[2:])
    shared = {key: config["trainer"][key] for key in by_hand["trainer"]}
    assert by_hand["model"] == config["model"]
    assert by_hand["data"] == config["data"]
    assert by_hand["trainer"] == shared | {"accelerator": "auto"}  # which SHORT names, and this command does not


# From end to end


@pytest.mark.slow
def test_student_and_teacher_from_end_to_end(cli, tmp_path, monkeypatch, printed):
    def fit(name, *words):
        return cli("fit", "--config", "configs/flavours_ring.yaml", "--flavour.name", name, *words, *SHORT,
                   "--trainer.limit_train_batches", "2", "--runs", tmp_path / "runs")  # fmt: skip

    done = fit("FS_tempT_from_RT_temp1", "--train_teacher", "true")
    assert done.folder.parent == tmp_path / "runs" / "FS_tempT_from_RT_temp1"
    teacher = only(tmp_path, "runs/teachers/RT_temp1-*")
    assert done.model.source.checkpoint == str(teacher / "checkpoints" / "best.ckpt")
    assert checkpoint(teacher / "checkpoints" / "last.ckpt")["global_step"] == 200
    assert done.model.teacher.module.fc.in_features == 16
    assert done.model.network.fc.in_features == 32
    best, last = (done.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert checkpoint(best)["trained_at"] == 10
    assert done.model.teacher.trained_at == 1
    # What is left is plain: it is repeated, goes on and is tested without any flavour.
    saved = yaml.safe_load((done.folder / "config.yaml").read_text())
    assert saved["flavour"] is None
    assert saved["model"]["class_path"] == "lightning_modules.DefensiveDistillation"
    monkeypatch.setattr("lightning_modules.flavours.Flavour.parse", None)
    again = cli("fit", "--config", done.folder / "config.yaml").folder
    assert again.parent == done.folder.parent
    assert same_weights(again / "checkpoints" / "last.ckpt", last)
    tested = cli("test", "--config", done.folder / "config.yaml", "--ckpt_path", best).folder
    assert of("student", results(tested)) == of("student", results(done.folder))
    cli("fit", "--config", done.folder / "config.yaml", "--ckpt_path", last, "--trainer.max_epochs", "3")
    assert checkpoint(last)["global_step"] == 6
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    # A second student of that teacher finds it.
    monkeypatch.setattr(on_demand, "subprocess", None)  # whoever trains it again needs a process
    for second in ("RS_temp1_from_RT_temp1", "FS_temp1_from_RT_temp1"):
        other = fit(second, "--flavour.temperature", "40", "--train_teacher", "true")
        assert other.model.source.checkpoint == done.model.source.checkpoint
        assert checkpoint(other.folder / "checkpoints" / "best.ckpt")["trained_at"] == 1
    assert len(list((tmp_path / "runs" / "teachers").glob("[!.]*"))) == 1


@pytest.mark.slow
def test_what_a_test_is_called(cli, tmp_path):
    """The name of a flavour where the checkpoint is one's, and never that of the config's first flavour."""
    ring = ["--config", "configs/flavours_ring.yaml", "--runs", tmp_path / "runs", *SHORT[2:]]
    done = cli("fit", *ring, "--flavour.name", "RT_tempT", "--trainer.max_epochs", "1")
    test = ["test", *ring, "--ckpt_path", done.folder / "checkpoints" / "best.ckpt"]
    assert cli(*test, "--flavour.name", "RT_tempT").folder.parent.name == "RT_tempT"
    blind = cli(*test)
    assert blind.folder.parent.name == "flavours_ring"
    assert blind.model.trained_at == 10
    assert of("network", results(blind.folder)) == of("network", results(done.folder))
    assert cli(*test, "--name", "mine").folder.parent.name == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "size"), [("cifar10", 32), ("tsrd", 256)])
def test_images_run_one_batch(config, size, cli, tmp_path):
    root = image_folder(tmp_path / "images", classes=10 if size == 32 else 4, size=size, train=4, test=2)
    folder = {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(root), "size": size}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(folder))
    words = ["--data", tmp_path / "data.yaml", "--data.batch_size", "2", "--data.eval_batch_size", "4"]
    words += ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--suite.images", "4"]
    words += ["--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", "--interpret.images", "0"]
    name = ["--flavour.name", "RS_tempT_from_FT_tempT", "--train_teacher", "true"]
    ema = yaml.safe_dump({"flavour": {"name": "FT_tempT"}, "trainer": {"max_epochs": 1}})
    words += [f"--model.teacher.override={ema}"]
    done = cli("fit", "--config", f"configs/flavours_{config}.yaml", *name, *words, "--runs", tmp_path / "runs")
    metrics = {metric for _, _, metric in results(done.folder)}
    assert {"FGSM", "FGSM strong", "PGD-10", "PGD-10 strong"} <= metrics
    assert ("FGSM strong top-3" in metrics) == (config == "tsrd")
    assert ("DeepFool unlimited strong" in metrics) == (config == "cifar10")
    assert all(torch.isfinite(value).all() for value in done.model.state_dict().values())


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--flavour.name", "FT_temp20"], ["'FT_temp20'", "20 flavours", "Did you mean FT_tempT?"]),
        (["--flavour.nam", "FT_temp1"], ["flavour", "nam"]),
        (["--flavour.temperature", "hot"], ["flavour", "temperature", "hot"]),
        (["--flavour.temperature", "0", "--flavour.name", "RT_tempT"], ["temperature", "positive"]),
        (["--flavour.full", "networks.Nothing"], ["flavour", "networks.Nothing"]),
        (["--model.temperature", "3"], ["FT_temp1 stands for", "model.temperature", "3", "--flavour.name"]),
        (["--model.network.widths", "[3]"], ["FT_temp1 stands for", "model.network.widths", "[32]", "[3]"]),
        (["--model", "lightning_modules.TRADES"], ["TRADES"]),
        (
            ["--flavour.name", "FS_temp1_from_RT_temp1", "--model.student_temperature", "5"],
            ["student_temperature 1.0, not 5.0"],
        ),
        (
            ["--flavour.name", "FS_temp1_from_RT_temp1", "--model.teacher.config", "configs/teacher_mnist.yaml"],
            ["model.teacher.config", "teacher_mnist"],
        ),
        (
            ["--flavour.name", "FS_temp1_from_RT_temp1", "--model.teacher.override", "{trainer: {max_epochs: 2}}"],
            ["model.teacher.override.flavour"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_refused_in_a_sentence(words, says, command, tmp_path):
    ended = command("fit", "--config", "configs/flavours_ring.yaml", *words, "--runs", tmp_path / "runs")
    assert ended.status
    assert "Traceback" not in ended.err
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    for word in says:
        assert word in sentence
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_going_on_as_another_flavour_is_refused(cli, command, tmp_path):
    ring = ["fit", "--config", "configs/flavours_ring.yaml", "--runs", tmp_path / "runs", *SHORT]
    last = cli(*ring, "--flavour.name", "RT_tempT").folder / "checkpoints" / "last.ckpt"
    ended = command(*ring, "--flavour.name", "FT_tempT", "--ckpt_path", last)
    assert ended.status == 1
    assert "FT_tempT stands for model.network.widths [32], not [16]" in ended.err
    assert command(*ring, "--flavour.name", "RT_tempT", "--ckpt_path", last, *QUIET).status == 0
