"""Bad input: a non-zero exit, one clear sentence, no traceback."""

import re

import pytest
import yaml
from main_helpers import image_folder, process, student_config, teacher_config, write

FOLDER = {"class_path": "datamodules.ImageFolder", "init_args": {"root": "", "size": 8, "channels": 1}}


@pytest.fixture
def teacher(tmp_path):
    return ["fit", "--config", write(tmp_path / "teacher.yaml", teacher_config()), "--runs", tmp_path / "runs"]


@pytest.fixture
def student(tmp_path, tiny_teacher):
    source = {"checkpoint": str(tiny_teacher / "checkpoints" / "best.ckpt")}
    return ["fit", "--config", write(tmp_path / "student.yaml", student_config(source)), "--runs", tmp_path / "runs"]


@pytest.fixture
def refused(command, tmp_path):
    """Runs a command that must be refused; returns the sentence that says why.

    Words that must appear are compared without regard to case. Where something else than the command line is at
    fault, the sentence is the only one, and short enough to be read.
    """

    def run(*args, says):
        ended = command(*args)
        assert ended.status
        assert "Traceback" not in ended.err
        sentence = re.split(r"(?:^|\n)[Ee]rror: ", ended.err)[-1]
        for word in [says] if isinstance(says, str) else says:
            assert word.lower() in sentence.lower(), sentence
        assert len(sentence) < 500, f"{len(sentence)} characters: {sentence}"
        for inner in ("Namespace(", "NestedArg", "<class", "Subtypes"):
            assert inner not in sentence, sentence
        assert not list((tmp_path / "runs").rglob("*.ckpt"))
        return sentence

    return run


# Keys and files


@pytest.mark.parametrize("key", ["trainer.max_epoch", "trianer", "suite.threat.epsilon", "model.init_args.nework"])
def test_unknown_key_of_a_config(key, refused, tmp_path):
    config = teacher_config()
    part = config
    *path, last = key.split(".")
    for name in path:
        part[name] = dict(part[name])
        part = part[name]
    part[last] = 1
    refused("fit", "--config", write(tmp_path / "c.yaml", config), "--runs", tmp_path / "runs", says=last)


@pytest.mark.parametrize("option", ["--model.nework", "--data.root", "--trainer.max_epok", "--suit.images"])
def test_unknown_option(option, teacher, refused):
    refused(*teacher, option, "1", says=option.split(".")[-1] if option != "--suit.images" else "suit")


def test_missing_config(refused, tmp_path):
    refused("fit", "--config", tmp_path / "nothing.yaml", says=["nothing.yaml", "not exist"])


def test_config_that_is_no_yaml(refused, tmp_path):
    (tmp_path / "c.yaml").write_text("trainer: [1")
    refused("fit", "--config", tmp_path / "c.yaml", says="line 1")


def test_missing_data_folder(teacher, refused, tmp_path):
    data = write(tmp_path / "data.yaml", FOLDER | {"init_args": FOLDER["init_args"] | {"root": str(tmp_path / "no")}})
    refused(*teacher, "--data", data, says=["There is no folder", str(tmp_path / "no")])


def test_missing_data_piece(teacher, refused):
    refused(*teacher, "--data", "configs/data/nothing.yaml", says="configs/data/nothing.yaml")


def test_labels_outside_the_classes(teacher, refused, tmp_path):
    wrong = write(tmp_path / "data.yaml", {"class_path": "main_helpers.WrongLabels"})
    refused(*teacher, "--data", wrong, says=["Label 10", "10 classes"])


# Teachers


def test_missing_teacher_file(student, refused, tmp_path):
    refused(*student, "--model.teacher.checkpoint", tmp_path / "no.ckpt", says=["no checkpoint", "no.ckpt"])


def test_corrupt_teacher_file(student, refused, tiny_teacher, tmp_path):
    broken = truncated(tiny_teacher, tmp_path)
    refused(*student, "--model.teacher.checkpoint", broken, says=["broken.ckpt", "cannot be read"])


@pytest.fixture
def taught_by(tmp_path):
    def of(config):
        path = write(tmp_path / "s.yaml", student_config({"config": str(config)}))
        return ["fit", "--config", path, "--runs", tmp_path / "runs", "--train_teacher", "true"]

    return of


def test_teachers_config_is_missing(taught_by, refused, tmp_path):
    refused(*taught_by(tmp_path / "no.yaml"), says="no.yaml")


def test_teachers_config_has_an_unknown_key(taught_by, refused, tmp_path):
    refused(*taught_by(write(tmp_path / "wrong.yaml", teacher_config(max_epoch=1))), says="max_epoch")


def test_no_teacher_at_all(refused, tmp_path):
    config = student_config({"network": {"class_path": "networks.MLP"}})
    refused("fit", "--config", write(tmp_path / "s.yaml", config), "--runs", tmp_path / "runs", says="No teacher")


# Checkpoints


def truncated(tiny_teacher, tmp_path, length=5000):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((tiny_teacher / "checkpoints" / "best.ckpt").read_bytes()[:length])
    return broken


@pytest.mark.parametrize("length", [0, 100, 5000, -1000])
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_corrupt_checkpoint(subcommand, length, teacher, refused, tiny_teacher, tmp_path):
    broken = truncated(tiny_teacher, tmp_path, length)
    refused(subcommand, *teacher[1:], "--ckpt_path", broken, says="broken.ckpt")


def test_checkpoint_that_is_text(teacher, refused, tmp_path):
    (tmp_path / "broken.ckpt").write_text("hello\n")
    refused("test", *teacher[1:], "--ckpt_path", tmp_path / "broken.ckpt", says="broken.ckpt")


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_missing_checkpoint(subcommand, teacher, refused, tmp_path):
    refused(subcommand, *teacher[1:], "--ckpt_path", tmp_path / "no.ckpt", says=["no.ckpt", "not found"])


def test_test_without_a_checkpoint(teacher, refused):
    refused("test", *teacher[1:], says="--ckpt_path")


def test_checkpoint_of_other_classes(teacher, refused, tiny_teacher, tmp_path):
    """Ten classes' weights on three classes' images."""
    root = image_folder(tmp_path / "images", classes=3, size=8, channels=1)
    data = write(tmp_path / "data.yaml", FOLDER | {"init_args": FOLDER["init_args"] | {"root": str(root)}})
    best = tiny_teacher / "checkpoints" / "best.ckpt"
    refused("test", *teacher[1:], "--data", data, "--ckpt_path", best, says=["10", "3"])


# Numbers


@pytest.mark.parametrize("eps", ["8/0", "abc", "-1", "nan", "8/255/2"])
def test_radius_that_is_no_length(eps, teacher, refused):
    refused(*teacher, f"--suite.threat.eps={eps}", says=eps)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--model.alpha", "2", ["alpha", "[0, 1]", "2"]),
        ("--model.temperature", "0", ["temperature", "positive"]),
        ("--model.attack.init_args.steps", "0", ["at least 1 step"]),
        ("--data.validation", "1.5", ["validation", "1.5"]),
        ("--suite.images", "0", ["images", "at least 1"]),
    ],
)
def test_value_outside_its_range(option, value, says, student, refused):
    refused(*student, option, value, says=says)


def test_loss_that_is_not_finite(teacher, refused):
    refused(*teacher, "--model.optimizer.lr", "1e30", says=["loss", "1e+30", "learning rate"])


def test_suspicious_radius_is_named_and_allowed(student, command, recwarn):
    ended = command(*student, "--suite.threat.eps", "8", "--trainer.max_epochs", "1")
    assert ended.status == 0
    said = [str(warning.message) for warning in recwarn if "8/255" in str(warning.message)]
    assert said
    assert "whole box" in said[0]


# In a process of its own: what a shell sees


@pytest.mark.slow
def test_as_a_shell_sees_it(tmp_path):
    missing = {"init_args": FOLDER["init_args"] | {"root": str(tmp_path / "no")}}
    config = write(tmp_path / "c.yaml", teacher_config() | {"data": FOLDER | missing})
    ended = process("fit", "--config", config, "--runs", tmp_path / "runs")
    assert ended.status == 1
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    assert "There is no folder" in sentence
    assert "Traceback" not in ended.err
    wrong = write(
        tmp_path / "wrong.yaml", yaml.safe_load((tmp_path / "c.yaml").read_text()) | {"trianer": {"max_epochs": 1}}
    )
    ended = process("fit", "--config", wrong, "--runs", tmp_path / "runs", TEMPERED_TRACEBACK="1")
    assert ended.status == 2
    assert "trianer" in ended.err.splitlines()[-1]


def test_unreadable_test_image_ends_a_fit_before_it_begins(teacher, refused, tmp_path):
    root = image_folder(tmp_path / "images", 3, 8, 1, test=2)
    (root / "test" / "1" / "0.png").write_text("no image")
    data = FOLDER | {"init_args": FOLDER["init_args"] | {"root": str(root)}}
    refused(*teacher, "--data", write(tmp_path / "data.yaml", data), says=["1 of the 6", "test/1/0.png"])


def test_images_without_pixels(teacher, refused, tmp_path):
    root = image_folder(tmp_path / "images", 3, 8, 1)
    data = FOLDER | {"init_args": FOLDER["init_args"] | {"root": str(root), "size": 0}}
    refused(*teacher, "--data", write(tmp_path / "data.yaml", data), says="size is that of an image in pixels")
