"""CINIC-10 as published: ``{train,valid,test}/<class>/cifar10-<origin>-<number>.png`` and ``<synset>_<number>.png``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, CINIC10

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905  # as its README has them
FROM_CIFAR, FROM_IMAGENET = 2, 5  # of each class in each part


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of every pixel red is 20 times the class, green the part, blue the image's number, 100 or more from ImageNet."""
    for part, number in (("train", 1), ("valid", 2), ("test", 3)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "cinic" / part / name
            folder.mkdir(parents=True)
            files = {f"cifar10-train-{k}.png": k for k in range(FROM_CIFAR)}
            files |= {f"n0269115{label}_{k}.png": 100 + k for k in range(FROM_IMAGENET)}
            for file, blue in files.items():
                pixels = np.full((32, 32, 3), (20 * label, number, blue), np.uint8)
                Image.fromarray(pixels).save(folder / file)
    return tmp_path / "cinic"


def pixels(data: CINIC10, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """What one pixel of each image says (class, part, number), after a check of the labels."""
    images, labels = data.load(train)
    assert images.shape[1:] == data.facts.shape
    assert (images == images[:, :, :1, :1]).all()
    red, part, number = images[:, :, 0, 0].T.numpy()
    assert labels.tolist() == (red // 20).tolist()
    return part, number


def test_train_and_valid_are_joined_and_test_is_whole(root) -> None:
    data = CINIC10(str(root))
    part, number = pixels(data, train=True)
    assert np.bincount(part).tolist() == [0, 70, 70]
    part, number = pixels(data, train=False)
    assert np.bincount(part).tolist() == [0, 0, 0, 70]
    assert (number < 100).sum() == 20


def test_test_images_from_imagenet_alone(root) -> None:
    data = CINIC10(str(root), imagenet=True)
    assert (pixels(data, train=False)[1] >= 100).sum() == 50
    assert len(data.load(train=False)[0]) == 50
    assert len(data.load(train=True)[0]) == 140  # training is as ever


def test_so_many_of_each_class_are_drawn_by_seed(root) -> None:
    drawn = [
        pixels(CINIC10(str(root), imagenet=True, per_class=2, split_seed=seed), train=False)[1] for seed in (0, 0, 1)
    ]
    images, labels = CINIC10(str(root), imagenet=True, per_class=2).load(train=False)
    assert labels.bincount().tolist() == [2] * 10
    assert len(images.unique(dim=0)) == 20
    assert drawn[0].min() >= 100
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    # Not the same numbers of every class: 10 pairs out of 5 are all equal once in 10^9 draws.
    assert len({tuple(pair) for pair in drawn[0].reshape(10, 2)}) > 1


def test_labels_and_names_are_cifar10s(root) -> None:
    assert tuple(CINIC10(str(root)).facts.names) == tuple(CIFAR10().facts.names) == tuple(CLASSES)
    CIFAR10().facts.require(CINIC10(str(root)).facts, "It")


def test_per_class_has_limits(root) -> None:
    with pytest.raises(ValueError, match=r"test/airplane holds 5 images from ImageNet to test on, 6 are asked for"):
        CINIC10(str(root), imagenet=True, per_class=6).setup("test")
    with pytest.raises(ValueError, match="at least 1, or null for all, got 0"):
        CINIC10(str(root), per_class=0)


def test_a_class_without_an_image_from_imagenet_is_named(root) -> None:
    for file in (root / "test" / "cat").glob("n*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"test/cat holds 0 images from ImageNet"):
        CINIC10(str(root), imagenet=True).setup("test")


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_missing_part_is_named(root, part) -> None:
    (root / part).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"no folder .*cinic/{part}: download CINIC-10 from https://.*unpack"):
        CINIC10(str(root)).setup()


def test_other_classes_are_refused(root) -> None:
    (root / "test" / "automobile").rename(root / "test" / "car")
    with pytest.raises(ValueError, match=r"test must hold CIFAR-10's classes .*automobile.*got .*car"):
        CINIC10(str(root)).setup("test")


def test_a_broken_image_is_refused_or_skipped(root) -> None:
    (root / "test" / "dog" / "n02691155_3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of the 70 images .*dog/n02691155_3\.png"):
        CINIC10(str(root)).setup("test")
    with pytest.warns(UserWarning, match=r"n02691155_3\.png"):
        labels = CINIC10(str(root), broken="skip").load(train=False)[1]
    assert torch.bincount(labels).tolist() == [7, 7, 7, 7, 7, 6, 7, 7, 7, 7]
