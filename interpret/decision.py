"""What a network decides in the plane: class probabilities over a grid, their hardness, and which boxes they cut.

Sources: Zou 2023 (001), figures 2 and 3; Goldblum et al. 2020 (002), figure 2.
"""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from attacks.crafting import crafting
from attacks.records import Record
from interpret.calibration import HARD, hardness_records

CHUNK = 65_536  # points in a forward pass
FINENESS = 21  # points along each side of a box that is searched

# Okabe and Ito's colours, which most colour-blind people tell apart: yellow and grey last, near white as they are.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#999999")


class Hardness(NamedTuple):
    """How close to 0 and 1 a network's probabilities are.

    Attributes:
        mean: mean top probability.
        share: share of the points whose top probability exceeds 0.99.
    """

    mean: float
    share: float


def probabilities(model: nn.Module, points: Tensor, temperature: float = 1.0) -> Tensor:
    """Class probabilities ``softmax(z / T)`` at points of the plane, float64 (n, classes), on the points' device.

    Args:
        model: maps (B, 2, 1, 1) to logits; it is put into eval mode for the call and left as it was.
        points: coordinates (n, 2), or as images (n, 2, 1, 1), on the model's device.
        temperature: divides the logits; 1 as the network is used.

    Raises:
        ValueError: for points that are not in the plane, or logits that are not finite.
    """
    if points.shape[1:] not in ((2,), (2, 1, 1)) or not len(points):
        raise ValueError(
            f"Decisions are shown at points in the plane, (n, 2) or (n, 2, 1, 1) with n ≥ 1: got {tuple(points.shape)}."
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
    with crafting(model), torch.no_grad():
        logits = torch.cat([model(part) for part in points.reshape(-1, 2, 1, 1).split(CHUNK)])
    if not bool(logits.isfinite().all()):
        raise ValueError("The network's logits are not finite: no probability can be told from them.")
    return (logits.double() / temperature).softmax(1)


def decision_map(
    model: nn.Module, bounds: tuple[float, float], size: int = 300, temperature: float = 1.0
) -> np.ndarray:
    """Class probabilities over the square ``bounds`` × ``bounds``, float64 (size, size, classes).

    Entry [i, j] is at the middle of its pixel: y rises with i, x with j, so a picture of it has its origin below.

    Args:
        model: see :func:`probabilities`; on any device.
        bounds: lowest and highest coordinate, such as the box of the dataset's facts.
        size: pixels along each side.
        temperature: divides the logits. A network that was trained at T is shown at 1, as it is used.
    """
    low, high = bounds
    if not low < high or size < 1:
        raise ValueError(f"A map needs bounds that rise and a size of at least 1, got {bounds} and {size}.")
    middles = low + (torch.arange(size) + 0.5) * (high - low) / size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    points = torch.stack([x, y], -1).view(-1, 2).to(device)
    return probabilities(model, points, temperature).view(size, size, -1).cpu().numpy()


def colours(classes: int) -> np.ndarray:
    """The pure colour of every class, (classes, 3) in [0, 1].

    Red, green and blue for three, so that a mix is the picture of the papers: its channels are the probabilities.
    Otherwise Okabe and Ito's colours, and from nine classes on as many hues around the colour circle.
    """
    if classes == 3:
        return np.eye(3)
    if classes <= len(PALETTE):
        return np.array([mpl.colors.to_rgb(colour) for colour in PALETTE[:classes]])
    hues = np.arange(classes) / classes
    return mpl.colors.hsv_to_rgb(np.stack([hues, np.full(classes, 0.8), np.full(classes, 0.9)], 1))


def mixed(probabilities: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of class probabilities (..., classes): the classes' pure colours, weighted by them."""
    return (probabilities @ colours(probabilities.shape[-1])).clip(0, 1)


def crossed(model: nn.Module, points: Tensor, eps: float, bounds: tuple[float, float]) -> np.ndarray:
    """Which points' l-inf boxes of radius eps hold two classes by the network's prediction, bool (n,).

    Each box, cut to the bounds, is searched on a grid of 21 × 21 points, edges included: a region thinner than a tenth
    of eps may be missed.

    Args:
        model: see :func:`probabilities`.
        points: (n, 2) or (n, 2, 1, 1), on the model's device.
        eps: half the side of a box.
        bounds: lowest and highest coordinate that a point may have.
    """
    if not eps > 0:
        raise ValueError(f"The radius of a box must be positive, got {eps}.")
    steps = torch.linspace(-eps, eps, FINENESS, device=points.device, dtype=points.dtype)
    around = torch.cartesian_prod(steps, steps)
    boxes = (points.reshape(-1, 1, 2) + around).clamp(*bounds)
    predicted = probabilities(model, boxes.view(-1, 2)).argmax(1).view(len(points), -1)
    return (predicted != predicted[:, :1]).any(1).cpu().numpy()


def hardness(model: nn.Module, points: Tensor, temperature: float = 1.0) -> Hardness:
    """How hard a network's decisions are at some points (001, §5.1.1); arguments as of :func:`probabilities`."""
    return Hardness(*(record.value for record in _hardness(model, points, temperature)))


def _hardness(model: nn.Module, points: Tensor, temperature: float = 1.0) -> tuple[Record, Record]:
    return hardness_records(probabilities(model, points, temperature).amax(1).cpu().numpy(), 0.0)


def hardness_table(rows: Mapping[str, Mapping[str, nn.Module]], points: Tensor) -> Table:
    """Hardness beside the picture, a row for each network.

    Args:
        rows: as the picture takes them: ``{"teacher": {"T = 1": network, ...}, "student": ...}``.
        points: where to look, such as the test points.
    """
    table = Table(title=f"Hardness at {len(points)} points [95 % interval]", title_style="bold")
    table.add_column("")
    table.add_column("")
    for title in ("mean top probability", f"points of p > {HARD}, %"):
        table.add_column(title, justify="right")
    for side, networks in rows.items():
        for number, (title, network) in enumerate(networks.items(), 1):
            average, hard = _hardness(network, points)
            confidence = f"{average.value:.3f} [{average.low:.3f}, {average.high:.3f}]"
            percents = f"{hard.value:.1%} [{hard.low:.1%}, {hard.high:.1%}]".replace("%", "")
            table.add_row(side, title, confidence, percents, end_section=number == len(networks))
    return table
