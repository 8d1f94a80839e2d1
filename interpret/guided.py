"""Guided gradients, and the check that a network has nothing which would leave them plain without a word."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CLAMPS = (aten.clamp, aten.clamp_)
# Operations that rectify where their lower bound is 0, and what we call them; ReLU6 is a hardtanh.
BOUNDED = {
    **dict.fromkeys((*CLAMPS, aten.clamp_min, aten.clamp_min_, aten.threshold, aten.threshold_), "clamp(min=0)"),
    **dict.fromkeys((aten.hardtanh, aten.hardtanh_), "ReLU6"),
}


class Guide:
    """Says whether the next backward pass is guided."""

    def __init__(self) -> None:
        self.on = False
        self.modules = 0  # rectifications by nn.ReLU
        self.others: set[str] = set()  # what rectified elsewhere

    def require(self, model: nn.Module) -> None:
        """Raises ValueError where some rectification is not by an ``nn.ReLU``, or none is."""
        what = None
        if self.others:
            what = f"rectifies by {', '.join(sorted(self.others))} outside nn.ReLU modules"
        elif not self.modules:
            what = "calls no nn.ReLU module"
        if what:
            raise ValueError(
                f"{type(model).__name__} {what}, where guided gradients would be plain ones: "
                "give it an nn.ReLU module for each rectification, or ask for GradCAM."
            )

    def clamp(self, gradient: Tensor) -> Tensor | None:
        """The rule of a guided ReLU: no negative gradient passes it."""
        return gradient.clamp_min(0) if self.on else None


class _Watch(TorchDispatchMode):
    """Sees what is computed, whatever it is called by in Python: ``F.relu``, ``torch.relu`` and ``x.relu_()`` alike."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide
        self.inside = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not self.inside and (name := _rectifier(func.overloadpacket, args)):
            self.guide.others.add(name)
        return func(*args, **(kwargs or {}))


def _rectifier(operation: Any, args: tuple[Any, ...]) -> str | None:
    """What a low-level operation is called where it rectifies; a clamp between two bounds is none."""
    if operation in (aten.relu, aten.relu_):
        return "F.relu"
    low, high, *_ = (*args[1:], None, None)
    if not isinstance(low, (int, float)) or low != 0 or (operation in CLAMPS and high is not None):
        return None
    return BOUNDED.get(operation)


@contextmanager
def guiding(model: nn.Module) -> Iterator[Guide]:
    """Inside, a forward pass is built such that its backward passes are guided while the guide is ``on``.

    Guided backpropagation (Springenberg et al. 2015): at every ReLU the gradient that arrives is rectified too. A hook
    on each ReLU's output does that, so one graph serves plain and guided gradients, a module may be called several
    times, and what else reads its input keeps its own gradient (captum's hook on the input rectifies that as well).
    """
    guide = Guide()
    watch = _Watch(guide)

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        watch.inside += 1

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        watch.inside -= 1
        guide.modules += 1
        if output.requires_grad:
            output.register_hook(guide.clamp)

    rectifiers = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    handles = [module.register_forward_pre_hook(enter) for module in rectifiers]
    handles += [module.register_forward_hook(leave) for module in rectifiers]
    try:
        with watch:
            yield guide
    finally:
        for handle in handles:
            handle.remove()
