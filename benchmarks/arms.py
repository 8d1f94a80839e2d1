"""Who takes a training step in the benchmarks: tempered, with its optimisations one by one, and the released way."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks import PGD, Radius, Threat
from attacks.crafting import BatchNorm
from benchmarks.pipeline import Noise
from benchmarks.released import ARD_T, BETA, EPS, KD_ALPHA, KD_T, STEP, Released, endless
from benchmarks.released import STEPS as RELEASED
from datamodules import Batch
from lightning_modules import ARD, TRADES, AdversarialTraining, Distillation, Distiller, FastARD, Regime, TeacherSource
from networks import DefensiveCNN, Facts, MobileNetV2, ResNet18, WideResNet
from networks.mobilenet import FullPrecision

FACTS = Facts(classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
METHODS = tuple(RELEASED)
WORKERS = 4  # of the released way's loader beside a GPU, which has them make its batches meanwhile
PAIRS: dict[str, tuple[str, Callable[[Facts], nn.Module], Callable[[Facts], nn.Module]]] = {
    "wrn": ("WRN-40-2 → WRN-16-2", partial(WideResNet, depth=40, width=2), partial(WideResNet, depth=16, width=2)),
    "resnet18": ("ResNet-18 → ResNet-18", ResNet18, ResNet18),
    "mobilenet": ("WRN-34-10 → MobileNetV2", partial(WideResNet, depth=34, width=10), MobileNetV2),
    "cnn": ("DefensiveCNN → DefensiveCNN", DefensiveCNN, DefensiveCNN),
}


@dataclass(frozen=True)
class Setting:
    """What all who take a step have in common.

    Attributes:
        pair: which of :data:`PAIRS`.
        batch: images in a batch.
        steps: K, the steps of the attack.
        replays: m of Fast-ARD.
        device: ``cpu`` or ``cuda``.
        images: images in the data set, uniform noise: their values cost nothing more or less than photographs' do.
    """

    pair: str
    batch: int
    steps: int = 10
    replays: int = 8
    device: str = "cpu"
    images: int = 4096

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Teacher and student, the same weights every time."""
        torch.manual_seed(0)
        _, teacher, student = PAIRS[self.pair]
        return teacher(FACTS).to(self.device), student(FACTS).to(self.device)

    def data(self) -> Tensor:
        """The images, uint8 (N, 3, 32, 32)."""
        drawn = torch.Generator().manual_seed(0)
        return torch.randint(256, (max(self.images, self.batch), *FACTS.shape), dtype=torch.uint8, generator=drawn)


@dataclass(frozen=True)
class Options:
    """Which of our optimisations are on; as they stand, all that a fit has by default.

    Attributes:
        precision: ``32``, or ``bf16`` for autocast, as ``--trainer.precision bf16-mixed`` has it.
        spared: no pass of the clean images where their loss has no weight.
        batchnorm: mode of batch-norm while crafting.
        folding: see :class:`lightning_modules.Regime`.
        teacher: the frozen teacher answers by a folded copy too.
        channels_last: see :class:`lightning_modules.Regime`.
        full: convolutions that are slow in the lower precision leave it, see :class:`networks.mobilenet.FullPrecision`.
        compile: see :class:`lightning_modules.Regime`.
    """

    precision: str = "32"
    spared: bool = True
    batchnorm: BatchNorm = "eval"
    folding: bool = True
    teacher: bool = True
    channels_last: bool = True
    full: bool = True
    compile: bool = False


def regime(method: str, on: Setting, given: Options) -> Regime:
    """Our regime of a method."""
    teacher, student = on.networks()
    source = TeacherSource(module=teacher)
    threat = Threat("linf", Radius(EPS))
    attack = PGD(threat, on.steps, Radius(STEP), batchnorm=given.batchnorm, loss="kl" if method == "TRADES" else "ce")
    common: dict[str, Any] = {
        "network": lambda facts: student,
        "facts": FACTS,
        "optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=2e-4),
        "channels_last": given.channels_last,
        "folding": given.folding,
        "compile": given.compile,
    }
    alpha = 1.0 if given.spared else 1 - 1e-9
    build: dict[str, Callable[[], Regime]] = {
        "ARD": lambda: ARD(attack=attack, teacher=source, alpha=alpha, temperature=ARD_T, **common),
        "PGD-AT": lambda: AdversarialTraining(attack, **common),
        "TRADES": lambda: TRADES(attack, BETA, **common),
        "Fast-ARD": lambda: FastARD(
            threat=threat, replays=on.replays, teacher=source, alpha=alpha, temperature=ARD_T, **common
        ),
        "KD": lambda: Distillation(teacher=source, alpha=KD_ALPHA, temperature=KD_T, **common),
    }
    built = build[method]().to(on.device).train()
    if isinstance(built, Distiller):
        built.teacher.folding = given.teacher and given.folding
    for module in built.network.modules():
        if isinstance(module, FullPrecision) and not given.full:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    built.on_fit_start()
    return built


class Ours:
    """Our step without Lightning around it; one of Fast-ARD is a batch with its m replays.

    Args:
        method: one of :data:`METHODS`.
        on: the setting.
        given: the optimisations.
    """

    def __init__(self, method: str, on: Setting, given: Options) -> None:
        self.on, self.given = on, given
        self.regime = regime(method, on, given)
        self.optimizer = self.regime.configure_optimizers()
        self.batches = batches(on, self.regime.replays)

    def __call__(self) -> None:
        for _ in range(self.regime.replays):
            take_step(self.regime, self.optimizer, next(self.batches), self.given.precision)


def take_step(regime: Regime, optimizer: torch.optim.Optimizer, batch: Batch, precision: str) -> None:
    """What a trainer does for a batch, at the least."""
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = regime.step(batch, 0)
    optimizer.zero_grad()
    loss.backward()
    regime.on_after_backward()
    optimizer.step()


def batches(on: Setting, replays: int) -> Iterator[Batch]:
    """Our data, augmented a batch at a time on the device, without end; each batch as often as it is replayed."""
    data = Noise(on.data(), on.batch)
    data.setup()
    epoch = 0
    while True:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for fetched in loader:
            if len(fetched.index) == on.batch:
                for _ in range(replays):
                    yield data.batch("train", fetched.index.to(on.device, non_blocking=True), (0, epoch))
        epoch += 1


def released(method: str, on: Setting) -> Callable[[], None]:
    """The released way's step; one of Fast-ARD is a batch with its m replays."""
    teacher, student = (copy.deepcopy(network) for network in on.networks())
    loader = endless(on.data(), on.batch, workers=0 if on.device == "cpu" else WORKERS)
    state = Released(student, teacher, loader, on.device, on.steps, on.replays)
    return partial(RELEASED[method], state)
