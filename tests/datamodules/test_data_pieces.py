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
    data = built(piece)
    assert isinstance(data, Images)
    assert data.augment == (piece.stem in ("cifar10", "cifar100", "cifar10_folder", "cinic10", "cinic10_imagenet"))
    assert data.omit == (2 if piece.stem == "mnist_omitted" else None)
    if piece.stem == "cifar10_half":
        assert data.facts.mean == data.facts.std == (0.5, 0.5, 0.5)


def built(piece: Path, *more: str) -> Images:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Images, "data")
    return parser.instantiate_classes(parser.parse_args([f"--data={piece}", *more])).data


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_words_behind_a_piece_change_it() -> None:
    piece = PIECES[0].with_name("mnist_omitted.yaml")
    assert built(piece, "--data.omit=7").omitted == (7, "7")
    assert built(piece, "--data.omit=null").omitted is None
    assert built(PIECES[0].with_name("cifar10.yaml"), "--data.mean=[0.1,0.2,0.3]").facts.mean == (0.1, 0.2, 0.3)


def test_there_are_pieces() -> None:
    assert len(PIECES) == 15
