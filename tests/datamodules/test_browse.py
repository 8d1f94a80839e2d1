"""One command draws what any dataset holds: the numbers are counted by hand, the pictures are looked for."""

import runpy
import sys

import numpy as np
import pytest
import torch
import yaml
from main_helpers import image_folder
from PIL import Image
from sign_helpers import write_tsrd

from datamodules import Digits, ImageFolder, ToyRing
from datamodules.browse import browse, class_chart, class_counts, counts_table, labels, main, sample_sheet
from networks import Facts


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def said(printed: str, split: str) -> list[str]:
    """The cells of a split's row."""
    (row,) = [line for line in printed.splitlines() if line.startswith(f"│ {split} ")]
    return [cell.strip() for cell in row.strip("│").split("│")][1:]


def test_tsrd_by_its_config(tmp_path, at_root, capsys) -> None:
    """2 training images of class 0 and one of 57, of which one in three is held out; tests of 0 and 5."""
    words = ["--data=configs/data/tsrd.yaml", f"--data.root={write_tsrd(tmp_path / 'tsrd')}", "--data.size=4"]
    main([*words, "--data.validation=0.34", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "TSRD" in printed
    assert said(printed, "train")[0] == "2"
    assert said(printed, "validation") == ["1", "1 of 58", "1", "1"]
    assert said(printed, "test") == ["2", "2 of 58", "1", "1"]
    for name in ("classes.png", "samples.png"):
        assert str(tmp_path / "out" / name) in printed
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 700


def test_counts_are_numpys() -> None:
    data = Digits(omit=3)
    data.setup()
    counts = class_counts({split: labels(data, split) for split in ("train", "validation", "test")}, 10)
    train, test = data.load(True)[1].numpy(), data.load(False)[1].numpy()
    expected = np.histogram(train[train != 3], np.arange(11))[0]
    assert (counts[0] + counts[1]).tolist() == expected.tolist()
    assert counts[2].tolist() == np.histogram(test, np.arange(11))[0].tolist()
    assert counts[:, 3].tolist() == [0, 0, counts[2, 3]]


def test_table_of_an_empty_split() -> None:
    table = counts_table(np.array([[3, 0, 1], [0, 0, 0], [2, 2, 2]]), "title")
    cells = [list(column.cells) for column in table.columns]
    assert cells[1:] == [["4", "0", "6"], ["2 of 3", "0 of 3", "3 of 3"], ["1", "–", "2"], ["3", "–", "2"]]


@pytest.mark.parametrize("classes", [2, 58])
def test_chart_has_a_readable_row_for_every_class(tmp_path, classes) -> None:
    """At 150 dpi a row of text is about 15 pixels high."""
    facts = Facts(classes, 1, 8, (0.5,), (0.5,), names=[f"class number {k}" for k in range(classes)])
    with Image.open(class_chart(np.ones((3, classes), int), facts, tmp_path / "x.png")) as picture:
        assert picture.height > 15 * classes
        assert picture.width < 1500


def test_sheet_shows_training_images_of_every_class_as_they_are(tmp_path, monkeypatch) -> None:
    """Two of each of ten classes; what is drawn is caught on its way to the picture."""
    monkeypatch.setattr("datamodules.browse.SHEET", 20)
    root = image_folder(tmp_path / "images", 10, 8, train=3)
    data = ImageFolder(str(root), 8, augment=True, validation=0)
    data.setup()
    asked = {}

    def batch(split, index):
        asked[split] = index
        return type(data).batch(data, split, index)

    monkeypatch.setattr(data, "batch", batch)
    found = data.load(True)[1]
    path = sample_sheet(data, found, tmp_path / "x.png")
    assert list(asked) == ["train"]
    assert torch.bincount(found[asked["train"]]).tolist() == [2] * 10
    assert len(asked["train"].unique()) == 20
    with Image.open(path) as picture:
        assert picture.width > 1000


def test_points_in_the_plane_have_no_sheet(tmp_path, capsys) -> None:
    assert browse(ToyRing(validation=0), tmp_path) == [tmp_path / "classes.png"]
    assert said(capsys.readouterr().out, "train") == ["1200", "3 of 3", "300", "600"]


@pytest.mark.parametrize("given", ["nothing there", "no such dataset"])
def test_a_mistake_is_a_sentence(tmp_path, monkeypatch, capsys, given) -> None:
    piece = tmp_path / "piece.yaml"
    of = {"nothing there": "datamodules.TSRD", "no such dataset": "datamodules.Nope"}[given]
    piece.write_text(yaml.safe_dump({"class_path": of, "init_args": {"root": str(tmp_path)}}))
    monkeypatch.setattr(sys, "argv", ["browse", "--data", str(piece), "--out", str(tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "datamodules.browse")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("datamodules.browse", run_name="__main__")
    if given == "nothing there":
        assert str(end.value).startswith("Error: There are no annotations at ")
    else:
        assert end.value.code == 2
        assert "datamodules.Nope" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
