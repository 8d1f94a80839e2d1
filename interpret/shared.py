"""One forward and as few backward passes as possible, for all that several attribution methods read of them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks.crafting import upcast
from interpret.guided import guiding

Layer = str | None  # a module's name; None for the last convolutional stage


@dataclass(frozen=True)
class Wanted:
    """What is to be read of the shared passes.

    Attributes:
        gradient: the gradient in the images.
        guided: the same with guided ReLUs.
        layers: whose Grad-CAM.
    """

    gradient: bool = False
    guided: bool = False
    layers: Collection[Layer] = ()


@dataclass(frozen=True)
class Passed:
    """What was read.

    Attributes:
        logits: (B, classes), float32 at least.
        target: the explained class of each image, int64 (B,).
        gradient: of the target's logit in the image, like the images.
        guided: the same with guided ReLUs.
        cams: Grad-CAM of each layer asked for, (B, 1, h, w) at that layer's resolution, not negative.
    """

    logits: Tensor
    target: Tensor
    gradient: Tensor | None = None
    guided: Tensor | None = None
    cams: Mapping[Layer, Tensor] = field(default_factory=dict)


def shared_pass(model: nn.Module, x: Tensor, target: Tensor | None, wanted: Wanted) -> Passed:
    """Logits, gradient and Grad-CAM by one forward and one backward pass; guided gradients by one backward more.

    Call it inside :func:`attacks.crafting.crafting`.

    Args:
        model: maps images to logits.
        x: images (B, C, H, W), a leaf of which nobody else knows.
        target: class of each image, int64 (B,); None for the predicted one.
        wanted: what is read.

    Raises:
        ValueError: see :func:`interpret.attributions.explain`.
    """
    inputs = [x.requires_grad_()] if wanted.gradient or wanted.guided else []
    with _watching(model, wanted.layers) as stages, guiding(model) if wanted.guided else nullcontext() as guide:
        before = _generator(x)
        with torch.set_grad_enabled(bool(inputs or wanted.layers)):
            logits = upcast(model(x))
        if not torch.equal(before, _generator(x)):
            raise ValueError(
                f"{type(model).__name__} draws at random in eval mode too, as dropout left active does, so its "
                "attributions would change from call to call: let it draw only while self.training."
            )
    if guide is not None:
        guide.require(model)
    target = _checked(target, logits, len(x))
    score = logits.gather(1, target[:, None]).sum()
    activations = {layer: _activation(model, layer, stages) for layer in wanted.layers}

    read = _gradients(model, score, [*inputs[: wanted.gradient], *activations.values()], again=wanted.guided)
    gradient = read.pop(0) if wanted.gradient else None
    cams = {layer: _cam(output, each) for (layer, output), each in zip(activations.items(), read, strict=True)}
    guided = None
    if guide is not None:
        guide.on = True
        (guided,) = _gradients(model, score, inputs)
    return Passed(logits.detach(), target, gradient, guided, cams)


def _gradients(model: nn.Module, score: Tensor, sources: list[Tensor], again: bool = False) -> list[Tensor]:
    """By each source, of which there may be none; ``again`` keeps the graph."""
    found: tuple[Tensor | None, ...] = (None,) * len(sources)
    if sources and score.requires_grad:
        found = torch.autograd.grad(score, sources, retain_graph=again, allow_unused=True)
    gradients = [each for each in found if each is not None]
    if len(gradients) < len(sources):
        raise ValueError(
            f"The logits of {type(model).__name__} have no gradient in what they are to be attributed to: "
            "something between them is not differentiable, or detached."
        )
    return gradients


def _generator(x: Tensor) -> Tensor:
    """State of the generator that dropout on these images' device draws from."""
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _checked(target: Tensor | None, logits: Tensor, count: int) -> Tensor:
    """The target classes, if they are that."""
    if logits.shape[:1] != (count,) or logits.ndim != 2:
        raise ValueError(f"{count} images gave logits of shape {tuple(logits.shape)}, expected ({count}, classes).")
    if target is None:
        return logits.detach().argmax(1)
    if target.shape != (count,) or target.dtype != torch.int64:
        raise ValueError(
            f"Targets are one int64 class per image, shape ({count},), got {target.dtype} of {tuple(target.shape)}."
        )
    classes = logits.shape[1]
    if count and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(
            f"Targets are classes from 0 to {classes - 1} of this network, got {int(target.min())} to "
            f"{int(target.max())}."
        )
    return target.clone()  # a tensor made in inference mode cannot be kept for a backward pass


@contextmanager
def _watching(model: nn.Module, layers: Collection[Layer]) -> Iterator[Mapping[Layer, Mapping[str, list[Any]]]]:
    """Collects what each layer, or for None each of the network's stages, gives out: by layer, by name, call by call.

    Where the images need no gradient the graph begins at the first of these maps: nothing before it is derived.
    """
    found: dict[Layer, dict[str, list[Any]]] = {}
    handles = []

    def watch(module: nn.Module, outputs: list[Any]) -> None:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            outputs.append(output)
            if not isinstance(output, Tensor) or output.ndim != 4:
                return output
            outputs[-1] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[-1].clone()  # what comes next may write into it

        handles.append(module.register_forward_hook(hook))

    try:
        for layer in layers:
            modules = _stages(model) if layer is None else {layer: _named(model, layer)}
            found[layer] = {name: [] for name in modules}
            for name, module in modules.items():
                watch(module, found[layer][name])
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _stages(model: nn.Module) -> Mapping[str, nn.Module]:
    """The stages that a network names itself."""
    stages = getattr(model, "stages", None)
    if not callable(stages):
        raise ValueError(
            f"{type(model).__name__} names no stages, so Grad-CAM cannot know its last convolutional one: "
            "name it, as in GradCAM(layer='features.5')."
        )
    return stages()


def _named(model: nn.Module, layer: str) -> nn.Module:
    """A module by its name."""
    try:
        return model.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in model.named_children()]
        raise ValueError(
            f"{type(model).__name__} has no module '{layer}' for Grad-CAM to look at: it has {', '.join(names)}."
        ) from None


def _activation(model: nn.Module, layer: Layer, stages: Mapping[Layer, Mapping[str, list[Any]]]) -> Tensor:
    """The one map that a layer gave out; for None, that of the last stage which gave out a map."""
    maps = {
        name: outputs
        for name, outputs in stages[layer].items()
        if outputs and all(isinstance(output, Tensor) and output.ndim == 4 for output in outputs)
    }
    if not maps:
        what = "has no convolutional stage" if layer is None else "has no convolutional layer of that name"
        raise ValueError(
            f"{type(model).__name__} {what}: Grad-CAM needs a map (B, C, H, W), and none came from "
            f"{', '.join(stages[layer]) or 'its stages'}; ask for a gradient method."
        )
    name, outputs = list(maps.items())[-1]
    if len(outputs) > 1:
        raise ValueError(
            f"'{name}' of {type(model).__name__} is called {len(outputs)} times for one batch, so it has no one map: "
            "name another layer for Grad-CAM."
        )
    return outputs[0]


def _cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): ``ReLU(sum_k mean_ij(dz / dA^k_ij) A^k)``, (B, 1, h, w)."""
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * activation.detach()).sum(1, keepdim=True).relu()
