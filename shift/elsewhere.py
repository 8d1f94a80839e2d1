"""Accuracy and calibration out of distribution: on another dataset of the same classes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacks.records import Record, mean, share
from interpret.calibration import Batch
from networks.base import Facts
from shift.judgement import Judgement


def class_map(ours: Facts, theirs: Facts, whose: str) -> Tensor:
    """The network's class for each class of another dataset, by name, int64 (classes,).

    Args:
        ours: facts of the network's dataset.
        theirs: of the other.
        whose: what the other is called.

    Raises:
        ValueError: if the images are of another shape or range, or the classes are not the same by name.
    """
    if ours.shape != theirs.shape or tuple(ours.box) != tuple(theirs.box):
        raise ValueError(
            f"{whose} has images {theirs.shape} in {list(theirs.box)}, the network takes {ours.shape} in "
            f"{list(ours.box)}."
        )
    if not ours.names or not theirs.names:
        raise ValueError(f"{whose} cannot be matched: {'its' if ours.names else 'our'} classes have no names.")
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((ours.names, theirs.names), (theirs.names, ours.names)))
    if missing or unknown:
        faults = [f"{fault} {', '.join(names)}" for fault, names in (("lacks", missing), ("has", unknown)) if names]
        raise ValueError(f"{whose} must hold the network's classes by name, but {' and '.join(faults)}.")
    return torch.tensor([ours.names.index(name) for name in theirs.names])


def relabelled(batches: Iterable[Batch], classes: Sequence[int] | Tensor) -> Iterator[Batch]:
    """Batches of another dataset with the network's labels, which :func:`class_map` gives."""
    classes = torch.as_tensor(classes)
    return ((x, classes.to(y.device)[y], index) for x, y, index in batches)


def records(source: str, said: Judgement, seconds: float) -> Iterator[Record]:
    """Accuracy, calibration error and negative log-likelihood on a dataset's images.

    Args:
        source: what the dataset is called.
        said: what the network says of its images.
        seconds: what that took.
    """
    accuracy = share("accuracy", int(said.correct.sum()), len(said.index), seconds)
    ece, nll = mean("ECE", said.gaps, "probability", seconds), mean("NLL", said.nll, "nats", seconds)
    for record in (accuracy, ece, nll):
        yield replace(record, metric=f"{source}: {record.metric}")
