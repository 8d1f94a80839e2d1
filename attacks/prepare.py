"""Makes a network fast to attack without changing what it computes, and without touching it."""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        return model
    try:
        with torch.no_grad():
            traced = _folded(copy.deepcopy(model).eval())
            traced.requires_grad_(False).to(memory_format=torch.channels_last)
            with crafting(model), torch.no_grad():
                expected = model(x)
            given = traced(x)
    except Exception:  # an arbitrary module may fail to be copied or traced in any way, and is then used as it is
        return model
    return traced if torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().amax())) else model


def _folded(model: nn.Module) -> nn.Module:
    """A traced model with every batch-norm that directly follows a convolution of its own folded into it.

    A ReLU behind either works in place: neither needs its output again for its gradient.
    """
    traced = fx.symbolic_trace(model)
    for before, node in _in_a_row(traced):
        norm, convolution = (traced.get_submodule(str(each.target)) for each in (node, before))
        if isinstance(norm, BATCH_NORMS) and isinstance(convolution, CONVOLUTIONS) and norm.running_mean is not None:
            parent, _, name = str(before.target).rpartition(".")
            setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    for before, node in _in_a_row(traced):
        relu, source = (traced.get_submodule(str(each.target)) for each in (node, before))
        if isinstance(relu, nn.ReLU) and isinstance(source, CONVOLUTIONS + BATCH_NORMS):
            relu.inplace = True
    traced.recompile()
    return traced


def _in_a_row(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Two modules of which the second alone reads the first, and each of which is called once."""
    called = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and called[node.target] == 1:
            before = node.args[0]
            alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
            if alone and called[before.target] == 1:
                yield before, node
