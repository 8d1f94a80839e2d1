"""TSRD in its published format: the sign's box and no other pixel, every class known, every fault named."""

import numpy as np
import pytest
import torch
from main_helpers import of, results
from PIL import Image
from sign_helpers import TABLES, TEST, TRAIN, cut, write_tsrd

from datamodules import TSRD


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))


def tsrd(root, **kwargs) -> TSRD:
    return TSRD(str(root), size=4, **kwargs)


def test_signs_are_cut_out(tmp_path) -> None:
    """Every box of the fixture is 4 by 4, so that not one pixel is interpolated; x is horizontal."""
    data = tsrd(write_tsrd(tmp_path))
    for train, rows in ((True, TRAIN), (False, TEST)):
        images, labels = data.load(train)
        assert images.dtype == torch.uint8
        assert images.numpy().tolist() == [cut(row).tolist() for row in rows]
        assert labels.tolist() == [row[7] for row in rows]
    assert images[0, 0, 0].tolist() == [20, 30, 40, 50]  # red is 10 x, in the first row from x = 2
    assert images[0, 1, :, 0].tolist() == [30, 40, 50, 60]


def test_a_box_is_scaled_whole_whatever_its_shape(tmp_path) -> None:
    """The left half of a wide box is black, the right half white: so it is of the square, too."""
    row = ("wide.png", 40, 20, 4, 5, 36, 13, 3)
    write_tsrd(tmp_path, train=(row,))
    pixels = np.full((20, 40, 3), 128, np.uint8)
    pixels[5:13, 4:20], pixels[5:13, 20:36] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "train" / "wide.png")
    (image,), _ = TSRD(str(tmp_path), size=8).load(train=True)
    assert image[:, :, :3].unique().tolist() == [0]
    assert image[:, :, 5:].unique().tolist() == [255]


def test_facts_need_no_file_and_name_all_58_classes(tmp_path) -> None:
    facts = TSRD(str(tmp_path / "nowhere")).facts
    assert (facts.classes, facts.shape, facts.names) == (58, (3, 256, 256), ())
    half = TSRD(mean=[0.5] * 3, std=[0.5] * 3).facts
    assert half.mean == half.std == (0.5, 0.5, 0.5)


def test_classes_without_test_image_are_no_fault(tmp_path) -> None:
    data = tsrd(write_tsrd(tmp_path), validation=0)
    data.setup()
    counts = {split: torch.bincount(data.batch(split).y, minlength=58) for split in ("train", "test")}
    assert counts["train"].nonzero().flatten().tolist() == [0, 57]
    assert counts["test"].nonzero().flatten().tolist() == [0, 5]


def test_other_names_of_folders_and_tables(tmp_path) -> None:
    write_tsrd(tmp_path)
    (tmp_path / "train").rename(tmp_path / "tsrd-train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / TABLES["train"]).rename(tmp_path / "annotations" / "a.txt")
    data = tsrd(tmp_path, train="tsrd-train", train_annotations="annotations/a.txt")
    assert len(data.load(train=True)[0]) == 3


def test_missing_images_are_counted_and_named(tmp_path) -> None:
    write_tsrd(tmp_path)
    for row in TRAIN[1:]:
        (tmp_path / "train" / row[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"train lacks 2 of the 3 .*Annotation\.txt.*000_0002\.png \(row 2\)"):
        tsrd(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no annotations at .*nowhere/TsignRecgTrain4170Annotation\.txt"):
        tsrd(tmp_path / "nowhere").setup("fit")


def test_a_malformed_row_stops_with_its_number(tmp_path) -> None:
    table = write_tsrd(tmp_path) / TABLES["test"]
    table.write_text(table.read_text().replace("4;4;0;0;4;4", "4;4;0;0;5;4"))
    with pytest.raises(
        ValueError, match=rf"{TABLES['test']}, row 2: the box leaves the image: x2=5, but its width is 4"
    ):
        tsrd(tmp_path).setup("test")


@pytest.mark.parametrize("size", [(6, 6), (20, 12)])
def test_a_photograph_of_another_size_than_its_box_is_refused(size, tmp_path) -> None:
    """Photographs that somebody has scaled: their boxes would cut out something else."""
    write_tsrd(tmp_path)
    Image.new("RGB", size).save(tmp_path / "train" / TRAIN[0][0])
    with pytest.raises(ValueError, match=rf"000_0001\.png: it is \({size[0]}, {size[1]}\) pixels.*of \(10, 6\)"):
        tsrd(tmp_path).setup("fit")


def test_a_broken_image_is_refused_or_skipped_with_its_label(tmp_path) -> None:
    file = write_tsrd(tmp_path) / "train" / TRAIN[1][0]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"1 of the 3 images .*000_0002\.png"):
        tsrd(tmp_path).load(train=True)
    with pytest.warns(UserWarning, match=r"000_0002\.png"):
        images, labels = tsrd(tmp_path, broken="skip").load(train=True)
    assert labels.tolist() == [0, 57]
    assert images.numpy().tolist() == [cut(TRAIN[0]).tolist(), cut(TRAIN[2]).tolist()]


def test_nothing_is_changed_in_the_folder(tmp_path) -> None:
    root = write_tsrd(tmp_path / "mine")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    data = tsrd(root)
    data.prepare_data()
    data.setup()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_main_fits_a_flavour_on_it(tmp_path, cli) -> None:
    """One batch of 64 x 64 pixels; only two of the 58 classes are in the test set."""
    root = write_tsrd(tmp_path / "tsrd")
    words = [
        "--config",
        "configs/flavours_tsrd.yaml",
        "--data.root",
        root,
        "--data.size",
        64,
        "--runs",
        tmp_path / "runs",
    ]
    words += ["--data.batch_size", 2, "--data.validation", 0.34, "--trainer.max_epochs", 1]
    words += ["--trainer.limit_train_batches", 1, "--suite.diagnose", "false"]
    run = cli("fit", *words)
    assert isinstance(run.datamodule, TSRD)
    assert run.trainer.global_step == 1
    figures = of("network", results(run.folder))
    assert figures.keys() >= {"clean", "FGSM", "PGD-10", "worst case"}
    assert {n for _, n in results(run.folder).values()} == {2}
