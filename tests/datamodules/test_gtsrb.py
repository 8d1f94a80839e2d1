"""GTSRB as torchvision unpacks it: ``gtsrb/GTSRB/Training/<class>/*.ppm`` with ``GT-<class>.csv`` in each folder,
``gtsrb/GTSRB/Final_Test/Images/*.ppm`` and ``gtsrb/GT-final_test.csv``.
"""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from sign_helpers import photograph, write_gtsrb
from torchvision import datasets
from torchvision.datasets import utils

from datamodules import GTSRB

TRAIN = (
    ("00000_00000.ppm", 8, 8, 2, 2, 6, 6, 0),
    ("00000_00001.ppm", 8, 8, 2, 1, 6, 7, 0),
    ("00042_00000.ppm", 8, 8, 1, 2, 7, 6, 42),
)
TEST = (("00000.ppm", 8, 8, 2, 2, 6, 6, 16), ("00001.ppm", 16, 8, 2, 2, 14, 6, 1))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Every class has its folder, as after a whole download; only two of them hold images."""
    return write_gtsrb(tmp_path / "data", filled(TRAIN), TEST)


def filled(rows):
    """The rows, and one image of each class that has none, because an empty table is a fault."""
    rest = [(f"{c:05}_00000.ppm", 8, 8, 1, 1, 7, 7, c) for c in range(43) if c not in (0, 42)]
    return tuple(sorted([*rows, *rest], key=lambda row: row[7]))


def test_as_torchvision_reads_it(root) -> None:
    data = GTSRB(str(root), size=8)
    data.prepare_data()  # finds everything there
    for train, split in ((True, "train"), (False, "test")):
        images, labels = data.load(train)
        reference = datasets.GTSRB(str(root), split)
        assert len(reference) == {"train": 44, "test": 2}[split]
        expected = [np.array(image.resize((8, 8), 2)).transpose(2, 0, 1) for image, _ in reference]
        assert labels.tolist() == [label for _, label in reference]
        assert (images.numpy() == expected).all()


def test_whole_photographs_not_boxes(root) -> None:
    images, labels = GTSRB(str(root), size=8).load(train=True)
    assert labels.bincount().tolist() == [2] + [1] * 42
    assert images[0].numpy().tolist() == photograph(TRAIN[0]).transpose(2, 0, 1).tolist()
    assert (images[-1, 2] == 42).all()


def test_facts() -> None:
    facts = GTSRB(size=48, mean=[0.5, 0.5, 0.5]).facts
    assert (facts.shape, facts.mean) == ((3, 48, 48), (0.5, 0.5, 0.5))
    assert len(set(facts.names)) == facts.classes == 43
    assert [facts.names[label] for label in (0, 14, 17, 40)] == ["20 km/h", "stop", "no entry", "roundabout"]
    assert not GTSRB().augment


def test_offline_is_said_in_a_sentence(tmp_path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    with pytest.raises(ConnectionError, match=r"download GTSRB to .*gtsrb .*no route to host"):
        GTSRB(str(tmp_path)).prepare_data()


def test_both_halves_are_downloaded(root, tmp_path, monkeypatch) -> None:
    archives = {
        "GTSRB-Training_fixed.zip": "GTSRB/Training",
        "GTSRB_Final_Test_Images.zip": "GTSRB/Final_Test",
        "GTSRB_Final_Test_GT.zip": "GT-final_test.csv",
    }

    def extract(url, download_root, md5) -> None:
        content = archives.pop(url.rpartition("/")[2])
        place = Path(download_root) / content
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / "gtsrb" / content).rename(place)

    monkeypatch.setattr(datasets.gtsrb, "download_and_extract_archive", extract)
    data = GTSRB(str(tmp_path / "downloaded"))
    data.prepare_data()
    assert not archives
    data.setup()
    assert len(data.split_index("test")) == 2


@pytest.mark.parametrize("gone", ["Training/00007/00007_00000.ppm", "Training/00030/GT-00030.csv"])
def test_half_a_dataset_is_refused(root, gone) -> None:
    """What an interrupted extraction leaves."""
    (root / "gtsrb" / "GTSRB" / gone).unlink()
    with pytest.raises(FileNotFoundError, match=rf"gtsrb does not hold GTSRB .*{gone[-9:-4]}.*remove that folder"):
        GTSRB(str(root)).setup("fit")


def test_a_malformed_row_stops_with_its_number(root) -> None:
    table = root / "gtsrb" / "GT-final_test.csv"
    table.write_text(table.read_text().replace(";16\n", ";43\n"))
    with pytest.raises(ValueError, match=r"GT-final_test\.csv, row 2: category 43 is unknown: .* 0 to 42"):
        GTSRB(str(root)).setup("test")


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gtsrb does not hold GTSRB .*correct root|Correct root"):
        GTSRB(str(tmp_path)).setup("test")
