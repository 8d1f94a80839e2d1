"""Self-distillation: a network's last stage teaches those before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.crafting import crafting
from attacks.records import Record, share
from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.losses import check_temperature, check_weight, cross_entropy, kl_divergence


class SelfDistillation(Regime):
    """A classifier after every stage of a network, the last of which, its own, teaches the others.

    ``(1 - a) sum_i CE(z_i, y) + a t^2 sum_{i<n} KL(sg p(z_n, t) || p(z_i, t)) + l sum_{i<n} ||F_i - sg F_n||^2``, of n
    stages; F_n and z_n are the map of the last stage and the network's logits, F_i and z_i what a :class:`Head` makes
    of stage i's map. The heads are used in training, for figures of their own in validation and tests (``acc_head1``,
    …, ``acc_ensemble``), and by no attack; without them the network is a plain one.

    Source: Zhang et al. 2019, *Be Your Own Teacher*; 003, §2. The authors' code, of a later version, differs: it weighs
    the last cross-entropy by 1, leaves t^2 out, builds heads of separable convolutions and attention, and averages
    logits where our ensemble averages probabilities. Its third term is the plain distance, over the whole batch, of
    pooled features behind a linear layer, without the first stage's: its weight of 0.03 is not to be put here.

    Per step: student 1 forward, 1 backward.

    Args:
        alpha: a, the weight of the last classifier's word against the label's.
        temperature: t.
        feature_weight: l, at least 0. The squared norm grows with the map, of 8,192 entries in a ResNet-18 at 32×32,
            where the default begins with a term of the size of the cross-entropies; a WRN-10-1 at 8×8 has 256, and
            bears a hundred times as much.

    Raises:
        ValueError: the network has fewer than two stages, or stages whose outputs are no maps.
    """

    def __init__(
        self, alpha: float = 0.3, temperature: float = 3.0, feature_weight: float = 1e-4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_weight("alpha", alpha)
        check_temperature("temperature", temperature)
        if not feature_weight >= 0:
            raise ValueError(f"feature_weight must be at least 0, got {feature_weight}.")
        self.alpha = alpha
        self.temperature = temperature
        self.feature_weight = feature_weight
        *shapes, last = stage_shapes(self.network, self.facts.shape)
        self.heads = nn.ModuleList(Head(shape, last, self.facts.classes) for shape in shapes)
        self.names = [*(f"head{i}" for i in range(1, len(shapes) + 1)), "ensemble"]
        # Of the last classifier there is one already: the network's own.
        self.accuracies = nn.ModuleDict(
            {f"{stage}_{name}": self.val_accuracy.clone() for stage in ("val", "test") for name in self.names}
        )

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        with captured(self.network) as outputs:
            self.network(batch.x)
        logits, maps = self.classify(outputs)
        return self_distillation(logits, maps, batch.y, self.alpha, self.temperature, self.feature_weight)

    def classify(self, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """All classifiers' logits, (B, classes) each, and the maps that they look at, of what :func:`captured` saw."""
        *maps, logits = outputs
        adapted = [head(x) for head, x in zip(self.heads, maps[:-1], strict=True)]
        return [*(z for _, z in adapted), logits], [*(f for f, _ in adapted), maps[-1]]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with captured(self.network) as outputs:
            super().validation_step(batch, batch_idx)
        self._score("val", outputs, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        with captured(self.network) as outputs:
            super().test_step(batch, batch_idx)
        self._score("test", outputs, batch)

    def _score(self, stage: str, outputs: Sequence[Tensor], batch: Batch) -> None:
        logits, _ = self.classify(outputs)
        ensemble = torch.stack([z.float().softmax(1) for z in logits]).mean(0)
        for name, answer in zip(self.names, [*logits[:-1], ensemble], strict=True):
            accuracy: Any = self.accuracies[f"{stage}_{name}"]
            accuracy.update(answer, batch.y)
            self.log(f"{stage}/acc_{name}", accuracy, on_epoch=True, batch_size=len(batch.y))

    def records(self) -> list[Record]:
        """Every classifier's accuracy and the ensemble's; all processes must ask, before the test's epoch has ended."""
        heads = [self.accuracies[f"test_{name}"] for name in self.names]
        heads.insert(-1, self.test_accuracy)
        names = [*(f"head {i}" for i in range(1, len(heads))), "ensemble"]
        counts = [_counts(accuracy) for accuracy in heads]
        return [share(name, right, n, 0.0) for name, (right, n) in zip(names, counts, strict=True) if n]


class Head(nn.Module):
    """A stage's map to what the last stage's could be, and to logits: ``(B, C, H, W)`` to ``F_i`` and ``z_i``.

    ``F_i`` (B, C_n, H_n, W_n) is made in a bottleneck of C_n / 4 channels: one 3×3 convolution of stride 2 per halving
    between 1×1 convolutions, with batch-norm after each. ``z_i`` (B, classes) is linear in ``F_i``, rectified, as the
    networks' own last maps are, and averaged over its positions.

    Args:
        shape: shape of the stage's map, (C, H, W).
        last: shape of the last stage's map, (C_n, H_n, W_n).
        classes: number of classes.
    """

    def __init__(self, shape: Sequence[int], last: Sequence[int], classes: int) -> None:
        super().__init__()
        narrow = max(1, last[0] // 4)
        layers = [*_convolution(shape[0], narrow), nn.ReLU()]
        size = list(shape[1:])
        while all((now + 1) // 2 >= then for now, then in zip(size, last[1:], strict=True)) and max(size) > 1:
            layers += [*_convolution(narrow, narrow, 3, 2), nn.ReLU()]
            size = [(now + 1) // 2 for now in size]
        if size != [*last[1:]]:  # a stage that does not halve, or a pool that rounds down
            layers.append(nn.AdaptiveAvgPool2d(tuple(last[1:])))
        self.adapter = nn.Sequential(*layers, *_convolution(narrow, last[0]))
        self.fc = nn.Linear(last[0], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        adapted = self.adapter(x)
        return adapted, self.fc(adapted.relu().mean((2, 3)))


def self_distillation(
    logits: Sequence[Tensor], maps: Sequence[Tensor], y: Tensor, alpha: float, t: float, feature_weight: float
) -> tuple[Tensor, Logs]:
    """The loss of :class:`SelfDistillation`, and its three sums without their weights; all in float32.

    Every sum's terms are means over the batch; a squared norm is summed over the map.

    Args:
        logits: z_1, …, z_n, (B, C) each.
        maps: F_1, …, F_n, of one shape (B, C, H, W).
        y: labels, (B,).
        alpha: a.
        t: temperature.
        feature_weight: l.
    """
    target, feature = logits[-1].detach(), maps[-1].detach().float()
    ce = torch.stack([cross_entropy(z, y) for z in logits]).sum()
    kl = torch.stack([kl_divergence(target, z, t) for z in logits[:-1]]).sum()
    distance = torch.stack([(x.float() - feature).square().sum((1, 2, 3)).mean() for x in maps[:-1]]).sum()
    # Terms of weight 0 stay in the graph: DDP asks for a gradient, were it 0, of every parameter.
    loss = (1 - alpha) * ce + alpha * t**2 * kl + feature_weight * distance
    return loss, {"cross_entropy": ce, "kl": kl, "feature_distance": distance}


@contextmanager
def captured(network: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a network's stages, in their order, and its logits, of the last forward inside."""
    modules = [*_stages(network).values(), network]
    outputs: list[Any] = [None] * len(modules)

    def keep(place: int, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[place] = output

    # For one forward at a time: hooks that stayed would hold its graph, and an attack's, and be copied with the module.
    handles = [module.register_forward_hook(partial(keep, place)) for place, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def stage_shapes(network: nn.Module, shape: Sequence[int]) -> list[torch.Size]:
    """Shapes (C, H, W) of what a network's stages put out for one image; the network stays as it was.

    Raises:
        ValueError: it has fewer than two stages, or one puts out no map.
    """
    name = type(network).__name__
    stages = _stages(network)
    if len(stages) < 2:
        raise ValueError(
            f"Self-distillation needs a network whose stages() names at least 2 stages, {name} has {len(stages)}: "
            "use one such as networks.ResNet18."
        )
    like = next(network.parameters())
    with crafting(network), torch.no_grad(), captured(network) as outputs:
        network(like.new_zeros(1, *shape))
    for stage, output in zip(stages, outputs, strict=False):
        if not isinstance(output, Tensor) or output.ndim != 4:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"Self-distillation compares maps (B, C, H, W), and the stage {stage} of {name} puts out {what}: use a "
                "convolutional network such as networks.ResNet18."
            )
    return [output.shape[1:] for output in outputs[:-1]]


def _stages(network: Any) -> dict[str, nn.Module]:
    return network.stages() if hasattr(network, "stages") else {}


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)


def _counts(accuracy: Any) -> tuple[int, int]:
    """How many images a micro-averaged accuracy counted as right and in all, over all processes."""
    with accuracy.sync_context():
        return int(accuracy.tp.sum()), int((accuracy.tp + accuracy.fn).sum())
