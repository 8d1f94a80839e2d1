"""Does the student look where its teacher looks? Attribution maps compared, beside what mere chance would score."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from attacks.crafting import crafting
from interpret.attributions import Explained, GradCAM, GuidedGradCAM, Method, Saliency, explain
from interpret.measures import MEASURES, Measure
from interpret.scores import PAIR, RESERVED, SHIFTED, UNTRAINED, Adherence

Target = Literal["teacher", "label"]
Compat = Literal["zou2023"]
Batch = tuple[Tensor, Tensor, Tensor]
Maps = Mapping[str, Tensor]  # by method

PUBLISHED = 100  # images in a batch of the code published with Zou 2023


@torch.inference_mode(False)  # under it nothing may be differentiated
def adherence(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    methods: Sequence[Method],
    *,
    untrained: nn.Module,
    controls: Mapping[str, nn.Module] | None = None,
    target: Target = "teacher",
    compat: Compat | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Adherence:
    """Compares the attributions of student and teacher, image by image, and those of controls with the teacher's.

    Both explain the same class of each image. The control ``shifted`` compares the student's map of an image with the
    teacher's of the next one, of the first for the last, in the order in which they come: what both look at in any
    image, such as its middle, is no adherence. Where neighbours are of one class, as in a sorted test set, it is the
    stricter. Every network is left exactly as it was, and explains each batch once.

    Args:
        student: maps images (B, C, H, W) to logits (B, classes).
        teacher: likewise, for the same classes.
        batches: (images in the box, labels (B,), indices (B,)), on the networks' device; how they are cut into batches
            does not matter.
        methods: whose maps are compared; their names differ.
        untrained: the student's architecture with fresh weights: what the architecture alone scores.
        controls: further networks by name, such as a student that was trained without the teacher.
        target: explain the class that the teacher predicts, or the true one.
        compat: ``zou2023`` gives the figure of the code published with paper 001 in place of the measures: the cosine
            of all maps of 100 images as one vector, averaged over such batches, for the true class, with Guided
            Grad-CAM where the paper says Grad-CAM. Its saliency is absolute, its other maps are signed. (It normalised
            images outside the network, so its Integrated Gradients began at mid-grey, where ours begin at zero.)
        seed: of the bootstrap.
        progress: called after each batch with the number of images that are done.

    Raises:
        ValueError: for no images, no methods, networks of different numbers of classes, labels that there is no class
            for, maps that are not finite, a control of a name that is taken, or what a method refuses.
    """
    networks = {"teacher": teacher, PAIR: student, UNTRAINED: untrained, **(controls or {})}
    _require(target, compat, methods, controls or {})
    if compat is not None:
        methods, target = published(methods), "label"
    comparison = _Comparison(methods, [name for name in networks if name != "teacher"], compat)
    images: list[Tensor] = []
    targets: list[Tensor] = []
    begun = time.perf_counter()
    for x, y, index in batches:
        if not len(y):
            continue
        if not images:
            _same_classes(networks, x[:1])
        told = explain(teacher, x, y.long() if target == "label" else None, methods)
        comparison.begin(told)
        for name, network in networks.items():
            if name != "teacher":
                comparison.add(name, explain(network, x, told.target, methods))
        images.append(index.cpu())
        targets.append(told.target.cpu())
        if progress is not None:
            progress(sum(map(len, images)))
    if not images:
        raise ValueError("Adherence was asked for on no images: give at least one batch.")
    values, errors = comparison.finish()
    seconds = time.perf_counter() - begun
    return Adherence(torch.cat(images).numpy(), torch.cat(targets).numpy(), values, errors, seconds, seed)


class _Comparison:
    """Collects what the measures say of the maps of each network and the teacher's, batch by batch."""

    def __init__(self, methods: Sequence[Method], names: Sequence[str], compat: Compat | None) -> None:
        self.compat = compat
        self.measures = {method.name: _measures(method, compat) for method in methods}
        # In the order of the columns: the pair, the controls that are always there, the others.
        self.names = [PAIR, SHIFTED, *names[1:]]
        self.parts: dict[tuple[str, str, str], list[Tensor]] = {}
        self.errors: dict[tuple[str, str], list[Tensor]] = {}
        self.told: Maps = {}
        self.first: Maps = {}  # the teacher's maps of the first of all images
        self.last: Maps = {}  # the student's maps of the last image so far
        self.count = 0

    def begin(self, told: Explained) -> None:
        """A batch begins, as the teacher explains it."""
        self.told = self._read("teacher", told)
        self.count += len(told.target)

    def add(self, name: str, explained: Explained) -> None:
        """The maps of another network for the same images and the same classes."""
        found = self._read("student" if name == PAIR else name, explained)
        self._compare(name, found, self.told)
        if name == PAIR:
            if self.last:  # the batch's images are the neighbours of those before them, wherever the batch was cut
                before = {key: torch.cat([self.last[key], maps[:-1]]) for key, maps in found.items()}
                self._compare(SHIFTED, before, self.told)
            else:
                self.first = _part(self.told, slice(0, 1))
                self._compare(SHIFTED, _part(found, slice(0, -1)), _part(self.told, slice(1, None)))
            self.last = _part(found, slice(-1, None))

    def finish(self) -> tuple[dict[tuple[str, str], dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
        """Values and convergence errors, as :class:`Adherence` has them."""
        # A single image has no neighbour but itself.
        last = self.last if self.count > 1 else {key: torch.zeros_like(maps) for key, maps in self.last.items()}
        self._compare(SHIFTED, last, self.first)
        values = {
            (method, measure): {name: self._values(method, measure, name) for name in self.names}
            for method, measures in self.measures.items()
            for measure in measures
        }
        errors: dict[str, dict[str, np.ndarray]] = {}
        for (method, role), parts in self.errors.items():
            errors.setdefault(method, {})[role] = torch.cat(parts).numpy()
        return values, errors

    def _values(self, method: str, measure: str, name: str) -> np.ndarray:
        values = torch.cat(self.parts[method, measure, name]).numpy()
        return _whole(values) if self.compat else values

    def _read(self, role: str, explained: Explained) -> Maps:
        for method, maps in explained.maps.items():
            if not bool(maps.values.isfinite().all()):
                raise ValueError(f"{method} of the network '{role}' is not finite: look for overflow in its weights.")
            if maps.error is not None and role in ("student", "teacher"):
                self.errors.setdefault((method, role), []).append(maps.error.cpu())
        return {method: maps.values for method, maps in explained.maps.items()}

    def _compare(self, name: str, found: Maps, told: Maps) -> None:
        for method, measures in self.measures.items():
            if len(found[method]):
                for measure, function in measures.items():
                    part = function(found[method], told[method]).cpu()
                    self.parts.setdefault((method, measure, name), []).append(part)


def _part(maps: Maps, rows: slice) -> Maps:
    return {method: values[rows].clone() for method, values in maps.items()}


def _measures(method: Method, compat: Compat | None) -> Mapping[str, Measure]:
    """Captum's saliency is absolute by default, its other attributions are signed."""
    if compat is None:
        return MEASURES
    return {compat: (lambda a, b: _products(a.abs(), b.abs())) if isinstance(method, Saliency) else _products}


def _products(a: Tensor, b: Tensor) -> Tensor:
    """What a cosine of several maps as one vector is made of: each map's ``<a, b>``, ``<a, a>``, ``<b, b>``, (B, 3)."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return torch.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)], 1)


def _whole(products: np.ndarray) -> np.ndarray:
    """The mean over batches of the cosine ``ab / sqrt(aa bb)``, with sums over a batch, and what each image does to it.

    Returns:
        (n,): their mean is the figure, and each is off it by what the figure's derivative makes of the image's share
        of its batch's sums (the infinitesimal jackknife), so that resampling the images gives the figure's interval.
    """
    begins = np.arange(0, len(products), PUBLISHED)
    sizes = np.diff([*begins, len(products)])
    sums = np.add.reduceat(products, begins)
    defined = sums[:, 1] * sums[:, 2] > 0
    sums[~defined] = np.nan
    cosines = sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])
    ab, aa, bb = (products / sums.repeat(sizes, 0)).T
    # Batches count alike, and an image of a smaller one has the larger share of it.
    scale = sizes[defined].sum() / max(1, defined.sum())
    return cosines[defined].mean() + scale * cosines.repeat(sizes) * (ab - (aa + bb) / 2) if defined.any() else ab


def published(methods: Sequence[Method]) -> list[Method]:
    """Guided Grad-CAM in the place of Grad-CAM, once."""
    changed = [GuidedGradCAM(method.layer) if isinstance(method, GradCAM) else method for method in methods]
    return list({method.name: method for method in changed}.values())


def _require(target: str, compat: str | None, methods: Sequence[Method], controls: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for what can be told before a network is called."""
    if target not in get_args(Target) or compat not in (None, *get_args(Compat)):
        raise ValueError(f"target is 'teacher' or 'label' and compat None or 'zou2023', got {target!r} and {compat!r}.")
    if not methods:
        raise ValueError("Adherence was asked for by no attribution method: give at least one.")
    if taken := sorted(set(controls) & set(RESERVED)):
        raise ValueError(f"A control cannot be called {taken[0]!r}, which names a figure of its own: rename it.")


def _same_classes(networks: Mapping[str, nn.Module], x: Tensor) -> None:
    """Raises ValueError where a network does not tell as many classes apart as the teacher."""
    classes = {}
    for name, network in networks.items():
        with crafting(network), torch.no_grad():
            classes["student" if name == PAIR else name] = network(x).shape[1]
    for name, count in classes.items():
        if count != classes["teacher"]:
            raise ValueError(
                f"The network '{name}' tells {count} classes apart, the teacher {classes['teacher']}: "
                "adherence needs networks of the same classes."
            )
