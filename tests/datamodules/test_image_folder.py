"""A person's own images: read as they are, split fairly, and every mistake said in a sentence."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional as TF

from datamodules import ImageFolder
from datamodules.store import Entry, read_image


def fill(root: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Writes that many noise images (PNG) per class."""
    generator = np.random.default_rng(len(str(root)))
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for position in range(count):
            pixels = generator.integers(256, size=(*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{position:04}.png")
    return root


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder(root: Path, **kwargs) -> ImageFolder:
    return ImageFolder(str(root), size=8, **kwargs)


class TestLayouts:
    def test_train_and_test_folders_are_read_as_torchvision_reads_them(self, tmp_path) -> None:
        fill(tmp_path / "train", {"b": 3, "a": 4})
        fill(tmp_path / "test", {"a": 2, "b": 2})
        data = folder(tmp_path)
        assert data.facts.names == ("a", "b")
        for split, train in (("train", True), ("test", False)):
            reference = datasets.ImageFolder(str(tmp_path / split))
            images, labels = data.load(train)
            assert labels.tolist() == reference.targets
            for image, (expected, _) in zip(images, reference, strict=True):
                assert image.equal(TF.pil_to_tensor(expected))

    def test_other_names_for_the_two(self, tmp_path) -> None:
        fill(tmp_path / "learn", {"a": 1, "b": 1})
        fill(tmp_path / "exam", {"a": 2, "b": 2})
        assert len(folder(tmp_path, train="learn", test="exam").load(train=False)[0]) == 4

    def test_a_stratified_share_is_held_out_of_bare_class_folders(self, tmp_path) -> None:
        fill(tmp_path, {"a": 10, "b": 5, "c": 2})
        data = folder(tmp_path)
        (train, train_labels), (test, test_labels) = data.load(True), data.load(False)
        assert torch.bincount(train_labels).tolist() == [8, 4, 1]
        assert torch.bincount(test_labels).tolist() == [2, 1, 1]
        assert len(torch.cat([train, test]).unique(dim=0)) == 17
        assert folder(tmp_path).load(False)[0].equal(test)
        assert not folder(tmp_path, split_seed=1).load(False)[0].equal(test)

    def test_hidden_and_foreign_files_are_passed_over_and_depth_does_not_matter(self, tmp_path) -> None:
        fill(tmp_path, {"a": 2, "b": 2, ".ipynb_checkpoints": 1, "a/deeper": 1, "a/.ipynb_checkpoints": 1})
        (tmp_path / "b" / "extracted.png").mkdir()
        (tmp_path / "a" / "._0000.png").write_text("left by a Mac")
        (tmp_path / "a" / "notes.txt").write_text("not an image")
        data = folder(tmp_path)
        assert data.facts.classes == 2
        assert len(data.load(True)[0]) + len(data.load(False)[0]) == 5


class TestReading:
    def test_an_image_of_the_right_size_is_untouched(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert read_image(Entry(tmp_path / "x.png"), 8, 3).equal(torch.from_numpy(pixels).permute(2, 0, 1))

    def test_the_centred_square_is_scaled(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(256, size=(16, 40, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image.save(tmp_path / "x.png")
        expected = TF.pil_to_tensor(TF.center_crop(TF.resize(image, 8), [8, 8]))
        assert (read_image(Entry(tmp_path / "x.png"), 8, 3).int() - expected.int()).abs().max() <= 1

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_any_8_bit_mode_becomes_the_channels_asked_for(self, tmp_path, mode, channels) -> None:
        Image.new(mode, (5, 7)).save(tmp_path / "x.png")
        image = read_image(Entry(tmp_path / "x.png"), 4, channels)
        assert image.shape == (channels, 4, 4)
        assert image.dtype == torch.uint8

    def test_an_image_stands_as_its_camera_meant_it(self, tmp_path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        pixels = np.zeros((8, 8), np.uint8)
        pixels[:4] = 255
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
        assert (read_image(Entry(tmp_path / "x.png"), 8, 1)[0, 4:] == 255).all()

    def test_more_than_8_bits_are_refused(self, tmp_path) -> None:
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "x.png")
        with pytest.raises(ValueError, match=r"x\.png: .*more than 8 bits"):
            read_image(Entry(tmp_path / "x.png"), 8, 1)


class TestMistakes:
    def test_missing_folder(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*root must name"):
            folder(tmp_path / "nowhere").setup("fit")

    def test_no_class_folders(self, tmp_path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
        with pytest.raises(FileNotFoundError, match="holds no class folders"):
            folder(tmp_path).setup("fit")

    def test_one_class(self, tmp_path) -> None:
        fill(tmp_path, {"only": 3})
        with pytest.raises(ValueError, match=r"one class folder \(only\)"):
            folder(tmp_path).setup("fit")

    def test_empty_class(self, tmp_path) -> None:
        fill(tmp_path, {"a": 3, "empty": 0})
        with pytest.raises(FileNotFoundError, match="empty holds no images"):
            folder(tmp_path).setup("fit")

    def test_class_with_too_few_to_hold_one_out(self, tmp_path) -> None:
        fill(tmp_path, {"a": 3, "rare": 1})
        with pytest.raises(ValueError, match="rare holds 1 image"):
            folder(tmp_path).setup("fit")

    def test_train_without_test(self, tmp_path) -> None:
        fill(tmp_path / "train", {"a": 3, "b": 3})
        with pytest.raises(FileNotFoundError, match=r"train but no .*test"):
            folder(tmp_path).setup("fit")

    def test_different_classes(self, tmp_path) -> None:
        fill(tmp_path / "train", {"a": 1, "b": 1})
        fill(tmp_path / "test", {"a": 1, "c": 1})
        with pytest.raises(ValueError, match="differ in b, c"):
            folder(tmp_path).setup("fit")

    @pytest.mark.parametrize("content", [b"", b"not an image", None])
    def test_unreadable_file(self, tmp_path, content) -> None:
        fill(tmp_path, {"a": 3, "b": 3})
        file = tmp_path / "a" / "0001.png"
        file.write_bytes(file.read_bytes()[:-40] if content is None else content)
        with pytest.raises(ValueError, match=r"1 of the 4 images of .* cannot be read: .*a/0001\.png") as caught:
            folder(tmp_path).setup()
        assert "\n" not in str(caught.value)

    def test_arguments(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="channels=2"):
            folder(tmp_path, channels=2)
        with pytest.raises(ValueError, match=r"test_fraction .* got 1"):
            folder(tmp_path, test_fraction=1.0)


def unpack(archive: str, target: Path, wanted: str, per_class: int) -> None:
    """Unpacks the first few images of every class below ``wanted``, without reading further than needed."""
    if "TEMPERED_DATA" not in os.environ:
        pytest.skip(f"TEMPERED_DATA is not set: no {archive} to read")
    taken: dict[str, int] = {}
    with tarfile.open(Path(os.environ["TEMPERED_DATA"]) / archive) as file:
        for member in file:
            parent = str(Path(member.name).parent)
            if member.isfile() and parent.startswith(wanted) and taken.get(parent, 0) < per_class:
                file.extract(member, target, filter="data")
                taken[parent] = taken.get(parent, 0) + 1
            if len(taken) == 10 and min(taken.values()) == per_class:
                return


class TestRealData:
    def test_cifar10_jpeg(self, tmp_path) -> None:
        unpack("cifar10-jpeg.tar.xz", tmp_path, "test/", 30)
        (tmp_path / "train").symlink_to(tmp_path / "test")
        mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
        data = ImageFolder(str(tmp_path), 32, mean=mean, std=std)
        assert data.facts.names[:2] == ("airplane", "automobile")
        x, y, *_ = data.batch("test")
        assert torch.bincount(y).tolist() == [30] * 10
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.tensor(mean), atol=0.05, rtol=0)
        torch.testing.assert_close(x.std((0, 2, 3)), torch.tensor(std), atol=0.05, rtol=0)

    def test_mnist(self, tmp_path) -> None:
        unpack("mnist10k.tar.xz", tmp_path, "mnist10k/", 30)
        data = ImageFolder(str(tmp_path / "mnist10k"), 28, channels=1, mean=[0.1307], std=[0.3081])
        assert data.facts.names == tuple("0123456789")
        x, y, *_ = data.batch("test")
        assert torch.bincount(y).tolist() == [6] * 10
        x = torch.cat([x, data.batch("train").x, data.batch("validation").x])
        assert x.mean() == pytest.approx(0.1307, abs=0.02)
        assert x.std() == pytest.approx(0.3081, abs=0.02)
