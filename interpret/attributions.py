"""Which pixels a network's logit of one class depends on, by five methods."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from captum import attr
from torch import Tensor, nn

from attacks.crafting import crafting, upcast
from attacks.draws import Draws, hashed
from attacks.prepare import prepared
from interpret.shared import Layer, Passed, Wanted, shared_pass


@dataclass(frozen=True)
class Maps:
    """The attributions of a batch by one method.

    Attributes:
        values: signed, float32 at least, (B, C, H, W); of Grad-CAM (B, 1, H, W) and not negative.
        error: of Integrated Gradients alone, float64 (B,): how far the attributions' sum is from what it should be,
            relative: ``|sum - (z(x) - z(0))| / |z(x) - z(0)|``; not finite where the two logits are equal.
    """

    values: Tensor
    error: Tensor | None = None


@dataclass(frozen=True)
class Explained:
    """A batch explained.

    Attributes:
        logits: of the model, (B, classes).
        target: the class that each image was explained for, int64 (B,).
        maps: by the methods' names.
    """

    logits: Tensor
    target: Tensor
    maps: dict[str, Maps]


class Method(ABC):
    """An attribution method: ``method(model, x, target)``; see :func:`explain` for arguments and errors."""

    name: str

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Maps:
        return attribute(model, x, target, [self])[self.name]

    @property
    @abstractmethod
    def wanted(self) -> Wanted:
        """What it reads of the passes that methods share."""

    @abstractmethod
    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        """The attributions, from the shared passes and those of its own; the model is frozen and in eval mode."""


class Saliency(Method):
    """The gradient ``dz_target / dx`` (Simonyan et al. 2014), signed: who wants its absolute value takes it."""

    name = "Saliency"
    wanted = Wanted(gradient=True)

    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        assert passed.gradient is not None
        return Maps(passed.gradient)


class IntegratedGradients(Method):
    """Integrated Gradients (Sundararajan et al. 2017): ``x * mean over a in [0, 1] of dz_target / dx (a x)``.

    The baseline is zero: black, where the box begins at 0, and zero in any other box too.

    Args:
        steps: of the quadrature, by midpoints. The gradient of a ReLU network jumps along the way, so Gauss and
            Legendre's nodes, captum's default, need half as many again for the same error.
        chunk: evaluations per pass, images times steps; a single pass over all of them would be slower.

    Raises:
        ValueError: for fewer than 2 steps or 1 evaluation.
    """

    name = "Integrated Gradients"
    wanted = Wanted()

    def __init__(self, steps: int = 32, chunk: int = 100) -> None:
        if steps < 2 or chunk < 1:
            raise ValueError(
                f"Integrated Gradients take at least 2 steps and 1 evaluation per pass, got {steps} and {chunk}."
            )
        self.steps, self.chunk = steps, chunk

    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        fast = prepared(model, x[:2])
        parts = zip(x.split(self.chunk), passed.target.split(self.chunk), strict=True)
        values = torch.cat([self._integral(fast, part, target) for part, target in parts])
        with torch.no_grad():
            black = upcast(model(torch.zeros_like(x[:1]))).expand_as(passed.logits)
        rise = (passed.logits.double() - black.double()).gather(1, passed.target[:, None]).squeeze(1)
        return Maps(values, (values.double().flatten(1).sum(1) - rise).abs() / rise.abs())

    def _integral(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The attributions of at most ``chunk`` images."""

        def total(points: Tensor) -> Tensor:
            # Captum gives the batch once for each step. It would differentiate logit by logit, which costs more.
            classes = target.repeat(len(points) // len(target))
            return model(points).gather(1, classes[:, None]).sum(0)

        settings: Any = {"n_steps": self.steps, "method": "riemann_middle", "internal_batch_size": self.chunk}
        return attr.IntegratedGradients(total).attribute(x, **settings)


class GradCAM(Method):
    """Grad-CAM (Selvaraju et al. 2017), rectified, brought to the image's size by bilinear interpolation.

    Args:
        layer: name of the module whose output is looked at; by default the last of the network's ``stages()`` that
            gives out maps.
    """

    def __init__(self, layer: Layer = None) -> None:
        self.layer = layer
        self.name = "Grad-CAM" if layer is None else f"Grad-CAM {layer}"

    @property
    def wanted(self) -> Wanted:
        return Wanted(layers={self.layer})

    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        return Maps(_upsampled(passed.cams[self.layer], x))


class GuidedGradCAM(Method):
    """Guided Grad-CAM (Selvaraju et al. 2017): Grad-CAM times the guided gradient (Springenberg et al. 2015).

    Args:
        layer: see :class:`GradCAM`.
    """

    def __init__(self, layer: Layer = None) -> None:
        self.layer = layer
        self.name = "Guided Grad-CAM" if layer is None else f"Guided Grad-CAM {layer}"

    @property
    def wanted(self) -> Wanted:
        return Wanted(guided=True, layers={self.layer})

    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        assert passed.guided is not None
        return Maps(passed.guided * _upsampled(passed.cams[self.layer], x))


class SmoothGrad(Method):
    """SmoothGrad (Smilkov et al. 2017): mean of the signed gradients at ``x + e``, ``e ~ N(0, sigma^2)`` per value.

    The noise follows from the image itself, so two networks see the same noisy images, whatever batch they come in.

    Args:
        samples: noisy images per image.
        sigma: deviation of the noise, in the units of the box; the paper takes 10 to 20 % of its width.
        chunk: evaluations per pass, images times samples.

    Raises:
        ValueError: for fewer than 1 sample or 1 evaluation, or a negative or infinite sigma.
    """

    name = "SmoothGrad"
    wanted = Wanted()

    def __init__(self, samples: int = 25, sigma: float = 0.15, chunk: int = 100) -> None:
        if min(samples, chunk) < 1 or not 0 <= sigma < float("inf"):
            raise ValueError(
                "SmoothGrad takes at least 1 sample and 1 evaluation per pass and a finite sigma of at least 0, "
                f"got {samples}, {chunk} and {sigma}."
            )
        self.samples, self.sigma, self.chunk = samples, sigma, chunk

    def maps(self, model: nn.Module, x: Tensor, passed: Passed) -> Maps:
        fast = prepared(model, x[:2])
        parts = zip(x.split(self.chunk), passed.target.split(self.chunk), strict=True)
        return Maps(torch.cat([self._mean(fast, part, target) for part, target in parts]))

    def _mean(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The mean gradient of at most ``chunk`` images."""
        draws = Draws(hashed(x))
        at_once = self.chunk // len(x)
        total = torch.zeros_like(x)
        for done in range(0, self.samples, at_once):
            count = min(at_once, self.samples - done)
            # A stream for each sample, or the noise would depend on how many are drawn at once.
            streams = [draws.stream(number) for number in range(done, done + count)]
            noise = torch.stack([stream.normal(x.shape[1:]) for stream in streams], 1).to(x.dtype)
            noisy = (x[:, None] + self.sigma * noise).flatten(0, 1)
            passed = shared_pass(model, noisy, target.repeat_interleave(count), Wanted(gradient=True))
            assert passed.gradient is not None
            total += passed.gradient.unflatten(0, (-1, count)).sum(1)
        return total / self.samples


def suited(networks: Iterable[nn.Module]) -> list[Method]:
    """Saliency and Integrated Gradients, and Grad-CAM where every network names a stage that convolves."""
    every = [stages().values() if callable(stages := getattr(each, "stages", None)) else () for each in networks]
    convolves = [any(isinstance(m, nn.Conv2d) for stage in stages for m in stage.modules()) for stages in every]
    return [Saliency(), IntegratedGradients(), *([GradCAM()] if all(convolves) else [])]


def explain(model: nn.Module, x: Tensor, target: Tensor | None, methods: Collection[Method]) -> Explained:
    """Logits and attributions of a batch; the methods share one forward and one backward pass where they can.

    Saliency and Grad-CAM need no other passes, Guided Grad-CAM a second backward pass; the other methods have passes
    of their own. The model is put into eval mode with frozen parameters and is afterwards what it was, an exception
    included. Grad mode may be off around the call, and autocast on: maps are made in float32 at least.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes).
        x: images, float32 or float64; points are images (B, C, 1, 1).
        target: the class that each image is explained for, int64 (B,); None for the model's own prediction.
        methods: whose names differ.

    Raises:
        ValueError: for two methods of one name; images of another type or shape; targets of another type, shape or
            range; logits of another shape, or without a gradient; a model that draws from torch's generator in eval
            mode too; Grad-CAM of a network without a convolutional stage, or of a layer that gives no map or several;
            a guided method for a network that rectifies by anything but ``nn.ReLU`` modules, or not at all.
    """
    wanted = _wanted(x, methods)
    with crafting(model), torch.autocast(x.device.type, enabled=False):
        passed = shared_pass(model, x.detach().clone(), target, wanted)
        maps = {method.name: method.maps(model, x.detach().clone(), passed) for method in methods}
    return Explained(passed.logits, passed.target, maps)


def probe(model: nn.Module, x: Tensor, methods: Collection[Method]) -> None:
    """Raises ValueError where :func:`explain` would, or for logits that are not finite, by the shared passes alone."""
    wanted = _wanted(x, methods)
    with crafting(model), torch.autocast(x.device.type, enabled=False):
        logits = shared_pass(model, x.detach().clone(), None, wanted).logits
    if not bool(logits.isfinite().all()):
        raise ValueError(f"The logits of {type(model).__name__} are not finite: there is nothing to explain.")


def attribute(model: nn.Module, x: Tensor, target: Tensor | None, methods: Collection[Method]) -> dict[str, Maps]:
    """The maps of :func:`explain`, by the methods' names."""
    return explain(model, x, target, methods).maps


def _wanted(x: Tensor, methods: Collection[Method]) -> Wanted:
    """What the methods read of the shared passes; ValueError for images or methods that cannot be."""
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"Every method needs a name of its own, got {', '.join(names)}.")
    if x.ndim != 4 or not len(x) or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "Attributions are made of one or more float32 or float64 images (B, C, H, W), "
            f"got {x.dtype} of {tuple(x.shape)}."
        )
    every = [method.wanted for method in methods]
    return Wanted(
        any(each.gradient for each in every),
        any(each.guided for each in every),
        {layer for each in every for layer in each.layers},
    )


def _upsampled(cam: Tensor, x: Tensor) -> Tensor:
    return attr.LayerAttribution.interpolate(cam, tuple(x.shape[2:]), interpolate_mode="bilinear")
