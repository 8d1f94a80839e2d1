"""Makes a network fast to attack without changing what it computes, and without touching it."""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from attacks.crafting import crafting

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepared(model: nn.Module, x: Tensor) -> nn.Module:
    """A frozen copy in eval mode, batch-norm folded into the convolutions before it, in channels-last order.

    A network that cannot be traced, or whose copy does not give the same logits on ``x`` but for rounding (because it
    draws at random, say), is returned as it is: a suite judges success on the original model anyway.

    Args:
        model: maps images to logits.
        x: images to compare the copy's logits on.
    """
    return Prepared(model, x).network


class Prepared:
    """A model and its :func:`prepared` copy, which takes over the weights of a model in training when it is told to.

    Args:
        model: maps images to logits.
        x: images to compare the copy's logits on, in float32 whatever autocast surrounds the call.

    Attributes:
        model: the model.
        network: the copy; the model itself where it cannot be copied.
        folded: the convolutions' names, each with the names of the batch-norms that are folded into it, in their order.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = self.network = model
        self.folded: dict[str, list[str]] = {}
        if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
            return
        try:
            with torch.no_grad():
                traced, folded = _folded(copy.deepcopy(model).eval())
                traced.requires_grad_(False).to(memory_format=torch.channels_last)
                answers = _answers(model, traced, x)
        except Exception:  # an arbitrary module may fail to be copied or traced in any way, and is then used as it is
            return
        if _close(*answers):
            self.network, self.folded = traced, folded

    def agrees(self, x: Tensor) -> bool:
        """Whether the copy still is the same function: a model has more than its weights, which alone it follows.

        Args:
            x: images to compare the logits on.
        """
        return self.network is self.model or _close(*_answers(self.model, self.follow(), x))

    @torch.no_grad()
    def follow(self) -> nn.Module:
        """The copy with the weights and running averages that the model has now."""
        now, mine = _tensors(self.model), _tensors(self.network)
        for name, norms in self.folded.items():
            convolution = self.model.get_submodule(name)
            weight, bias = convolution.weight, convolution.bias
            for norm in map(self.model.get_submodule, norms):
                averages = (norm.running_mean, norm.running_var, norm.eps)
                weight, bias = fuse_conv_bn_weights(weight, bias, *averages, norm.weight, norm.bias)  # type: ignore[arg-type]
            now[f"{name}.weight"], now[f"{name}.bias"] = weight, bias  # type: ignore[assignment]
        for name, tensor in mine.items():
            tensor.copy_(now[name])
        return self.network


class StandIn:
    """A model in training, as an attack is to see it: its :class:`Prepared` copy, or itself where nothing is folded.

    Args:
        compiled: let torch compile the copy, a graph for every size of batch: one for any size would be slower.
    """

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._prepared: Prepared | None = None
        self._compared = False

    def compare(self) -> None:
        """Has the copy compared with the model when it is next asked for, and made anew where they differ.

        A copy keeps from its making what a model has besides weights, such as a constant that somebody changes.
        """
        self._compared = False

    def __call__(self, model: nn.Module, x: Tensor) -> nn.Module:
        """The copy with the model's weights, or the model; the first of the images are what they are compared on."""
        held = self._prepared
        if held is None or held.model is not model or not (self._compared or held.agrees(x[:2])):
            held = self._prepared = Prepared(model, x[:2])
            if self.compiled and held.folded:
                held.network.compile(dynamic=False)
        self._compared = True
        return held.follow() if held.folded else model


def _answers(model: nn.Module, network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of a model and of its copy, in float32; neither is compiled for the sake of a few images."""
    autocast = torch.autocast(x.device.type, enabled=False)
    with crafting(model), torch.no_grad(), autocast, torch.compiler.set_stance("force_eager"):
        return model(x), network(x)


def _close(expected: Tensor, given: Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    return torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().amax()))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _folded(model: nn.Module) -> tuple[fx.GraphModule, dict[str, list[str]]]:
    """A traced model with every batch-norm that directly follows a convolution of its own folded into it, and which.

    A ReLU behind either works in place: neither needs its output again for its gradient.
    """
    traced = fx.symbolic_trace(model)
    folded: dict[str, list[str]] = {}
    for before, node in _in_a_row(traced):
        norm, convolution = (traced.get_submodule(str(each.target)) for each in (node, before))
        if isinstance(norm, BATCH_NORMS) and isinstance(convolution, CONVOLUTIONS) and norm.running_mean is not None:
            parent, _, name = str(before.target).rpartition(".")
            setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
            folded.setdefault(str(before.target), []).append(str(node.target))
    for before, node in _in_a_row(traced):
        relu, source = (traced.get_submodule(str(each.target)) for each in (node, before))
        if isinstance(relu, nn.ReLU) and isinstance(source, CONVOLUTIONS + BATCH_NORMS):
            relu.inplace = True
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, folded


def _in_a_row(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Two modules of which the second alone reads the first, and each of which is called once."""
    called = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and called[node.target] == 1:
            before = node.args[0]
            alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
            if alone and called[before.target] == 1:
                yield before, node
