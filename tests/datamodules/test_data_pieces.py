"""Every piece in configs/data names a dataset that can be built from it."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from datamodules import Images

PIECES = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


# The name that Lightning calls, too; its successor came with 4.49.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("piece", PIECES, ids=lambda path: path.stem)
def test_piece_builds_its_dataset(piece) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Images, "data")
    data = parser.instantiate_classes(parser.parse_args([f"--data={piece}"])).data
    assert isinstance(data, Images)
    assert data.augment == (piece.stem in ("cifar10", "cifar100", "cifar10_folder"))


def test_there_are_pieces() -> None:
    assert len(PIECES) == 8
