"""What a step must do, held against what torch counts while it is done."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import arms
from benchmarks.arms import FACTS, METHODS, Options, Ours, Setting
from benchmarks.common import matmul_rate
from benchmarks.floor import Floor
from networks import WideResNet


class Counter(TorchDispatchMode):
    """torch's own count of operations; its ``FlopCounterMode`` does not bear :func:`torch.autograd.grad`."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


RATES = {"32": 2e9, "bf16": 8e9}


@pytest.mark.parametrize("method", METHODS)
def test_the_floor_is_what_a_step_of_ours_does(method, monkeypatch):
    """But for the first convolution, of whose images a step of the weights needs no gradient."""
    pair = ("small", partial(WideResNet, depth=16, width=2), partial(WideResNet, depth=10, width=2))
    monkeypatch.setitem(arms.PAIRS, "small", pair)
    on = Setting("small", 2, steps=3, replays=2, images=8)
    run = Ours(method, on, Options(folding=False))
    run()
    with Counter() as counter:
        run()
    steps = on.replays if method == "Fast-ARD" else 1
    teacher, student = on.networks()
    floor = Floor(student, teacher, FACTS.shape, RATES)
    work = floor.work(method, on.batch, on.steps, on.replays)
    assert counter.flops / 2 / steps == pytest.approx(work, rel=0.02)
    assert floor.seconds(method, "bf16", on.batch, on.steps, on.replays) == work / 8e9


def test_the_floor_of_a_linear_network_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    floor = Floor(network, network, (3, 2, 2), RATES)
    assert floor.work("ARD", 4, 10, 8) == 4 * 60 * (20 + 3 + 1)
    assert floor.work("Fast-ARD", 4, 10, 8) == 4 * 60 * (3 + 1 / 8)
    assert floor.work("KD", 1, 10, 8) == 60 * 4
    assert floor.seconds("PGD-AT", "32", 1, 1, 1) == 60 * 5 / 2e9


def test_a_rate_is_that_of_multiply_adds():
    assert 1e8 < matmul_rate("cpu") < 1e13
    assert 1e7 < matmul_rate("cpu", torch.bfloat16) < 1e13
    assert not torch.backends.cuda.matmul.allow_tf32  # as it was before
