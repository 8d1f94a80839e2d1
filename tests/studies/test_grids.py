"""The grids that ship: every recipe of each is read, planned, and understood by the command line."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from main_helpers import ROOT

from lightning_modules.flavours import NAMES
from main import main
from studies import drawings, layout
from studies.cells import Cell, Study
from studies.grid import FOLDER, RECIPES, read
from studies.plan import plan

GRIDS = sorted((ROOT / FOLDER).glob("*.yaml"))
SHARED = sorted((ROOT / FOLDER / "shared").glob("*.yaml"))
PAPERS = {
    *("flavours_toy", "flavours_cifar10", "flavours_tsrd", "ard_cifar10", "ard_cifar100"),
    *("teacher_free", "mnist_kd", "noise", "defensive_mnist", "defensive_cifar10"),
}
OURS = {"claims", "temperature", "adherence", "same_results"}  # which compare in small, and have no short recipe
# What the papers' tables say, told apart from the grids: grid, table's beginning, row, column, figure.
PUBLISHED = [
    ("ard_cifar10", "Table 6", "TRADES WRN → MNV2 by ARD", "PGD-20", 50.42),
    ("ard_cifar10", "Table 9", "Free trained MNV2 (m = 8)", "natural", 72.30),
    ("ard_cifar10", "Table 11", "F-ARD → MNV2 (m = 4)", "DeepFool", 60.03),
    ("ard_cifar100", "Table 7", "AT MNV2", "PGD-20", 22.80),
    ("flavours_cifar10", "Figure 5", "FS_tempT_from_FT_tempT", "PGD", 40.9),
    ("flavours_cifar10", "Figure 5", "FT_tempT", "FGSM (CW)", 7.3),
    ("flavours_cifar10", "Figure 8: adherence to the teacher by IG", "RT_tempT", "RS_tempT", 0.632),
    ("flavours_tsrd", "Figure 13", "RS_temp1_from_FT_tempT", "No Attack", 86.0),
    ("flavours_tsrd", "Figure 15: adherence to the teacher by GradCAM", "FT_tempT", "FS_tempT", 0.572),
    ("teacher_free", "Table 5", "ResNet18 (AT) Tf-KD self", "AutoAttack accuracy", 48.83),
    ("mnist_kd", "Table 2", "With distillation (T = 10)", "only the 2", 92.73),
    ("defensive_mnist", "Sections V-B", "distilled at T = 20", "JSMA success", 0.45),
    ("defensive_cifar10", "Sections V-B", "original network", "accuracy", 80.95),
    ("noise", "Figures 7 and 8", "corrupted teacher, p = 0.05", "PGD-20", 10.89),
]
every_recipe = pytest.mark.parametrize(
    ("path", "recipe"),
    [
        pytest.param(path, recipe, id=f"{path.stem}-{recipe}")
        for path in GRIDS
        for recipe in RECIPES
        if recipe != "short" or path.stem in PAPERS
    ],
)
every_grid = pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)


@cache
def study(name: str, recipe: str) -> Study:
    return read(ROOT / FOLDER / f"{name}.yaml", recipe)


def kinds(found: Study) -> Iterator[Cell]:
    """A cell for every way in which the configs, options and judgings of a study's cells differ, axes' values aside."""
    seen = set()
    for cell in found.cells:
        kind = (cell.asked.configs, tuple(cell.asked.options), tuple(cell.axes), cell.teacher is None)
        if kind not in seen:
            seen.add(kind)
            yield cell


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The config as the command line understands it."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *words, "--print_config"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    return yaml.safe_load(out)


def test_every_study_is_there() -> None:
    assert {path.stem for path in GRIDS} == PAPERS | OURS


@every_recipe
def test_grid_is_read_and_laid_out(path, recipe, at_root) -> None:
    found = study(path.stem, recipe)
    assert len(found.cells) >= 5
    assert {cell.teacher is None for cell in found.cells} == {True, False}
    layout.check(found)
    drawings.check(found)
    assert layout.tables(found)
    assert found.figures
    assert path.stem == "same_results" or layout.claims(found)


@every_recipe
def test_every_run_has_a_place_of_its_own(path, recipe, at_root) -> None:
    found = study(path.stem, recipe)
    planned = plan(found, Path("nowhere"))  # which refuses two runs in one place, and teachers in a circle
    assert len({each.folder for each in planned.cells.values()}) == len(found.cells)


@pytest.mark.parametrize("path", [path for path in GRIDS if path.stem in PAPERS], ids=lambda path: path.stem)
def test_quick_keeps_every_kind_of_run(path, at_root) -> None:
    runs = [entry["name"] for entry in yaml.safe_load(path.read_text())["runs"]]
    axes = "(?:.+)"
    names = [cell.name for cell in study(path.stem, "quick").cells]
    for template in runs:
        pattern = re.sub(r"\\{\w+\\}", lambda _: axes, re.escape(template))
        assert any(re.fullmatch(pattern, name) for name in names), template


@every_recipe
def test_temperature_is_said_wherever_it_is_crossed(path, recipe, at_root) -> None:
    """A run that lies on T says so to its regime; two runs that T does not tell apart, the plan refuses."""
    for cell in study(path.stem, recipe).cells:
        said = [value for key, value in cell.asked.options.items() if key.endswith("temperature")]
        assert ("T" not in cell.axes) or said == [cell.axes["T"]], cell.name


@pytest.mark.parametrize(("name", "table", "row", "column", "figure"), PUBLISHED)
def test_published_figure_stands_in_its_place(name, table, row, column, figure, at_root) -> None:
    (found,) = (each for each in layout.tables(study(name, "paper")) if each.title.startswith(table))
    (line,) = (each for each in found.rows if each.label == row)
    place = [each.label for each in found.columns].index(column)
    assert line.published[place] == figure


@pytest.mark.parametrize("name", ["flavours_cifar10", "flavours_tsrd"])
def test_flavours_are_all_twenty_in_the_papers_rows(name, at_root) -> None:
    table = layout.tables(study(name, "paper"))[0]
    assert sorted(row.label for row in table.rows) == sorted(NAMES)
    assert all(row.runs[0] == row.label and None not in row.published for row in table.rows)
    students = {cell.name: cell.teacher for cell in study(name, "paper").cells if cell.teacher}
    assert all(student.endswith(f"_from_{teacher}") for student, teacher in students.items())
    assert len(students) == 16


@pytest.mark.parametrize("piece", SHARED, ids=lambda path: path.stem)
def test_shared_piece_is_used(piece) -> None:
    name = str(piece.relative_to(ROOT))
    assert any(name in path.read_text() for path in GRIDS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@every_recipe
def test_words_are_understood(path, recipe, at_root, capsys) -> None:
    found = study(path.stem, recipe)
    for cell in kinds(found):
        judging = [word for asked in cell.judgings.values() for word in asked.words()]
        whole = printed(capsys, *cell.asked.words(), *judging)
        init, trainer = whole["model"]["init_args"], whole["trainer"]
        assert ("teacher" in init) == (cell.teacher is not None), cell.name
        if "T" in cell.axes:
            assert init["temperature"] == cell.axes["T"], cell.name
        schedule = init["scheduler"]
        if recipe == "short" or (recipe == "quick" and path.stem in PAPERS - {"flavours_toy"}):
            assert schedule["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"
            length = trainer["max_epochs"] if init["scheduler_interval"] == "epoch" else trainer["max_steps"]
            assert schedule["init_args"]["T_max"] == length > 0, cell.name
            assert schedule["init_args"]["eta_min"] == 0
        if recipe == "quick" and path.stem in PAPERS - {"flavours_toy"}:
            # What the paper's optimiser says of itself must not reach another's.
            own = {"lr": 0.003, "betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.0, "amsgrad": False}
            assert init["optimizer"]["class_path"] == "torch.optim.Adam"
            assert own.items() <= init["optimizer"]["init_args"].items(), cell.name
        if recipe == "quick":
            assert whole["data"]["class_path"] in ("datamodules.Digits", "datamodules.ToyRing")


@pytest.mark.slow
@every_grid
def test_a_judging_is_the_same_for_all_runs(path, at_root, capsys) -> None:
    """Whatever suite the runs' own configs name: it lies beneath the judging's."""
    found: dict[tuple[str, str], set[str]] = {}
    kinds = {cell.asked.configs: cell for cell in study(path.stem, "paper").cells}
    for cell in kinds.values():
        for name, asked in cell.judgings.items():
            whole = printed(capsys, *cell.asked.words(), *asked.words())
            if not whole["suite"]["attacks"]:
                del whole["suite"]["threat"]  # of the pictures alone
            for room in ("suite", "interpret", "shift"):
                found.setdefault((name, room), set()).add(yaml.safe_dump(whole.get(room)))
    assert [key for key, said in found.items() if len(said) > 1] == []
