"""Grid files: what they spell out, and what they are refused for."""

import re
from itertools import product

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from main_helpers import ROOT

from studies import layout
from studies.grid import FOLDER, RECIPES, filled, find, places, read

CONFIG = "configs/flavours_ring.yaml"
GRID = {
    "title": "A grid",
    "seeds": [0, 1],
    "axes": {"T": [10, 40], "size": ["small", "large"]},
    "runs": [
        {"name": "teacher", "config": CONFIG, "seeds": [0]},
        {
            "name": "{size} at {T}",
            "config": [CONFIG, "configs/wrn16.yaml"],
            "set": {"model.temperature": "{T}", "data.batch_size": 32, "trainer.callbacks": [{"at": "{T}"}]},
            "teacher": "teacher",
            "except": [{"size": "small", "T": 40}],
        },
    ],
    "judge": {"attacks": {"set": {"suite": "configs/suite/digits.yaml"}}, "others": {}},
    "recipes": {
        "quick": {
            "seeds": [7],
            "axes": {"T": [10]},
            "set": {"trainer.max_epochs": 1},
            "only": ["{size}*", "teacher"],
            "runs": {"{size}*": {"set": {"model.temperature": 3}}},
            "judge": {"attacks": {"set": {"suite.images": 5}}},
        }
    },
}


@pytest.fixture
def written(tmp_path):
    def of(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
        return path

    return of


def changed_run(**changes):
    """The grid's runs, with the second one changed."""
    return {"runs": [GRID["runs"][0], {**GRID["runs"][1], **changes}]}


def test_a_grid_is_crossed_over_the_axes_that_names_hold(written):
    study = read(written())
    assert sorted(cell.id for cell in study.cells) == sorted(
        [
            "teacher #0",
            *(f"{name} #{seed}" for name in ("small at 10", "large at 10", "large at 40") for seed in (0, 1)),
        ]
    )
    cell = next(cell for cell in study.cells if cell.id == "large at 40 #1")
    assert cell.axes == {"T": 40, "size": "large"}
    assert cell.teacher == "teacher"
    assert cell.asked.configs == (CONFIG, "configs/wrn16.yaml")
    # A template that is nothing but an axis becomes its value, not its text.
    assert cell.asked.options == {"model.temperature": 40, "data.batch_size": 32, "trainer.callbacks": [{"at": 40}]}
    assert list(cell.judgings) == ["attacks", "others"]


def test_a_recipe_has_a_title_and_a_note_of_its_own(written):
    small = {"title": "In small", "note": "Digits, \n not photographs"}
    path = written(recipes={"quick": small})
    found = {recipe: read(path, recipe) for recipe in ("paper", "quick")}
    assert {recipe: (each.title, each.note) for recipe, each in found.items()} == {
        "paper": (GRID["title"], ""),
        "quick": ("In small", "Digits, not photographs"),
    }


def test_words_are_those_of_the_command_line(written):
    cell = next(cell for cell in read(written()).cells if cell.name == "large at 10")
    *rest, option, value = cell.asked.words()
    files = ["--config", CONFIG, "--config", "configs/wrn16.yaml"]
    assert rest == [*files, "--model.temperature", "10", "--data.batch_size", "32"]
    assert (option, yaml.safe_load(value)) == ("--trainer.callbacks", [{"at": 10}])


def test_a_recipe_says_what_is_otherwise(written):
    study = read(written(), "quick")
    assert {cell.id for cell in study.cells} == {"teacher #0", "small at 10 #7", "large at 10 #7"}
    cell = study.cells[-1]
    assert cell.asked.options["model.temperature"] == 3  # what a recipe says of a run is behind what it says of all
    assert cell.asked.options["trainer.max_epochs"] == 1
    assert cell.judgings["attacks"].options == {"suite": "configs/suite/digits.yaml", "suite.images": 5}
    assert read(written(), "paper").cells[-1].judgings["attacks"].options == {"suite": "configs/suite/digits.yaml"}


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)))
def test_places_are_the_product_of_the_named_axes(axes):
    template = " ".join(f"{{{name}}}" for name in axes)
    found = list(places(template, {**axes, "unnamed": [1, 2]}))
    assert found == [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    assert {filled(template, place, "here") for place in found} == (
        {" ".join(map(str, values)) for values in product(*axes.values())}
        if len(axes) != 1
        else {place[next(iter(axes))] for place in found}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": []}, "needs a list under runs"),
        ({"colour": 1}, "no 'colour'"),
        ({"seeds": [0], "runs": [*GRID["runs"], GRID["runs"][0]]}, "two runs 'teacher #0'"),
        (changed_run(teacher="nobody"), "teacher 'nobody', which is no run"),
        (changed_run(config="configs/nothing.yaml"), "needs the config configs/nothing.yaml"),
        (changed_run(name="{depth}"), "names an axis depth"),
        (changed_run(judge=["taste"]), "judged by 'taste', the grid has attacks, others"),
        (changed_run(colour=1), "a run has no 'colour'"),
        (changed_run(set=[1]), "set must map names to values, got [1]"),
        (changed_run(set={1: 2}), "1 is no option"),
        (changed_run(config=5), "config names a file, or a list of them, got 5"),
        (changed_run(over=[1]), "over must map names to values"),
        (changed_run(seeds=3), "seeds must be a list, got 3"),
        (changed_run(**{"except": {"T": 1}}), "except must be a list"),
        ({"runs": ["teacher"]}, "must map keys to values, got 'teacher'"),
        ({"seeds": []}, "seeds must be a list of integers of at least 0, got []"),
        ({"seeds": "01"}, "seeds must be a list, got '01'"),
        ({"seeds": [0.5]}, "integers of at least 0, got [0.5]"),
        ({"axes": {"T": 5}}, "T must be a list, got 5"),
        ({"axes": {"T": []}}, "'T' has none"),
        ({"judge": ["attacks"]}, "judge must map names to values"),
        ({"judge": {"a/b": {}}}, "'a/b' names a folder"),
        ({"group": True}, "group must be an integer of at least 1, got True"),
        (changed_run(set={"flavour.name": "FT_tempX"}), "none of the 20 flavours"),
        ({"runs": [{"name": "a"}]}, "'a' names no config"),
        ({"checkpoint": "first"}, "best or last, got 'first'"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"recipes": {"long": {}}}, "no 'long'"),
        ({"tables": 5}, "tables must be a list, got 5"),
        ({"figures": {"kind": "lines"}}, "figures must be a list"),
        ({"title": None}, "title must be text, got None"),
        (changed_run(judge=[["attacks"]]), "is judged by ['attacks'], the grid has"),
        (changed_run(**{"except": [1]}), "except lists combinations such as {T: 40}, got 1"),
    ],
)
def test_what_is_no_grid_is_refused(written, changes, said):
    with pytest.raises((ValueError, OSError), match=re.escape(said)):
        read(written(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"only": "teach*"}, "only must be a list, got 'teach*'"),
        ({"runs": {"KD*": {}}}, "no run is called 'KD*'"),
        ({"axes": [1]}, "axes must map names to values"),
        ({"only": ["nobody", "teacher"]}, "no run is called 'nobody'"),
        ({"axes": {"t": [1]}}, "the grid has no axis 't'"),
        ({"runs": {"{size}*": {"sett": {}}}}, "has no 'sett'"),
        ({"runs": {"{size}*": None}}, "must map keys to values, got None"),
        ({"note": ["a"]}, "note must be text, got ['a']"),
    ],
)
def test_a_wrong_recipe_is_refused(written, changes, said):
    recipe = {**GRID["recipes"]["quick"], **changes}
    with pytest.raises(ValueError, match=re.escape(said)):
        read(written(recipes={"quick": recipe}), "quick")


def test_what_begins_with_a_dash_is_no_option(written):
    cell = read(written(**changed_run(set={"model.optimizer.lr": -1.0e-5}))).cells[-1]
    assert cell.asked.words()[-1] == "--model.optimizer.lr=-1.0e-05"


def test_what_there_is_not_is_named(tmp_path, written):
    with pytest.raises(FileNotFoundError, match=r"no study nonsense: .*flavours_toy"):
        find("nonsense")
    with pytest.raises(ValueError, match="no recipe short: there are paper, quick"):
        read(written(), "short")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ValueError, match="is no YAML"):
        read(broken)


def test_the_grid_that_the_docs_write_down_is_one(tmp_path, at_root):
    blocks = re.findall(r"^```yaml\n(.+?)^```", (ROOT / "docs" / "grids.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "docs.yaml"
    path.write_text("".join(blocks))
    assert {recipe: len(read(path, recipe).cells) for recipe in ("paper", "quick")} == {"paper": 10, "quick": 4}
    layout.check(read(path))


def test_the_docs_name_every_grid_and_its_runs(at_root):
    shown = (ROOT / "docs" / "grids.md").read_text()
    for path in sorted(FOLDER.glob("*.yaml")):
        has = {"paper", *yaml.safe_load(path.read_text())["recipes"]}
        runs = " / ".join(str(len(read(path, recipe).cells)) if recipe in has else "–" for recipe in RECIPES)
        assert f"| `{path.stem}` |" in shown
        assert re.search(rf"^\| `{path.stem}` \|.*\| {runs} \|$", shown, re.MULTILINE)
