"""A compiled fit learns what one without learns."""

import shutil
from functools import partial

import pytest
import torch
from compile_helpers import CRAFTING, Tiny, traced
from main_helpers import ATTACK, DDP, checkpoint, process, teacher_config, write
from regime_helpers import REGIMES, Losses, assert_identical, build, digits, every_epoch, name, trainer, wrn
from torch import nn

from lightning_modules import ARD, AdversarialTraining
from lightning_modules.averaging import Averaging

by_inductor = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)
SGD = partial(torch.optim.SGD, lr=0.01)


def losses(folder, regime, teacher, **kwargs):
    torch.manual_seed(3)
    kept = Losses()
    built = build(regime, teacher, optimizer=SGD, **kwargs)
    trainer(folder, callbacks=[kept]).fit(built, digits(16))
    return kept.values, built


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_every_regime_trains_as_without(regime, mlp_teacher, tmp_path):
    plain, _ = losses(tmp_path, regime, mlp_teacher)
    with traced():
        compiled, built = losses(tmp_path, regime, mlp_teacher, compile=True)
    assert built.compiled
    assert compiled == pytest.approx(plain, rel=1e-5)


def gradients(regime, x, y):
    """Of the images, and of the weights."""
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(regime.network(x), y).backward()
    return [x.grad, *(parameter.grad for parameter in regime.network.parameters())]


@by_inductor
@pytest.mark.slow
@pytest.mark.parametrize("options", [*CRAFTING.values(), {"network": wrn}], ids=[*CRAFTING, "WRN-10-1"])
def test_what_is_compiled_agrees_with_what_is_not(options, batch):
    """By inductor: gradients to 0.1 %, and all but 1 % of the examples' values, whose gradient is nearly nothing."""
    plain = build(AdversarialTraining, **options).train()
    compiled = build(AdversarialTraining, compile=True, **options).train()
    for _ in range(3):
        plain.network(batch.x)  # running averages of what it sees
    compiled.network.load_state_dict(plain.network.state_dict())
    compiled.on_fit_start()
    x_adv, same = plain.craft(batch), compiled.craft(batch)
    assert (x_adv - batch.x).abs().max() > 0.1
    assert ((x_adv - same).abs() > 1e-4).float().mean() < 0.01
    for one, other in zip(*(gradients(regime, x_adv, batch.y) for regime in (plain, compiled)), strict=True):
        assert one.norm() > 0
        assert (one - other).norm() < 1e-3 * one.norm()


@pytest.mark.parametrize("averaged", [False, True], ids=["", "averaged"])
def test_a_fit_that_goes_on_is_the_fit_that_was_never_stopped(averaged, mlp_teacher, tmp_path):
    def fit(folder, epochs, ckpt_path=None, **kwargs):
        torch.manual_seed(0)
        student = build(ARD, mlp_teacher, network=Tiny, alpha=0.6, **kwargs)
        callbacks = [every_epoch(folder), *([Averaging(0.8)] if averaged else [])]
        trainer(folder, max_epochs=epochs, callbacks=callbacks).fit(student, digits(), ckpt_path=ckpt_path)
        return torch.load(folder / f"epoch={epochs - 1}.ckpt", weights_only=True)

    plain = fit(tmp_path / "plain", 2)
    with traced():
        whole = fit(tmp_path / "whole", 2, compile=True)
        again = fit(tmp_path / "again", 2, tmp_path / "whole" / "epoch=0.ckpt", compile=True)
    assert_identical(again["state_dict"], whole["state_dict"])
    assert_identical(whole["state_dict"], plain["state_dict"])
    assert ("averaging_state" in whole) == averaged


@by_inductor
@pytest.mark.slow
def test_two_processes_train_as_without(at_root, tmp_path):
    """Through the command line, by inductor, and tested afterwards."""
    model = teacher_config()["model"]
    model = {
        "class_path": "lightning_modules.AdversarialTraining",
        "init_args": model["init_args"] | {"attack": ATTACK},
    }
    config = write(tmp_path / "t.yaml", teacher_config(max_epochs=1) | {"model": model})
    weights = []
    for compiled in ("false", "true"):
        runs = tmp_path / compiled
        done = process("fit", "--config", config, "--runs", runs, "--model.compile", compiled, *DDP, timeout=500)
        assert done.status == 0, done.err
        assert ("is compiled in the first steps" in done.err) == (compiled == "true")
        weights.append(checkpoint(next(runs.glob("*/*/checkpoints/last.ckpt")))["state_dict"])
        assert next(runs.glob("*/*/results.csv")).stat().st_size > 0
    plain, other = weights
    assert plain.keys() == other.keys()
    for key in plain:
        torch.testing.assert_close(plain[key], other[key], rtol=1e-3, atol=1e-5)
