"""How strongly a network's outputs, and its loss, move: gradient amplitudes and a heat map of its layers.

Sources: Papernot et al. 2016 (000), §V-C, for the amplitudes; 003, figure 1, for the heat map.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.records import Record, mean, median, share

Of = Literal["probabilities", "logits"]
Batch = tuple[Tensor, Tensor, Tensor]

# Edges of the paper's bins. What exceeds the last, as it may where pixels are not the unit, counts to the last bin.
BINS = (0.0, *(10.0**power for power in range(-40, -4, 5)), 1e-3, 1.0)
NAMES = ("< 1e-40", *(f"1e{low}..1e{low + 5}" for low in range(-40, -5, 5)), "1e-5..1e-3", "≥ 1e-3")


@torch.inference_mode(False)  # under it no tensor may be differentiated
@torch.enable_grad()
def amplitudes(
    model: nn.Module, batches: Iterable[Batch], *, of: Of = "probabilities", temperature: float = 1.0
) -> np.ndarray:
    """The mean absolute entry of every image's full Jacobian ``dF/dX`` (000, §V-C), float64 (n,), in 1 / box units.

    Computed in float64 on a copy, by one forward pass and a backward pass for every class. The rows of the
    probabilities' Jacobian are ``F_c sum_k (1[k = c] - F_k) dz_k/dX / T``, where ``1 - F_c`` is the sum of the other
    probabilities: taken from 1, it would lose all that is smaller than 1e-16, and a hardened network's are.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes); it is left as it is.
        batches: (images, labels, indices), on the model's device.
        of: differentiate the ``probabilities``, as the paper does, or the ``logits``, which no softmax has flattened.
        temperature: divides the logits; 1 as the network is used.

    Raises:
        ValueError: for no images, or logits that are not finite or do not depend on the images.
    """
    if of not in ("probabilities", "logits"):
        raise ValueError(f"A Jacobian is one of 'probabilities' or 'logits', got {of!r}.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
    model = _double(model)
    found = []
    for x, _, _ in batches:
        x = x.detach().double().clone().requires_grad_()  # a tensor made under inference mode cannot enter a graph
        logits = _finite(model(x)) / temperature
        if not logits.requires_grad:
            raise ValueError("The network's logits have no gradient in its images: it has no sensitivity to measure.")
        probabilities = logits.detach().softmax(1)
        classes = logits.shape[1]
        total = x.new_zeros(len(x))
        for c in range(classes):
            row = torch.zeros_like(probabilities)
            if of == "probabilities":
                row = -probabilities
                others = probabilities.clone()
                others[:, c] = 0
                row[:, c] = others.sum(1)
                row = probabilities[:, c : c + 1] * row
            else:
                row[:, c] = 1
            (gradient,) = torch.autograd.grad(logits, x, row, retain_graph=c < classes - 1)
            total += gradient.abs().flatten(1).mean(1)
        found.append((total / classes).cpu().numpy())
    if not found:
        raise ValueError("Amplitudes were asked for of no images: give at least one batch.")
    return np.concatenate(found)


def _double(model: nn.Module) -> nn.Module:
    """A frozen copy in float64 and eval mode: amplitudes near 1e-40 are subnormal in float32."""
    return copy.deepcopy(model).double().eval().requires_grad_(False)


def _finite(logits: Tensor) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise ValueError("The network's logits are not finite: no sensitivity can be told from them.")
    return logits


def counts(values: np.ndarray) -> np.ndarray:
    """How many amplitudes (n,) lie in each of the paper's bins, int (10,). A bin holds its lower edge."""
    return np.bincount(np.searchsorted(BINS[1:-1], values, side="right"), minlength=len(NAMES))


def shares(values: np.ndarray) -> np.ndarray:
    """The shares of amplitudes (n,) in each of the paper's bins, (10,); they sum to 1."""
    return counts(values) / len(values)


def records(values: np.ndarray, seconds: float, *, of: Of = "probabilities") -> list[Record]:
    """The mean and the median amplitude with their intervals, and the share of images in each bin with Wilson's."""
    name, n = f"amplitude of {of}", len(values)
    binned = [share(f"{name} {bin}", int(k), n, seconds) for bin, k in zip(NAMES, counts(values), strict=True)]
    middle = [kind(f"{kind.__name__} {name}", values, "per unit of the box", seconds) for kind in (mean, median)]
    return [*middle, *binned]


def table(amplitudes: Mapping[str, np.ndarray]) -> Table:
    """A column per network or temperature, a row per bin of the paper, then median, mean and number of images."""
    shown = Table(title="Gradient amplitudes, % of the images", title_style="bold")
    shown.add_column("mean |dF/dX|")
    for name in amplitudes:
        shown.add_column(name, justify="right")
    columns = [100 * shares(values) for values in amplitudes.values()]
    for row, name in enumerate(NAMES):
        cells = [f"{column[row]:.1f}" if column[row] else "·" for column in columns]
        shown.add_row(name, *cells, end_section=row == len(NAMES) - 1)
    summaries: dict[str, Callable[[np.ndarray], float]] = {"median": np.median, "mean": np.mean}
    for name, summary in summaries.items():
        shown.add_row(name, *(f"{summary(values):.2g}" for values in amplitudes.values()))
    shown.add_row("images", *(str(len(values)) for values in amplitudes.values()))
    return shown


@torch.inference_mode(False)
@torch.enable_grad()
def heat_map(model: nn.Module, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
    """The mean absolute gradient of the loss in the weights of each layer, by stage (003, figure 1).

    The paper shows "average gradients at each layer of each stage". Here that is the gradient of the cross-entropy's
    mean over all given images, at T = 1, in eval mode, so that it does not depend on batches; of a layer its weights'
    mean absolute entry counts. Biases and normalisation are no layers of the figure. Computed in float64 on a copy.

    Args:
        model: maps images to logits. Its stages are those that it names (:meth:`networks.Network.stages`), layers
            outside of them go under the name of the child that holds them.
        batches: (images, labels (B,), indices), on the model's device.

    Returns:
        stage -> layer -> mean absolute gradient, in the order of the network. Weights that the loss does not depend on
        are left out.

    Raises:
        ValueError: for no images, logits that are not finite, or a model without weights.
    """
    model = _double(model)
    weights = {name: weight.requires_grad_() for name, weight in model.named_parameters() if weight.dim() > 1}
    if not weights:
        raise ValueError("The network has no layer with weights to make a heat map of.")
    totals: dict[str, Tensor] = {}
    n = 0
    for x, y, _ in batches:
        loss = F.cross_entropy(_finite(model(x.detach().double().clone())), y.clone(), reduction="sum")
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                totals[name] = totals[name] + gradient if name in totals else gradient
        n += len(y)
    if not n:
        raise ValueError("A heat map was asked for of no images: give at least one batch.")
    places = _stages(model)
    found: dict[str, dict[str, float]] = {}
    for name in weights:
        if name in totals:
            layer = name.removesuffix(".weight")
            stage = next((place for place in places if layer == place or layer.startswith(f"{place}.")), None)
            title = places[stage] if stage else layer.split(".")[0]
            inner = layer.removeprefix(stage or title).removeprefix(".") or title
            found.setdefault(title, {})[inner] = float((totals[name] / n).abs().mean())
    return found


def _stages(model: nn.Module) -> dict[str, str]:
    """The names of a network's stages, by where in the network they are; empty where it names none."""
    named = getattr(model, "stages", None)
    if not callable(named):
        return {}
    titles = {id(module): title for title, module in named().items()}
    return {path: titles[id(module)] for path, module in model.named_modules() if id(module) in titles}
