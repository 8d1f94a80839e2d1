"""A network that is quickly traced, ways to craft on it, and what its compiler is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from functorch.compile import make_boxed_func
from regime_helpers import mlp, pgd
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from networks import Network


class Tiny(Network):
    """A convolution whose batch-norm can be folded into it, and one whose cannot: quickly traced."""

    def __init__(self, facts, normalize=True):
        super().__init__(facts, normalize)
        self.conv1 = nn.Conv2d(facts.channels, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, facts.classes))

    def stages(self):
        return {}

    def forward(self, x):
        return self.head(self.bn2(torch.tanh(self.bn1(self.conv1(self.normalise(x))))))


CRAFTING = {
    "folded": {"network": Tiny},
    "not folded": {"network": Tiny, "folding": False},
    "nothing to fold": {"network": mlp},
    "batch-norm in train mode": {"network": Tiny, "attack": pgd(batchnorm="train")},
}


@contextmanager
def traced() -> Iterator[None]:
    """Graphs are made, guarded and run, by the operations that they were made of: fast, and the same bits."""
    torch.compiler.reset()
    with torch.compiler.set_stance(force_backend="eager"):
        yield
    torch.compiler.reset()


class Graphs:
    """The graphs that are made inside, each by how many gradients it computes; none for a forward alone.

    Attributes:
        backwards: of every graph with a backward, the number of its outputs that are wanted.
        forwards: number of the graphs without.
    """

    def __init__(self) -> None:
        self.backwards: list[int] = []
        self.forwards = 0

    def __enter__(self) -> "Graphs":
        torch.compiler.reset()  # what other tests have made
        backend = aot_autograd(fw_compiler=self._run, bw_compiler=self._backward, inference_compiler=self._forward)
        self._stance = torch.compiler.set_stance(force_backend=backend)
        self._stance.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._stance.__exit__(*error)
        torch.compiler.reset()

    def _run(self, graph, inputs):
        return make_boxed_func(graph.forward)

    def _backward(self, graph, inputs):
        self.backwards.append(sum(output is not None for output in graph.graph.output_node().args[0]))
        return self._run(graph, inputs)

    def _forward(self, graph, inputs):
        self.forwards += 1
        return self._run(graph, inputs)
