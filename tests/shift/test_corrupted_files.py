"""CIFAR-10-C and CIFAR-100-C in the published format, ten images of it; and every way in which files may be broken."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from shift_helpers import batches, published

from datamodules import Images
from datamodules.corrupted import CIFAR10C, CIFAR100C, COUNTED, EXTRAS, CorruptedFiles
from shift import CIFARC

NAMES = (*COUNTED, *EXTRAS)


@pytest.fixture
def root(tmp_path):
    return published(tmp_path / "CIFAR-10-C")


def test_severity_s_is_rows_from_s_less_1(root):
    files = CorruptedFiles(str(root))
    for name, severity in (("gaussian_noise", 1), ("fog", 3), ("saturate", 5)):
        found = files.read(name, severity)
        assert found.shape == (10, 3, 32, 32)
        assert found.dtype == torch.uint8
        assert found[:, 0, 0, 0].tolist() == [NAMES.index(name) + 10 * (severity - 1) + i for i in range(10)]
    assert files.labels.tolist() == list(range(10))


def test_a_part_is_read_by_index_and_in_its_order(root):
    found = CorruptedFiles(str(root)).read("snow", 2, np.array([7, 0, 7]))
    assert found[:, 2, 31, 31].tolist() == [NAMES.index("snow") + 10 + i for i in (7, 0, 7)]


def test_files_are_mapped_and_never_written_to(root):
    files = CorruptedFiles(str(root))
    assert all(isinstance(images, np.memmap) and not images.flags.writeable for images in files._images.values())
    before = (root / "fog.npy").read_bytes()
    files.read("fog", 1).fill_(0)
    assert (root / "fog.npy").read_bytes() == before


def test_channels_go_first(root):
    """An image of three colours, in the published order (row, column, channel)."""
    images = np.load(root / "frost.npy").copy()
    images[20] = np.broadcast_to([10, 20, 30], (32, 32, 3))
    images[20, 1, 2] = [1, 2, 3]
    np.save(root / "frost.npy", images)
    found = CorruptedFiles(str(root)).read("frost", 3, np.array([0]))[0]
    assert found[:, 5, 5].tolist() == [10, 20, 30]
    assert found[:, 1, 2].tolist() == [1, 2, 3]


def test_it_is_called_by_its_classes(tmp_path):
    assert CorruptedFiles(str(published(tmp_path / "a"))).name == "CIFAR-10-C"
    assert CIFARC(str(published(tmp_path / "b", labels=[99, 3, 50]))).name == "CIFAR-100-C"


@pytest.mark.parametrize("name", ["labels", "fog", "spatter"])
def test_a_missing_file_is_named(root, name):
    (root / f"{name}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"There is no .*{name}\.npy: unpack"):
        CorruptedFiles(str(root))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels", np.arange(49, dtype=np.uint8), r"labels\.npy holds uint8 \(49,\), expected an integer"),
        ("labels", np.arange(50.0), r"labels\.npy holds float64 \(50,\)"),
        ("labels", np.arange(50, dtype=np.uint8), "otherwise at each severity"),
        ("labels", np.zeros(0, np.uint8), r"labels\.npy holds uint8 \(0,\)"),
        ("labels", np.tile(np.arange(4, dtype=np.uint8), 5), r"expected uint8 \(20, 32, 32, 3\) as labels"),
        ("snow", np.zeros((49, 32, 32, 3), np.uint8), r"snow\.npy holds uint8 \(49, 32, 32, 3\)"),
        ("snow", np.zeros((50, 3, 32, 32), np.uint8), r"snow\.npy holds uint8 \(50, 3, 32, 32\)"),
        ("snow", np.zeros((50, 32, 32, 3), np.float32), r"snow\.npy holds float32"),
    ],
)
def test_wrong_arrays_are_refused_by_name(root, name, content, said):
    np.save(root / f"{name}.npy", content)
    with pytest.raises(ValueError, match=said):
        CorruptedFiles(str(root))


@pytest.mark.parametrize("kept", [0, 5, 60, 10_000])
def test_a_file_cut_short_is_refused_by_name(root, kept):
    path = root / "zoom_blur.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"zoom_blur\.npy cannot be read as an array"):
        CorruptedFiles(str(root))


def test_what_there_is_not_is_refused(root):
    files = CorruptedFiles(str(root))
    for name, severity in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ValueError, match=f"no '{name}' of severity {severity}"):
            files.read(name, severity)
    with pytest.raises(ValueError, match="10 images at each severity, image 10"):
        files.read("fog", 1, np.array([3, 10]))


def test_a_test_set_in_another_order_is_refused(root):
    """A folder of images goes class by class, and its row 1 is another image than that of the files."""
    clean = np.zeros((10, 3, 32, 32), np.uint8)
    source = CIFARC(str(root))
    assert source.kinds(batches(clean, range(10), 4, 6)) == NAMES
    with pytest.raises(ValueError, match="Image 8 of the test set is not that of"):
        source.kinds(batches(clean, [*range(8), 9, 8], 4, 6))
    with pytest.raises(ValueError, match="Image 10 of the test set is not that of"):
        source.kinds(batches(np.zeros((11, 3, 32, 32), np.uint8), [*range(10), 0]))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), the tested ones are \(1, 8, 8\)"):
        source.kinds(batches(np.zeros((2, 1, 8, 8), np.uint8), [0, 1]))


def test_source_reads_rows_whatever_the_batch(root):
    source, index = CIFARC(str(root), severities=[2]), torch.tensor([4, 1])
    found = source("fog", 2, torch.zeros(2, 3, 32, 32), index)
    assert found.dtype == torch.float32
    assert (255 * found[:, 0, 0, 0]).round().tolist() == [NAMES.index("fog") + 10 + i for i in (4, 1)]


@pytest.mark.parametrize(("dataset", "classes"), [("CIFAR10C", 10), ("CIFAR100C", 100)])
def test_one_corruption_is_a_dataset_of_the_command_line(tmp_path, dataset, classes):
    root = published(tmp_path / "files", labels=[classes - 1, 0, 1])
    parser = ArgumentParser()
    parser.add_subclass_arguments(Images, "data")
    words = [f"--data=datamodules.corrupted.{dataset}", "--data.corruption=frost", "--data.severity=4"]
    data = parser.instantiate_classes(parser.parse_args([*words, f"--data.files={root}"])).data
    assert isinstance(data, (CIFAR10C, CIFAR100C))
    assert data.facts.classes == classes
    data.setup("test")
    batch = data.batch("test")
    assert batch.y.tolist() == [classes - 1, 0, 1]
    assert (255 * batch.x[:, 1, 9, 9]).round().tolist() == [NAMES.index("frost") + 9 + i for i in range(3)]
