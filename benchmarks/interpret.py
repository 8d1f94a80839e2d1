"""How fast attributions are beside captum's defaults: ``python -m benchmarks.interpret [--folder IMAGES]``.

Every row gives the same images, network and target classes to ours and to captum, in turn within each round, and takes
process-CPU seconds at one thread. Images are scikit-learn's digits, or those of a folder with one folder per class
(MNIST or CIFAR, say); the networks are trained on them at the start. Beside the speed stands how far the two results
are apart, and for Integrated Gradients how far either is from the integral.
"""

import argparse
import platform
import shlex
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import captum.attr
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.common import processor, said
from benchmarks.subjects import Subject, subject, train
from datamodules import ImageFolder
from interpret import GradCAM, GuidedGradCAM, IntegratedGradients, Method, Saliency, SmoothGrad, explain
from networks import DefensiveCNN, Network, WideResNet
from networks.counts import multiply_adds, parameters

STEPS = 1000  # of the integral that Integrated Gradients are held against
EXACT = 8  # images for which it is computed
SAMPLES, SIGMA = 25, 0.15
LONG = 2.0  # seconds that a row takes in a round, about
INTEGRATED = IntegratedGradients.name
COLUMNS = ("method", "ours, images/s", "captum, images/s", "captum's time over ours", "target", "difference")
LEGEND = (
    "Images/s: by the median of the rounds. Time over ours: in the same round, median (lowest–highest).",
    "Difference: |ours - captum's| / |captum's| of the maps, mean over the images (mean of 1 - cosine in parentheses). "
    "SmoothGrad's noise differs.",
    f"From the integral: the same against {STEPS} midpoints, for {EXACT} images.",
    "Captum: one call after another, each with its defaults but for signed values, ReLU on Grad-CAM and bilinear "
    f"upsampling; Integrated Gradients 50 steps in one pass; SmoothGrad's {SAMPLES} samples in one pass.",
)

Maps = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What both are given: a network, its last convolutional stage, images, and the classes to explain."""

    model: nn.Module
    stage: nn.Module
    x: Tensor
    target: Tensor

    def saliency(self) -> Tensor:
        return captum.attr.Saliency(self.model).attribute(self.x, self.target, abs=False)

    def cam(self) -> Tensor:
        values = captum.attr.LayerGradCam(self.model, self.stage).attribute(self.x, self.target, relu_attributions=True)
        shape = tuple(self.x.shape[2:])
        return captum.attr.LayerAttribution.interpolate(values, shape, interpolate_mode="bilinear")

    def guided(self) -> Tensor:
        method = captum.attr.GuidedGradCam(self.model, self.stage)
        return method.attribute(self.x, self.target, interpolate_mode="bilinear")

    def integrated(self) -> Tensor:
        return captum.attr.IntegratedGradients(self.model).attribute(self.x, target=self.target)

    def smooth(self) -> Tensor:
        method = captum.attr.NoiseTunnel(captum.attr.Saliency(self.model))
        return method.attribute(self.x, nt_samples=SAMPLES, stdevs=SIGMA, target=self.target, abs=False)

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.x)


@dataclass(frozen=True)
class Row:
    """A comparison.

    Attributes:
        methods: ours, in one call.
        peer: what captum does for the same, by our methods' names.
        goal: by which factor ours is to be faster; None for none.
    """

    methods: Sequence[Method]
    peer: Callable[[Task], Maps]
    goal: float | None = None


def _integrated(task: Task) -> Maps:
    return {INTEGRATED: task.integrated()}


ROWS = {
    "Saliency": Row([Saliency()], lambda task: {"Saliency": task.saliency()}),
    "Grad-CAM": Row([GradCAM()], lambda task: {"Grad-CAM": task.cam()}),
    "Saliency + Grad-CAM": Row(
        [Saliency(), GradCAM()], lambda task: {"Saliency": task.saliency(), "Grad-CAM": task.cam()}, 1.5
    ),
    "logits + Saliency + Grad-CAM": Row(
        [Saliency(), GradCAM()],
        lambda task: {"logits": task.logits(), "Saliency": task.saliency(), "Grad-CAM": task.cam()},
        1.5,
    ),
    "Guided Grad-CAM": Row([GuidedGradCAM()], lambda task: {"Guided Grad-CAM": task.guided()}),
    "Saliency + Grad-CAM + Guided Grad-CAM": Row(
        [Saliency(), GradCAM(), GuidedGradCAM()],
        lambda task: {"Saliency": task.saliency(), "Grad-CAM": task.cam(), "Guided Grad-CAM": task.guided()},
    ),
    "Integrated Gradients, 32 steps": Row([IntegratedGradients(32)], _integrated, 4),
    "Integrated Gradients, 24 steps": Row([IntegratedGradients(24)], _integrated, 4),
    "Integrated Gradients, 16 steps": Row([IntegratedGradients(16)], _integrated, 4),
    f"SmoothGrad, {SAMPLES} samples": Row([SmoothGrad(SAMPLES, SIGMA)], lambda task: {"SmoothGrad": task.smooth()}),
}


@dataclass
class Measured:
    """A row's outcome, round by round: seconds of both, and the results of the last round."""

    ours: list[float] = field(default_factory=list)
    captum: list[float] = field(default_factory=list)
    found: Maps = field(default_factory=dict)
    expected: Maps = field(default_factory=dict)


def measure(rows: dict[str, Row], task: Task, rounds: int, say: Console) -> dict[str, Measured]:
    """Runs every row in every round, ours and captum's in turn, as often as makes for a time that can be measured."""
    measured = {name: Measured() for name in rows}
    for number in range(1, rounds + 1):
        for name, row in rows.items():
            each = measured[name]
            pairs = [_seconds(row, task, each)]
            repeats = round(LONG / max(sum(pairs[0]), 1e-3))
            if repeats:  # a short first pass does not count: what ran before it has left the memory as it needed it
                pairs = [_seconds(row, task, each) for _ in range(repeats)]
            ours, theirs = (sum(times) / len(pairs) for times in zip(*pairs, strict=True))
            each.ours.append(ours)
            each.captum.append(theirs)
        say.print(f"round {number} of {rounds} done")
    return measured


def _seconds(row: Row, task: Task, into: Measured) -> tuple[float, float]:
    """Process-CPU seconds of ours and of captum's."""
    began = time.process_time()
    explained = explain(task.model, task.x, task.target, row.methods)
    between = time.process_time()
    expected = row.peer(task)
    ended = time.process_time()
    into.found = {key: maps.values for key, maps in explained.maps.items()} | {"logits": explained.logits}
    into.expected = {key: values.detach() for key, values in expected.items()}
    return between - began, ended - between


def apart(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean relative distance of the maps, and their mean 1 - cosine; maps that are zero are left out."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    length = b.norm(dim=1)
    cosine = (a * b).sum(1) / (length * a.norm(dim=1))
    distance = (a - b).norm(dim=1) / length
    return float(distance.nanmean()), max(0.0, float((1 - cosine).nanmean()))


def shown(distances: tuple[float, float]) -> str:
    """The same as text."""
    distance, turned = distances
    return f"{distance:.2%} ({turned:.1g})" if distance else "0"


def table(measured: dict[str, Measured], task: Task, integral: Tensor) -> list[list[str]]:
    """The rows' cells, by :data:`COLUMNS`."""
    cells = []
    for name, each in measured.items():
        ratios = [theirs / ours for theirs, ours in zip(each.captum, each.ours, strict=True)]
        distances = {key: apart(each.found[key], values) for key, values in each.expected.items()}
        difference = ", ".join(map(shown, distances.values()))
        targets = []
        if (goal := ROWS[name].goal) is not None:
            targets.append(f"≥ {goal:g} {'met' if median(ratios) >= goal else 'missed'}")
        if found := distances.get(INTEGRATED):
            targets.append(f"< 1 % {'met' if found[0] < 0.01 else 'missed'}")
            ours, theirs = (shown(apart(maps[INTEGRATED][:EXACT], integral)) for maps in (each.found, each.expected))
            difference += f"; from the integral: ours {ours}, captum's {theirs}"
        speeds = [f"{len(task.x) / median(seconds):,.0f}" for seconds in (each.ours, each.captum)]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        cells.append([name, *speeds, ratio, ", ".join(targets), difference])
    return cells


def folder_subject(root: Path, images: int) -> Subject:
    """Trains a network on a folder's images: the CNN of defensive distillation on grey ones, a WRN-16-2 on colour."""
    with Image.open(next(path for path in sorted(root.rglob("*")) if path.suffix in (".png", ".jpg", ".jpeg"))) as one:
        channels, size = (1 if one.mode == "L" else 3), one.size[0]
    data = ImageFolder(str(root), size, channels)
    torch.manual_seed(0)
    (x, y), (x_test, y_test) = (data.load(train) for train in (True, False))
    order, chosen = torch.randperm(len(x))[:images], torch.randperm(len(x_test))[:2000]
    network: Network = DefensiveCNN(data.facts, "mnist") if channels == 1 else WideResNet(data.facts, 16, 2)
    train(network, x[order] / 255, y[order], 3, None, "cpu")
    x_test, y_test = x_test[chosen] / 255, y_test[chosen]
    with torch.no_grad():
        right = torch.cat([network(part).argmax(1) for part in x_test.split(200)]) == y_test
    cost = multiply_adds(network, data.facts.shape)
    about = (
        f"{type(network).__name__}: {parameters(network) / 1e6:.2f}M parameters, {cost / 1e6:.1f}M multiply-adds, "
        f"trained on {len(order)} images of {root.name} ({channels}×{size}×{size}), "
        f"clean accuracy {right.float().mean():.1%}"
    )
    return Subject(network, about, cost, x_test[right], y_test[right])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interpret", description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of images to take instead of the digits")
    parser.add_argument("--train", type=int, default=8000, help="of the folder's images, so many to train on")
    parser.add_argument("--images", type=int, default=50, help="images to explain, in one batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="; ".join(ROWS))
    parser.add_argument("--networks", nargs="+", choices=("cnn", "wrn"), default=["cnn", "wrn"], help="on the digits")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.images, options.train) < 1:
        parser.error("--rounds, --images and --train must be at least 1.")
    warnings.filterwarnings("ignore")  # captum's hooks
    torch.set_num_threads(1)
    say, out = Console(stderr=True), Console(highlight=False, markup=False, soft_wrap=True)
    rows = {name: ROWS[name] for name in options.only}
    out.print(f"{processor()}, {torch.get_num_threads()} thread, process-CPU seconds, float32")
    out.print(f"Python {platform.python_version()}, torch {torch.__version__}, captum {version('captum')}")
    command = shlex.join(["python", "-m", "benchmarks.interpret", *said(arguments)])
    out.print(f"{datetime.now(UTC):%Y-%m-%d}: {command}; {options.images} images, rounds: {options.rounds}")
    with threadpool_limits(1):
        for kind in options.networks if options.folder is None else ["folder"]:
            say.print("Training a network …")
            on = subject(kind, "cpu", False) if kind != "folder" else folder_subject(options.folder, options.train)
            assert isinstance(on.network, Network)
            x, target = on.x[: options.images], on.y[: options.images]
            task = Task(on.network, list(on.network.stages().values())[-1], x, target)
            integral = IntegratedGradients(STEPS)(on.network, x[:EXACT], target[:EXACT]).values
            rich = Table(*COLUMNS, title=on.about, title_justify="left", box=SIMPLE_HEAD)
            for cells in table(measure(rows, task, options.rounds, say), task, integral):
                rich.add_row(*cells)
            out.width = max(out.width, 150)  # a narrower table cannot be read
            out.print(rich, soft_wrap=False)
    out.print("\n".join(LEGEND))


if __name__ == "__main__":
    main()
