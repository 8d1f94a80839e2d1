"""The released way's steps are the methods': they move the weights as ours do from the same start."""

from functools import partial
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attacks import PGD, Radius, Threat
from benchmarks import released
from benchmarks.arms import FACTS, Options, Ours, Setting
from benchmarks.released import EPS, STEP, Released, endless, pgd
from datamodules import Batch
from lightning_modules import ARD, TRADES, AdversarialTraining, Distillation, FastARD, TeacherSource
from networks import WideResNet

THREAT = Threat("linf", Radius(EPS))
STEPS, REPLAYS = 2, 3
wrn = partial(WideResNet, depth=10, width=1)


def build(method, attack, **common):
    """Ours, with the average over the classes that the released code takes."""
    ard = {"alpha": 1.0, "temperature": released.ARD_T, "kl_reduction": "mean"}
    kd = {"alpha": released.KD_ALPHA, "temperature": released.KD_T, "kl_reduction": "mean"}
    if method == "ARD":
        return ARD(attack=attack(), **ard, **common)
    if method == "Fast-ARD":
        return FastARD(threat=THREAT, replays=REPLAYS, **ard, **common)
    if method == "KD":
        return Distillation(**kd, **common)
    del common["teacher"]
    return AdversarialTraining(attack(), **common) if method == "PGD-AT" else TRADES(attack(loss="kl"), **common)


class Fixed:
    """torch, but for what is drawn."""

    def __init__(self, offset):
        self.offset = offset

    def empty_like(self, x):
        return SimpleNamespace(uniform_=lambda low, high: self.offset)

    def randn_like(self, x):
        return self.offset / 0.001

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("method", released.STEPS)
def test_a_step_moves_the_weights_as_ours_does(method, monkeypatch):
    torch.manual_seed(0)
    teacher, x = wrn(FACTS), 0.1 + 0.8 * torch.rand(6, *FACTS.shape)
    y = torch.arange(6)
    offset = 0.001 * torch.randn_like(x)
    monkeypatch.setattr(Threat, "start", lambda threat, x, draws: x + offset)
    monkeypatch.setattr(released, "torch", Fixed(offset))

    theirs, ours = wrn(FACTS), wrn(FACTS)
    ours.load_state_dict(theirs.state_dict())
    before = nn.utils.parameters_to_vector(theirs.parameters()).detach().clone()
    attack = partial(
        PGD, THREAT, STEPS, Radius(STEP), batchnorm="eval" if method == "TRADES" else "train"
    )  # as each of the codes has it
    source = TeacherSource(module=teacher)
    regime = build(method, attack, network=lambda facts: ours, facts=FACTS, teacher=source).train()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    for _ in range(regime.replays):
        loss, _ = regime.step(Batch(x, y, torch.arange(6)), 0)
        optimizer.zero_grad()
        loss.backward()
        regime.on_after_backward()
        optimizer.step()
    released.STEPS[method](Released(theirs, teacher, repeat([x, y]), "cpu", STEPS, REPLAYS))

    after, wanted = (nn.utils.parameters_to_vector(each.parameters()).detach() for each in (theirs, ours))
    moved = (wanted - before).norm()
    assert moved > 1e-4
    assert (after - wanted).norm() < 0.01 * moved


def test_the_released_pgd_stays_in_the_ball_and_in_the_box_and_moves_running_averages():
    network = wrn(FACTS).train()
    x = torch.rand(4, *FACTS.shape)
    x_adv = pgd(network, x, torch.arange(4), 3)
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert (x_adv - x).abs().max() > STEP
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert int(network.bn1.num_batches_tracked) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loaders_go_on_for_ever_with_full_batches(workers):
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    loader = endless(images, 4, workers)
    for _ in range(5):
        x, y = next(loader)
        assert x.shape == (4, 3, 32, 32)
        assert y.shape == (4,)
        assert 0 <= x.min() < x.max() <= 1


def test_ours_takes_a_step_for_every_replay():
    run = Ours("Fast-ARD", Setting("cnn", 2, steps=1, replays=3, images=8), Options())
    seen = []
    run.regime.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    run()
    assert len(seen) == 3
    assert torch.equal(run.regime.delta.abs().amax(), torch.tensor(EPS))
