"""Threat models: which perturbations count, and the geometry of their balls."""

import math
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from torch import Tensor

from attacks.draws import Draws

Norm = Literal["linf", "l2"]


class Radius(float):
    """A length in the units of the box that may be written as a fraction: ``8/255``. It prints as it was written."""

    text: str

    def __new__(cls, value: float | str) -> "Radius":
        try:
            number = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"{value!r} is no length: expected a number such as 0.3 or a fraction such as 8/255."
            ) from None
        if not 0 <= number < float("inf"):
            raise ValueError(f"A length must be at least 0 and finite, got {value}.")
        radius = super().__new__(cls, number)
        radius.text = str(value) if isinstance(value, (str, Radius)) else f"{number:.6g}"
        return radius

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return (Radius, (self.text if "/" in self.text else float(self),))


register_type(Radius, serializer=lambda value: value.text if "/" in value.text else float(value), deserializer=Radius)


def _flat_norm(delta: Tensor) -> Tensor:
    """Euclidean norm of every image's perturbation, shaped to broadcast against it: (B, 1, 1, 1)."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))


EIGHT = Radius("8/255")


@dataclass(frozen=True)
class Threat:
    """All perturbations of norm at most ``eps`` that leave an image inside the box.

    Attributes:
        norm: ``linf`` (largest change of any value) or ``l2`` (Euclidean length over the whole image).
        eps: radius in the units of the box, so ``8/255`` for images in [0, 1].
        box: lowest and highest value of an input; None stands for the dataset's, [0, 1] where nobody says.
    """

    norm: Norm = "linf"
    eps: Radius = EIGHT
    box: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Radius(self.eps))
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}.")
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"A box goes from its lowest to its highest value, got {list(self.bounds)}.")
        # In l2 a meaningful radius may exceed the box's width; ten times the width is beyond any in use.
        limit = (high - low) * (1 if self.norm == "linf" else 10)
        if self.eps > limit:
            warnings.warn(
                f"eps = {self.eps} in {self.norm} is more than the whole box [{low:g}, {high:g}] allows: "
                f"did you mean {self.eps}/255?",
                stacklevel=2,  # one place for all threats, so that one warning is shown for all that repeat it
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """The box as numbers."""
        return (0.0, 1.0) if self.box is None else self.box

    def within(self, box: tuple[float, float]) -> "Threat":
        """The same threat in a dataset's box, unless it states its own."""
        return self if self.box is not None else replace(self, box=(float(box[0]), float(box[1])))

    def __str__(self) -> str:
        return f"{self.norm} {self.eps}"

    def clamp(self, x: Tensor) -> Tensor:
        """The nearest images inside the box."""
        return x.clamp(*self.bounds)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The images nearest to ``x_adv`` in the ball around ``x``, then in the box.

        The second projection cannot leave the ball, because the box is convex and holds ``x``.
        """
        return self.clamp(x + self.shorten(x_adv - x))

    def shorten(self, delta: Tensor) -> Tensor:
        """The perturbations of norm at most eps that are nearest to ``delta``."""
        eps = float(self.eps)
        if self.norm == "linf":
            return delta.clamp(-eps, eps)
        return delta * (eps / _flat_norm(delta).clamp_min(1e-12)).clamp_max(1.0)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm in which a linear function with this gradient rises fastest."""
        if self.norm == "linf":
            return gradient.sign()
        # Scaled first: the squares of a small gradient underflow.
        largest = gradient.abs().flatten(1).amax(1).view(-1, *[1] * (gradient.dim() - 1))
        gradient = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
        return gradient / _flat_norm(gradient).clamp_min(1e-12)

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        """A point drawn uniformly from the ball around each image, clamped to the box."""
        shape = x.shape[1:]
        eps = float(self.eps)
        if self.norm == "linf":
            delta = draws.uniform(shape, -eps, eps)
        else:
            # Uniform in a d-dimensional ball: a uniform direction, at a radius that is the d-th root of a uniform draw.
            direction = draws.normal(shape)
            radius = draws.uniform([1] * len(shape)) ** (1 / shape.numel())
            delta = eps * radius * direction / _flat_norm(direction).clamp_min(1e-12)
        return self.clamp(x + delta.to(x.dtype))

    def holds(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which images lie in the ball, but for rounding: bool (B,)."""
        # Each value is off by as much as an image's last bit.
        ulp = torch.finfo(x.dtype).eps * max(map(abs, self.bounds))
        slack = ulp if self.norm == "linf" else ulp * math.sqrt(x.shape[1:].numel())
        return self.distance(x_adv, x) <= float(self.eps) * (1 + 1e-4) + slack

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """How far each image has moved, in this norm: shape (B,)."""
        return self.length(x_adv - x)

    def length(self, delta: Tensor) -> Tensor:
        """How long each image's perturbation is, in this norm: shape (B,)."""
        delta = delta.flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)


# Otherwise jsonargparse cannot change a regime on the command line while keeping the attack of its config.
set_parsing_settings(subclasses_enabled=[Threat])
