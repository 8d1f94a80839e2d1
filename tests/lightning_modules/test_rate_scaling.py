"""``rate_scaling``: the recipe's rate times a power of the images of a step, once."""

from functools import partial
from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from main_helpers import DDP, checkpoint, process, teacher_config, write
from regime_helpers import assert_identical, build, digits, every_epoch, everything, trainer

from lightning_modules import Teacher
from lightning_modules.optimisation import RateScaling

LINEAR = RateScaling("linear", 16)
RATE = 0.02


def sgd(rate: float = RATE) -> Any:
    return partial(torch.optim.SGD, lr=rate, momentum=0.9)


halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)


class Rates(pl.Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(folder, scaling=LINEAR, rate=RATE, epochs=1, batch=32, ckpt_path=None, scheduler=None, **kwargs):
    """The rates, and the weights, of a fit of three steps an epoch."""
    torch.manual_seed(0)
    rates = Rates()
    regime = build(Teacher, optimizer=sgd(rate), scheduler=scheduler, rate_scaling=scaling)
    run = trainer(folder, max_epochs=epochs, callbacks=[rates, every_epoch(folder)], **kwargs)
    run.fit(regime, datamodule=digits(batch), ckpt_path=ckpt_path)
    return rates.values, everything(regime.network)


@given(
    batch=st.integers(1, 4096),
    devices=st.integers(1, 64),
    accumulated=st.integers(1, 16),
    reference=st.integers(1, 4096),
)
def test_factor(batch, devices, accumulated, reference):
    many: Any = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=batch), world_size=devices, accumulate_grad_batches=accumulated
    )
    ratio = batch * devices * accumulated / reference
    assert RateScaling("linear", reference).factor(many) == pytest.approx(ratio)
    assert RateScaling("sqrt", reference).factor(many) == pytest.approx(sqrt(ratio))


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_a_scaled_fit_is_the_fit_at_the_scaled_rate(rule, factor, tmp_path):
    """32 images of a batch, two batches accumulated, for a recipe of 16."""
    options = {"epochs": 2, "scheduler": halving, "accumulate_grad_batches": 2, "limit_train_batches": 4}
    rates, weights = fit(tmp_path, RateScaling(rule, 16), **options)
    assert rates == pytest.approx([RATE * factor] * 4 + [RATE * factor / 2] * 4)
    expected, same = fit(tmp_path / "by hand", None, RATE * factor, **options)
    assert rates == expected
    assert_identical(weights, same)


def test_every_group_is_scaled(tmp_path):
    class Two(Teacher):
        def configure_optimizers(self):
            first, *others = self.network.parameters()
            self.optimizer = lambda _: torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": others}], lr=0.1)
            return super().configure_optimizers()

    run = trainer(tmp_path)
    run.fit(build(Two, rate_scaling=LINEAR), digits(32))
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.6, 0.2])


def test_a_fit_that_goes_on_is_not_scaled_again(tmp_path):
    whole, weights = fit(tmp_path, epochs=3, scheduler=halving)
    again, same = fit(tmp_path / "again", epochs=3, scheduler=halving, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert whole == pytest.approx([RATE * 2 / 2**epoch for epoch in range(3) for _ in range(3)])
    assert again == whole[3:]
    assert_identical(same, weights)


@pytest.mark.parametrize(("scaling", "batch"), [(LINEAR, 64), (None, 32)], ids=["larger batch", "without"])
def test_a_fit_that_would_go_on_at_another_rate_is_refused(scaling, batch, tmp_path):
    fit(tmp_path)
    now = "4" if scaling else "1"
    with pytest.raises(ValueError, match=f"began with a learning rate of 2 times its recipe's.* has {now} times"):
        fit(tmp_path / "again", scaling, epochs=2, batch=batch, ckpt_path=tmp_path / "epoch=0.ckpt")
    # A test does not train.
    torch.manual_seed(0)
    trainer(tmp_path).test(build(Teacher), digits(64), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)


def test_schedules_that_follow_the_rate_and_those_that_do_not(tmp_path):
    plateau = partial(pl.cli.ReduceLROnPlateau, monitor="val/loss")
    assert fit(tmp_path, scheduler=plateau)[0] == [2 * RATE] * 3
    warm_up = partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.25)
    assert fit(tmp_path / "warm", scheduler=warm_up)[0] == pytest.approx([RATE / 2] * 3)
    once = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10)
    with pytest.raises(ValueError, match="OneCycleLR sets the rate whatever the optimiser's is"):
        fit(tmp_path / "once", scheduler=once)
    assert fit(tmp_path / "once", None, scheduler=once)[0][0] == pytest.approx(0.1 / 25)


def test_what_cannot_be_scaled_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rate_scaling\.rule must be linear or sqrt, got 'cubic'"):
        RateScaling("cubic", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rate_scaling\.reference .* at least 1, got 0"):
        RateScaling("sqrt", 0)
    data = digits()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"no datamodules\.Images, which say how many a batch has"):
        trainer(tmp_path).fit(build(Teacher, rate_scaling=LINEAR), [data.batch("train", torch.arange(4))])


# Through the command line


def rates_of(path):
    """The rate that a checkpoint goes on with."""
    return [group["lr"] for group in checkpoint(path)["optimizer_states"][0]["param_groups"]]


def test_from_the_command_line_and_on(cli, tmp_path, capsys):
    words = ["--model.rate_scaling.rule", "sqrt", "--model.rate_scaling.reference", "16"]
    command = ["fit", "--config", write(tmp_path / "t.yaml", teacher_config(max_epochs=1)), "--runs", tmp_path / "runs"]
    folder = cli(*command, *words).folder
    last = folder / "checkpoints" / "last.ckpt"
    assert rates_of(last) == pytest.approx([0.2])
    assert checkpoint(last)["hyper_parameters"]["rate_scaling"] == {"rule": "sqrt", "reference": 16}
    cli("fit", "--config", folder / "config.yaml", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert checkpoint(last)["epoch"] == 1
    assert rates_of(last) == pytest.approx([0.2])


@pytest.mark.slow
def test_two_processes_have_the_rate_of_twice_the_batch(at_root, tmp_path):
    config = write(tmp_path / "t.yaml", teacher_config(max_epochs=1))
    scaling = ["--model.rate_scaling.rule", "linear", "--model.rate_scaling.reference", "32"]
    done = process("fit", "--config", config, "--runs", tmp_path / "runs", *scaling, *DDP, timeout=400)
    assert done.status == 0, done.err
    said = [line for line in (done.out + done.err).splitlines() if "Learning rate" in line]
    assert len(said) == 1
    assert "Learning rate 0.4: the recipe's 0.1 times 4, by the linear rule for 128 images a step" in said[0]
    (last,) = (tmp_path / "runs").glob("*/*/checkpoints/last.ckpt")
    assert rates_of(last) == pytest.approx([0.4])
