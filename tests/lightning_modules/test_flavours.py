"""The 20 flavours: their names, and what each of them stands for."""

import json

import pytest
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from lightning_modules.flavours import NAMES, Flavour, Section, expansion

MLP = {"class_path": "networks.MLP", "init_args": {"widths": [32], "dropout": 0.0, "normalize": True}}
SMALL = MLP | {"init_args": MLP["init_args"] | {"widths": [16]}}
SECTION = {"name": "FT_temp1", "temperature": 20, "full": MLP, "reduced": SMALL}

# Paper 001, §4.1, written out: name, width of the network, temperature of its training, its teacher.
TABLE = [
    ("FT_temp1", 32, 1, None),
    ("RT_temp1", 16, 1, None),
    ("FT_tempT", 32, 20, None),
    ("RT_tempT", 16, 20, None),
    ("FS_temp1_from_FT_temp1", 32, 1, "FT_temp1"),
    ("RS_temp1_from_FT_temp1", 16, 1, "FT_temp1"),
    ("FS_tempT_from_FT_temp1", 32, 20, "FT_temp1"),
    ("RS_tempT_from_FT_temp1", 16, 20, "FT_temp1"),
    ("FS_temp1_from_RT_temp1", 32, 1, "RT_temp1"),
    ("RS_temp1_from_RT_temp1", 16, 1, "RT_temp1"),
    ("FS_tempT_from_RT_temp1", 32, 20, "RT_temp1"),
    ("RS_tempT_from_RT_temp1", 16, 20, "RT_temp1"),
    ("FS_temp1_from_FT_tempT", 32, 1, "FT_tempT"),
    ("RS_temp1_from_FT_tempT", 16, 1, "FT_tempT"),
    ("FS_tempT_from_FT_tempT", 32, 20, "FT_tempT"),
    ("RS_tempT_from_FT_tempT", 16, 20, "FT_tempT"),
    ("FS_temp1_from_RT_tempT", 32, 1, "RT_tempT"),
    ("RS_temp1_from_RT_tempT", 16, 1, "RT_tempT"),
    ("FS_tempT_from_RT_tempT", 32, 20, "RT_tempT"),
    ("RS_tempT_from_RT_tempT", 16, 20, "RT_tempT"),
]


@pytest.fixture
def read(tmp_path):
    """Expands arguments, behind a file with a section of flavours unless another is asked for."""
    path = tmp_path / "flavours.yaml"
    path.write_text(yaml.safe_dump({"flavour": SECTION, "trainer": {"max_epochs": 3}}))

    def run(*words, file=str(path)):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("-c", "--config", action=ActionConfigFile)
        parser.add_argument("--flavour", type=Section | None)
        return expansion([*(["--config", file] if file else []), *words], parser)

    run.file = str(path)
    return run


def init(found):
    return found.config["model"]["init_args"]


# Names


def test_names_are_the_papers():
    assert list(NAMES) == [name for name, *_ in TABLE]


@pytest.mark.parametrize("name", NAMES)
def test_name_round_trip(name):
    assert str(Flavour.parse(name)) == name


def test_flavours_differ():
    assert len({Flavour.parse(name) for name in NAMES}) == 20


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("", ""),
        ("ft_temp1", "FT_temp1"),
        ("FT_temp20", "FT_temp"),
        ("FS_temp1", "FT_temp1"),
        ("fs_tempt_from_rt_temp1", "FS_tempT_from_RT_temp1"),
        ("FT_tempT_from_FT_tempT", "FS_tempT_from_FT_tempT"),
        ("FS_tempT_from_FS_tempT_from_FT_tempT", ""),
        ("FS_tempT_form_RT_temp1", "FS_tempT_from_RT_temp1"),
        ("FT_temp1\n", "FT_temp1"),
    ],
)
def test_other_names_are_refused(name, nearest):
    with pytest.raises(ValueError, match="none of the 20 flavours") as error:
        Flavour.parse(name)
    said = str(error.value)
    assert repr(name) in said
    assert "{F|R}T_temp{1|T}" in said
    assert "{F|R}S_temp{1|T}_from_<teacher>" in said
    assert f"Did you mean {nearest}" in said


# What they stand for


@pytest.mark.parametrize(("name", "width", "at", "teacher"), TABLE, ids=[name for name, *_ in TABLE])
def test_stands_for(name, width, at, teacher, read):
    found = read("--flavour.name", name)
    assert str(found.flavour) == found.config["name"] == name
    assert found.config.keys() == {"name", "model"}
    expected = {"network": SMALL if width == 16 else MLP, "temperature": at}
    regime = "lightning_modules.Teacher"
    if teacher is not None:
        regime = "lightning_modules.DefensiveDistillation"
        source = {"config": read.file, "override": {"flavour": {"name": teacher}}}
        expected |= {"temperature": 20, "student_temperature": at, "teacher": source}
    assert found.config["model"] == {"class_path": regime, "init_args": expected}


def test_soft_labels_are_always_taken_at_the_high_temperature(read):
    for name, *_, teacher in TABLE:
        if teacher is not None:
            assert init(read("--flavour.name", name, "--flavour.temperature", "70"))["temperature"] == 70


# Where the section comes from


@pytest.mark.parametrize(
    "words",
    [
        ["--flavour.name", "RT_tempT"],
        ["--flavour.name=RT_tempT"],
        ["--trainer.max_epochs", "1", "--flavour.name", "RT_tempT", "--wandb=false"],
        ["--config", '{"flavour": {"name": "RT_tempT"}}'],
        ['--config={"flavour": {"name": "RT_tempT"}}'],
        ["-c", "flavour: {name: RT_tempT}"],
        ["--flavour.name", "FT_temp1", "--flavour.name", "RT_tempT"],
        ["--flavour.name", "FT_temp1", "--config", "flavour: {name: RT_tempT}"],
    ],
    ids=" ".join,
)
def test_later_words_win(words, read):
    assert str(read(*words).flavour) == "RT_tempT"


@pytest.mark.parametrize(
    "words",
    [[], ["--model.flavour.name", "FT_temp1"], ["--config", "flavour"], ["--config", "a: [1"], ["--config", "no.yaml"]],
    ids=str,
)
def test_no_flavour(words, read):
    assert read(*words, file=None) is None


@pytest.mark.parametrize("words", [["--config", "flavour: null"], ["--flavour", "null"]], ids=" ".join)
def test_flavour_taken_back(words, read):
    """A run's own config says null: what it was spelt out to stands."""
    assert read(*words) is None


def test_network_changed_on_the_command_line(read):
    assert init(read("--flavour.full.widths", "[64, 64]"))["network"]["init_args"]["widths"] == [64, 64]
    changed = read("--flavour.full", "networks.DefensiveCNN", "--flavour.full.form", "mnist")
    assert init(changed)["network"]["class_path"] == "networks.DefensiveCNN"


def test_teacher_is_told_what_its_file_does_not_say(read):
    """And only what is its own: a teacher at T = 1 is one and the same, whatever its students' T."""

    def said(name, *words):
        return init(read("--flavour.name", name, *words))["teacher"]["override"]["flavour"]

    hot = ["--flavour.temperature", "40"]
    assert said("RS_temp1_from_FT_tempT", *hot) == {"name": "FT_tempT", "temperature": 40}
    assert said("RS_temp1_from_FT_temp1", *hot) == {"name": "FT_temp1"}
    wide = ["--flavour.full.widths", "[64]"]
    network = MLP | {"init_args": MLP["init_args"] | {"widths": [64]}}
    assert said("RS_temp1_from_FT_temp1", *wide) == {"name": "FT_temp1", "full": network}
    assert said("FS_temp1_from_RT_tempT", *wide) == {"name": "RT_tempT"}


def test_teachers_override_is_read_as_it_was_written(read):
    student = read("--flavour.name", "RS_temp1_from_FT_tempT", "--flavour.temperature", "40")
    teacher = read("--config", json.dumps(init(student)["teacher"]["override"]))
    assert str(teacher.flavour) == "FT_tempT"
    assert init(teacher)["temperature"] == 40


def test_student_in_no_file(read):
    """Its teacher could not be trained by anybody."""
    inline = ["--config", json.dumps({"flavour": SECTION | {"name": "FS_temp1_from_RT_temp1"}})]
    with pytest.raises(ValueError, match="RT_temp1 is trained by the file"):
        read(*inline, file=None)


def test_teachers_file_is_the_one_that_holds_the_networks(read, tmp_path):
    name = tmp_path / "name.yaml"
    name.write_text("flavour: {name: FS_temp1_from_RT_temp1}")
    assert init(read("--config", str(name)))["teacher"]["config"] == read.file


# Whether a model is what its name says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 3.0}, "model.temperature 20"),
        ({"student_temperature": 20.0}, "model.student_temperature 1.0, not 20.0"),
        ({"network": MLP}, "model.network.widths [16], not [32]"),
        ({"teacher": {"config": "other.yaml"}}, "model.teacher.config"),
        ({"teacher": None}, "model.teacher"),
    ],
    ids=str,
)
def test_model_that_is_another(change, says, read):
    found = read("--flavour.name", "RS_temp1_from_FT_temp1")
    model = found.config["model"]
    found.require(model)
    found.require(model | {"init_args": model["init_args"] | {"optimizer": "anything", "noise": None}})
    with pytest.raises(ValueError, match="change the flavour") as error:
        found.require(model | {"init_args": model["init_args"] | change})
    assert says in str(error.value)
