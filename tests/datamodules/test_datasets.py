"""The fixed datasets: their facts are true, and what goes wrong is said in a sentence."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import datasets
from torchvision.datasets import utils

from datamodules import CIFAR10, CIFAR100, MNIST, Digits, ToyRing
from datamodules.toy_ring import ring_points
from networks import MLP


class TestDigits:
    def test_test_set_is_a_stratified_fifth(self) -> None:
        data = Digits()
        train, test = data.load(train=True), data.load(train=False)
        assert (len(train[0]), len(test[0])) == (1437, 360)
        shares = [torch.bincount(labels, minlength=10) / len(labels) for _, labels in (train, test)]
        torch.testing.assert_close(*shares, atol=0.003, rtol=0)
        assert test[0].equal(Digits(split_seed=5).load(train=False)[0])

    def test_facts_are_true(self) -> None:
        data = Digits()
        images = torch.cat([data.load(train)[0] for train in (True, False)]).double() / 255
        assert images.mean() == pytest.approx(data.facts.mean[0], abs=1e-3)
        assert images.std() == pytest.approx(data.facts.std[0], abs=1e-3)


class TestToyRing:
    def test_facts_are_true(self) -> None:
        data = ToyRing()
        points, labels = data.load(train=True)
        assert points.shape == (1200, *data.facts.shape)
        assert points.dtype == torch.float32
        assert torch.bincount(labels).tolist() == [300, 300, 600]
        flat = points.flatten(1)
        torch.testing.assert_close(flat.mean(0), torch.tensor(data.facts.mean), atol=0.1, rtol=0)
        torch.testing.assert_close(flat.std(0), torch.tensor(data.facts.std), atol=0.1, rtol=0)
        assert flat.min() > data.facts.box[0] + 0.5
        assert flat.max() < data.facts.box[1] - 0.5

    def test_the_test_set_is_another_draw_and_the_seed_repeats(self) -> None:
        data = ToyRing(seed=1)
        train, test = data.load(train=True)[0], data.load(train=False)[0]
        assert not train.equal(test)
        assert train.equal(ToyRing(seed=1).load(train=True)[0])
        assert not train.equal(ToyRing(seed=2).load(train=True)[0])

    def test_same_distribution_as_the_published_points(self) -> None:
        if "TEMPERED_DATA" not in os.environ:
            pytest.skip("TEMPERED_DATA is not set: no published toy ring to compare with")
        table = np.loadtxt(Path(os.environ["TEMPERED_DATA"]) / "toy_ring.csv", delimiter=",", skiprows=1)
        points, labels = (tensor.numpy() for tensor in ring_points(0))
        assert np.array_equal(labels, table[:, 3])
        for label in range(3):
            for axis in range(2):
                pair = points[labels == label, axis], table[table[:, 3] == label, 1 + axis]
                assert stats.ks_2samp(*pair).pvalue > 1e-3
        ours, theirs = points[labels == 2], table[600:, 1:3]
        np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=1e-6)  # x is no draw
        noise = [ring[:, 1] - _arc(ring[:, 0]) for ring in (ours, theirs)]
        assert noise[0].std() == pytest.approx(noise[1].std(), rel=0.1)


def _arc(x: np.ndarray) -> np.ndarray:
    """The circle of radius 4 at x: the first half of the points above, the second below."""
    return np.sqrt((16 - x**2).clip(0)) * np.repeat([1, -1], len(x) // 2)


def write_mnist(root: Path, count: int = 12) -> np.ndarray:
    """MNIST's four files with few images; returns the images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(256, size=(count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / name).write_bytes(header + array.tobytes())
    return images


def write_cifar(root: Path, source: type[datasets.CIFAR10], count: int = 4) -> np.ndarray:
    """CIFAR's files with few images each; returns those of the test set as (N, C, H, W)."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(256, size=(count, 3072), dtype=np.uint8)
    key = "labels" if source is datasets.CIFAR10 else "fine_labels"
    for name, _ in source.train_list + source.test_list:
        (folder / name).write_bytes(pickle.dumps({"data": images, key: list(range(count))}))
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: []}))
    return images.reshape(-1, 3, 32, 32)


class TestPublished:
    def test_mnist_is_read(self, tmp_path) -> None:
        images = write_mnist(tmp_path)
        data = MNIST(str(tmp_path))
        data.prepare_data()
        x, y, *_ = data.batch("test")
        assert (x * 255).round().to(torch.uint8).equal(torch.from_numpy(images).unsqueeze(1))
        assert y.tolist() == [*range(10), 0, 1]

    @pytest.mark.parametrize("dataset", [CIFAR10, CIFAR100])
    def test_cifar_is_read_and_augmented_by_default(self, tmp_path, monkeypatch, dataset) -> None:
        images = write_cifar(tmp_path, dataset.source)
        for module in (utils, datasets.cifar):  # the checksums are those of the real files
            monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())
        data = dataset(str(tmp_path))
        data.prepare_data()
        x, y, *_ = data.batch("test")
        assert (x * 255).round().to(torch.uint8).equal(torch.from_numpy(images))
        assert y.tolist() == [0, 1, 2, 3]
        assert data.augment
        assert len(set(data.facts.names)) == data.facts.classes

    @pytest.mark.parametrize("dataset", [MNIST, CIFAR10, CIFAR100])
    def test_mean_and_deviation_are_replaced_one_by_one(self, dataset) -> None:
        own = dataset().facts
        half = [0.5] * own.channels
        assert dataset(mean=half).facts == replace(own, mean=tuple(half))
        assert dataset(std=half).facts == replace(own, std=tuple(half))
        assert dataset().facts == own == dataset(mean=None, std=None).facts

    def test_a_network_normalises_by_what_was_given(self) -> None:
        facts = CIFAR10(mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.125]).facts
        x = torch.rand(2, 3, 32, 32)
        expected = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) * torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1)
        torch.testing.assert_close(MLP(facts, (4,)).normalise(x), expected)
        assert facts.to_dict()["mean"] == [0.5, 0.4, 0.3]  # what a checkpoint keeps

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"mean": [0.5]}, "mean has 1 values, the images have 3 channels"),
            ({"std": [0.5, 0.5]}, "std has 2 values, the images have 3 channels"),
            ({"std": [0.5, 0.5, 0.0]}, "std must be positive"),
            ({"mean": []}, "mean has 0 values"),
        ],
    )
    def test_an_impossible_mean_or_deviation_is_refused_at_once(self, given, says) -> None:
        with pytest.raises(ValueError, match=says):
            _ = CIFAR10(**given).facts

    @pytest.mark.parametrize("dataset", [MNIST, CIFAR10, CIFAR100])
    def test_offline_is_said_in_a_sentence(self, tmp_path, monkeypatch, dataset) -> None:
        def refuse(*_, **__):
            raise URLError("no route to host")

        monkeypatch.setattr(utils, "_urlretrieve", refuse)
        with pytest.raises(ConnectionError, match=rf"download {dataset.__name__} to .*{dataset.folder}") as caught:
            dataset(str(tmp_path)).prepare_data()
        assert "copy that folder" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None

    @pytest.mark.parametrize("dataset", [MNIST, CIFAR10, CIFAR100])
    def test_a_missing_folder_is_named(self, tmp_path, dataset) -> None:
        with pytest.raises(FileNotFoundError, match=rf"{dataset.folder} does not hold {dataset.__name__}") as caught:
            dataset(str(tmp_path)).setup("fit")
        assert "correct root" in str(caught.value)

    @pytest.mark.parametrize("kept", [0, 3, 8, 100])
    def test_a_truncated_file_is_named(self, tmp_path, kept) -> None:
        write_mnist(tmp_path)
        file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:kept])
        for use in (lambda data: data.setup("fit"), lambda data: data.prepare_data()):
            with pytest.raises((FileNotFoundError, ConnectionError), match="MNIST/raw"):
                use(MNIST(str(tmp_path)))

    def test_a_corrupt_folder_is_named(self, tmp_path) -> None:
        write_cifar(tmp_path, datasets.CIFAR10)
        with pytest.raises(FileNotFoundError, match="cifar-10-batches-py does not hold CIFAR10"):
            CIFAR10(str(tmp_path)).setup("fit")
