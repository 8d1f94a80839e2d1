"""A teacher and its student, trained at a temperature and looked at; :mod:`studies.temperatures` says what for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from attacks.records import Record, mean, share
from datamodules import Images
from interpret import agreement, amplitudes, heat_map, sensitivity
from lightning_modules import Distiller
from networks.checkpoint import load_network
from studies.runs import fit, last

SIZE = 50  # images at a time, whose Jacobian takes memory
ACCURACY, TOP, HARD, AMPLITUDE = "accuracy", "mean top probability", "share of p > 0.99", "median amplitude"


@dataclass(frozen=True)
class Column:
    """How both networks of a pair are trained.

    Attributes:
        title: what the figures call it.
        temperature: T.
        dropout: of both networks; None leaves it to their configs.
    """

    title: str
    temperature: float
    dropout: float | None = None


@dataclass(frozen=True)
class Setting:
    """What is asked of every pair.

    Attributes:
        config: the student's, which names its teacher's.
        words: further arguments of ``fit``.
        both: a config that goes behind the teacher's and the student's.
        images: at how many test images the networks are looked at.
        runs: folder of runs.
    """

    config: str
    words: tuple[str, ...]
    both: dict[str, Any]
    images: int
    runs: Path


@dataclass(frozen=True)
class Trained:
    """A network of a pair.

    Attributes:
        weights: its checkpoint.
        correct: which of the images it classifies correctly, bool (n,).
        top: its largest probability for each of them, float64 (n,).
        amplitudes: of the Jacobian at each of them, float64 (n,).
        heat: mean absolute gradient by stage and layer.
    """

    weights: Path
    correct: np.ndarray
    top: np.ndarray
    amplitudes: np.ndarray
    heat: dict[str, dict[str, float]]

    def records(self, model: str) -> list[Record]:
        """All figures of the tables, with 95 % intervals over the images."""
        found = [
            share(ACCURACY, int(self.correct.sum()), len(self.correct), 0.0),
            mean(TOP, self.top, "probability", 0.0),
            share(HARD, int((self.top > 0.99).sum()), len(self.top), 0.0),
            median(AMPLITUDE, self.amplitudes),
            *sensitivity.records(self.amplitudes, 0.0),
        ]
        return [replace(record, model=model, checkpoint=str(self.weights)) for record in found]


def median(metric: str, values: np.ndarray) -> Record:
    """The record of a median with its distribution-free 95 % interval, between two of the ordered values."""
    n = len(values)
    low, high = np.sort(values)[np.clip(binom.ppf([0.025, 0.975], n, 0.5).astype(int), 0, n - 1)]
    return Record(metric, float(np.median(values)), n, float(low), float(high), 0.0, unit="per unit of the box")


@dataclass(frozen=True)
class Plane:
    """Test images that are points in the plane: their coordinates (n, 2, 1, 1), their classes, and the data's facts."""

    points: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    box: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """What came of a pair: its networks by side, and the points where its data is in the plane."""

    networks: dict[str, Trained]
    plane: Plane | None


def arguments(column: Column, seed: int, setting: Setting) -> list[str]:
    """The arguments of the student's ``fit``, which trains its teacher first."""
    network = {} if column.dropout is None else {"network": {"init_args": {"dropout": column.dropout}}}
    own: dict[str, Any] = {
        "seed_everything": seed,
        "model": {"init_args": {"temperature": column.temperature, **network}},
        "trainer": {"enable_progress_bar": False},
        "suite": {"attacks": []},
        "interpret": {"images": 0},
    }
    shared = json.dumps(merged(setting.both, own))
    words = ["--config", setting.config, "--data.validation", "0", "--train_teacher", "true", *setting.words]
    return [*words, "--config", shared, "--model.teacher.override", shared]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A config with another behind it."""
    inner = {key: merged(one[key], value) for key, value in other.items() if isinstance(one.get(key), dict)}
    return one | other | inner


def train(column: Column, seed: int, setting: Setting) -> Pair:
    """Trains a pair and looks at it."""
    name = f"{Path(setting.config).stem} {column.title} seed {seed}"
    cli = fit(arguments(column, seed, setting), name, setting.runs)
    data = cast(Images, cli.datamodule)
    weights = {"teacher": Path(str(cast(Distiller, cli.model).source.checkpoint)), "student": last(cli.folder)}
    networks = {side: load_network(path).network for side, path in weights.items()}
    index = data.split_index("test")
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[: setting.images]]
    images = batches(data, index)
    answers = agreement(networks["student"], networks["teacher"], images)
    found = {}
    for side, network in networks.items():
        said = answers.student if side == "student" else answers.teacher
        seen = amplitudes(network, images), heat_map(network, images)
        found[side] = Trained(weights[side], said.correct, said.confidence, *seen)
    facts = data.facts
    if facts.shape != (2, 1, 1):
        return Pair(found, None)
    test = data.batch("test", index)
    return Pair(found, Plane(test.x.numpy(), test.y.numpy(), facts.names, facts.box))


def batches(data: Images, index: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Test images, their labels and indices, a few at a time."""
    return [data.batch("test", part)[:3] for part in index.split(SIZE)]
