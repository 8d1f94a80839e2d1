"""What makes a step fast changes no result but by rounding, is switched off by its option, and never waits."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import Losses, assert_identical, build, digits, everything, mlp, name, pgd, trainer, wrn
from torch import nn

from attacks import PGD
from datamodules import Batch
from lightning_modules import ARD, RSLAD, TRADES, AdversarialTraining, Distillation, FastARD, Teacher, TfKDReg

ROBUST = pytest.mark.parametrize("regime", [ARD, AdversarialTraining, TRADES, RSLAD], ids=name)
OFF = {"folding": False, "channels_last": False}


def losses(folder, regime, teacher, **kwargs):
    torch.manual_seed(3)
    kept = Losses()
    built = build(regime, teacher, network=wrn, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **kwargs)
    trainer(folder, callbacks=[kept], limit_train_batches=6).fit(built, digits())
    return kept.values


@ROBUST
def test_training_is_the_same_but_for_rounding(regime, wrn_teacher, tmp_path):
    fast = losses(tmp_path, regime, wrn_teacher)
    plain = losses(tmp_path, regime, wrn_teacher, **OFF)
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    assert fast == pytest.approx(plain, rel=1e-2)  # a sign that differs grows from step to step


def test_a_fit_is_channels_last_and_what_it_leaves_is_not(tmp_path):
    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weight = pl_module.network.block1.layer[0].conv2.weight
            seen.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())

    for options, expected in (({}, True), ({"channels_last": False}, False)):
        seen = []
        regime = build(AdversarialTraining, network=wrn, **options)
        trainer(tmp_path, callbacks=[Look()]).fit(regime, digits())
        assert seen == [expected] * 3
        assert all(weight.is_contiguous() for weight in regime.network.parameters())


def test_examples_are_crafted_on_the_folded_copy_of_the_network_as_it_stands(batch):
    regime = build(AdversarialTraining, network=wrn, attack=pgd(random_start=False)).train()
    first = regime.searched(batch.x)
    assert first is not regime.network
    nn.init.normal_(regime.network.fc.weight)
    assert regime.searched(batch.x) is first
    plain = PGD(regime.threat, steps=3, random_start=False)(regime.network, batch.x, batch.y)
    assert ((regime.craft(batch) - plain).abs() > 1e-6).float().mean() < 0.01


@pytest.mark.parametrize(
    "options",
    [{"folding": False}, {"attack": pgd(batchnorm="train")}, {"network": mlp}],
    ids=["switched off", "batch-norm in train mode", "nothing to fold"],
)
def test_examples_are_crafted_on_the_network_itself(batch, options):
    regime = build(AdversarialTraining, **{"network": wrn} | options)
    assert regime.searched(batch.x) is regime.network


def test_another_network_has_a_copy_of_its_own_and_a_changed_one_in_the_next_epoch(batch):
    """A network has more than weights; the batch-norm's constant is one such thing."""
    regime = build(AdversarialTraining, network=wrn)
    first = regime.searched(batch.x)
    regime.network = wrn(regime.facts)
    second = regime.searched(batch.x)
    assert second is not first
    regime.on_train_epoch_start()
    assert regime.searched(batch.x) is second
    regime.network.bn1.eps = 1.0
    assert regime.searched(batch.x) is second
    regime.on_train_epoch_start()
    third = regime.searched(batch.x)
    assert third is not second
    with torch.no_grad():
        torch.testing.assert_close(third(batch.x), regime.network.eval()(batch.x), rtol=1e-4, atol=1e-5)


def test_the_copy_is_no_part_of_the_regime(batch):
    regime = build(AdversarialTraining, network=wrn)
    before = everything(regime)
    regime.searched(batch.x)
    assert_identical(everything(regime), before)
    assert len(list(regime.parameters())) == len(list(regime.network.parameters()))


@pytest.mark.parametrize("regime", [ARD, AdversarialTraining, TRADES, RSLAD, FastARD, Distillation, TfKDReg], ids=name)
def test_a_step_never_looks_at_a_value(regime, batch, wrn_teacher):
    """Tensors of the device ``meta`` have none: looking, which makes a GPU's queue wait, is an error there."""
    options = {"attack": pgd()} if regime is TfKDReg else {}
    built = build(regime, wrn_teacher, network=wrn, **options).train()
    if hasattr(built, "attack"):
        built.searched(batch.x).to("meta")  # looks, once in an epoch, whether the copy is the same function
    if built.has_teacher:
        built.teacher(batch.x)  # looks, once, likewise
    built.to("meta")
    loss, _ = built.step(Batch(*(tensor.to("meta") for tensor in (batch.x, batch.y, batch.index))), 0)
    loss.backward()
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        float(loss)


def test_an_epochs_means_are_those_of_its_images(tmp_path):
    """Not of its batches, of which the last is smaller."""

    class Noted(Teacher):
        def step(self, batch, batch_idx):
            loss, _ = super().step(batch, batch_idx)
            seen.append((float(loss), len(batch.y)))
            return loss, {"half": loss / 2} if batch_idx else {}

    seen = []
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=1.0)
    fit.fit(build(Noted), digits(600))
    count = fit.num_training_batches
    (first, _), *_, (_, last) = seen[count:]
    assert count > 1
    assert last < 600
    values, sizes = np.array(seen[count:]).T
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(np.average(values, weights=sizes), rel=1e-6)
    later = np.average(values[1:], weights=sizes[1:]) / 2
    assert float(fit.callback_metrics["train/half"]) == pytest.approx(later, rel=1e-6)
    assert float(fit.callback_metrics["train/loss_step"]) == values[-1] != first


@ROBUST
def test_examples_in_bfloat16_gain_nine_tenths(regime, batch, wrn_teacher):
    """Judged in float32 on the network itself; signs of small gradients differ."""
    torch.manual_seed(0)
    built = build(regime, wrn_teacher, network=wrn).train()
    for _ in range(5):
        built.network(batch.x)  # running averages of what it sees
    nn.init.normal_(built.network.fc.weight)
    target = built.network.eval()(batch.x).detach().softmax(1) if built.attack.loss == "kl" else None
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(built.craft(batch, target))
    with torch.no_grad():
        y = batch.y if target is None else target
        clean, plain, low = (float(nn.functional.cross_entropy(built.network(x), y)) for x in (batch.x, *found))
    assert plain > clean
    assert low - clean > 0.9 * (plain - clean)


def test_mixed_precision_trains_in_bfloat16_and_judges_robustness_in_float32(tmp_path):
    regime = build(AdversarialTraining, network=wrn)
    seen = {True: [], False: []}
    regime.network.register_forward_hook(lambda module, given, logits: seen[module.training].append(logits.dtype))
    fit = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=2, num_sanity_val_steps=0)
    fit.fit(regime, digits())
    assert seen[True] == [torch.bfloat16] * 2
    # The check of the folded copy; in validation one clean pass as it comes, ten of PGD and the verdict.
    assert seen[False] == [torch.float32, torch.bfloat16] + [torch.float32] * 11
