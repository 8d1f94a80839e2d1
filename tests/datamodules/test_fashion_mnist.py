"""Fashion-MNIST in its published format: four IDX files, of images (magic 2051) and of labels (2049), big-endian."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import FashionMNIST


def write(root: Path) -> np.ndarray:
    """Three images to train and test with, of an ankle boot, a bag and a T-shirt."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(256, size=(3, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 3, 28, 28) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes([9, 8, 0]))
    return images


def test_it_is_read(tmp_path) -> None:
    images = write(tmp_path)
    data = FashionMNIST(str(tmp_path), validation=0)
    data.prepare_data()
    data.setup()
    for split in ("train", "test"):
        x, y, *_ = data.batch(split)
        assert (x * 255).round().to(torch.uint8).equal(torch.from_numpy(images).unsqueeze(1))
        assert [data.facts.names[label] for label in y] == ["Ankle boot", "Bag", "T-shirt/top"]


def test_facts() -> None:
    facts = FashionMNIST().facts
    assert (facts.classes, facts.shape) == (10, (1, 28, 28))
    assert (facts.mean, facts.std) == ((0.2860,), (0.3530,))


def test_a_truncated_file_is_named(tmp_path) -> None:
    write(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="FashionMNIST/raw does not hold FashionMNIST"):
        FashionMNIST(str(tmp_path)).setup("test")


def test_images_of_another_shape_are_refused(tmp_path) -> None:
    write(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(struct.pack(">4i", 2051, 3, 14, 28) + bytes(3 * 14 * 28))
    with pytest.raises(ValueError, match=r"images have shape \(1, 14, 28\), the dataset's facts say \(1, 28, 28\)"):
        FashionMNIST(str(tmp_path)).setup("test")
