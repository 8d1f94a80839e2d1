"""What networks see in a few fixed images, and what attacks make of one: explained, attacked and drawn."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import crafting
from attacks.draws import Draws
from interpret.attributions import Method, explain
from interpret.figures import COUNT, attack_pair, attribution_grid, class_name, model_row
from networks import Facts


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def map_pictures(
    student: nn.Module,
    teacher: nn.Module,
    others: Mapping[str, nn.Module],
    x: Tensor,
    target: Tensor,
    methods: Sequence[Method],
    adherence: Mapping[str, np.ndarray],
    facts: Facts,
    folder: Path,
) -> list[Path]:
    """Draws for each method a grid of images with both networks' maps, and the first image under every network.

    Args:
        student: maps images to logits.
        teacher: likewise.
        others: further networks by name, for the second picture.
        x: images in the box, (n, C, H, W), on the networks' device; the grid shows the first 8.
        target: the class that each is explained for, int64 (n,).
        methods: whose maps are drawn.
        adherence: by the methods' names, how alike the two maps of each image are, (n,), for the captions.
        facts: the dataset's.
        folder: where the pictures go.

    Returns:
        The files.
    """
    x, target = x[:COUNT], target[:COUNT]
    networks = {"teacher": teacher, "student": student, **others}
    # Only the first image is shown under the others.
    counts = {name: len(x) if name in ("teacher", "student") else 1 for name in networks}
    maps = {
        name: explain(network, x[: counts[name]], target[: counts[name]], methods).maps
        for name, network in networks.items()
    }
    images = x.cpu().numpy()
    classes = [class_name(int(c), facts) for c in target]
    pictures = []
    for method in methods:
        shown = {name: found[method.name].values.cpu().numpy() for name, found in maps.items()}
        values = adherence.get(method.name, np.empty(0))
        captions = [f"{name}, {value:.2f}" for name, value in zip(classes, values, strict=False)] or classes
        grid = folder / f"maps-{slug(method.name)}.png"
        row = folder / f"models-{slug(method.name)}.png"
        drawn = {name: values[0] for name, values in shown.items()}
        title = f"{method.name}: explained class, and absolute cosine of the maps" if len(values) else method.name
        pictures += [
            attribution_grid(images, shown["student"], shown["teacher"], facts, grid, captions=captions, title=title),
            model_row(images[0], drawn, facts, row, title=f"{method.name}, explained class {classes[0]}"),
        ]
    return [picture for picture in pictures if picture is not None]


def attack_picture(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    attacks: Mapping[str, Attack],
    seed: int,
    facts: Facts,
    path: Path,
) -> Path | None:
    """Draws what attacks do to the first image that a network classifies correctly, or to the first of all.

    Args:
        model: maps images to logits.
        x: images in the box, (n, C, H, W), on the model's device.
        y: labels, (n,).
        index: the images' indices, which the attacks' draws follow from, (n,).
        attacks: by name, complete with threat model and temperature; each makes all its steps.
        seed: of the draws.
        facts: the dataset's.
        path: of the picture.
    """
    found = attacked(model, x, y, index, attacks, seed)
    return attack_pair(found.image, found.clean, found.examples, found.label, facts, path)


class Attacked(NamedTuple):
    """One image and what attacks make of it.

    Attributes:
        image: as it is, (C, H, W).
        clean: probabilities of its classes, (classes,).
        examples: adversarial image (C, H, W) and its classes' probabilities, by the attack's name.
        label: the image's class.
    """

    image: np.ndarray
    clean: np.ndarray
    examples: dict[str, tuple[np.ndarray, np.ndarray]]
    label: int


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, index: Tensor, attacks: Mapping[str, Attack], seed: int
) -> Attacked:
    """What :func:`attack_picture` draws, whose arguments it takes."""

    def probabilities(x: Tensor) -> Tensor:
        with crafting(model), torch.no_grad():
            return model(x).double().softmax(1)

    right = probabilities(x).argmax(1) == y
    place = int(right.int().argmax())
    x, y, index = (values[place : place + 1] for values in (x, y, index))
    examples = {}
    for name, attack in attacks.items():
        x_adv = attack(model, x, y, Draws(index, seed))
        examples[name] = (x_adv[0].cpu().numpy(), probabilities(x_adv)[0].cpu().numpy())
    return Attacked(x[0].cpu().numpy(), probabilities(x)[0].cpu().numpy(), examples, int(y))
