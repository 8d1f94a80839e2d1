"""A fit that is stopped after an epoch and goes on is the fit that was never stopped, bit for bit."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import (
    FACTS,
    REGIMES,
    assert_identical,
    build,
    cnn,
    digits,
    every_epoch,
    everything,
    fickle_wrn,
    mlp,
    name,
    trainer,
)

from attacks import Radius
from lightning_modules import (
    ARD,
    IAD,
    AdversarialTraining,
    Distillation,
    FastARD,
    FickleTeacher,
    FreeAdversarialTraining,
    InputNoise,
    LabelCorruption,
    SelfDistillation,
    SignalDependentNoise,
    Swap,
    Teacher,
    TeacherSource,
)
from networks import MLP

dropout_mlp = partial(MLP, widths=(16,), dropout=0.3)
NETWORKS = {"mlp": mlp, "cnn with dropout": cnn, "wrn with dropout": fickle_wrn}


ANYWHERE = [LabelCorruption(0.4), LabelCorruption(0.4, fixed=True), InputNoise(0.2)]
OF_A_TEACHER = [SignalDependentNoise(0.5), FickleTeacher(), Swap(0.5), Swap(0.5, "all", threshold=0.5)]
BOTH_TERMS = {regime: {"alpha": 0.6} for regime in (ARD, FastARD, Distillation)} | {IAD: {"alpha": 0.6, "warmup": 1}}
TINY = Radius(0.005)  # that a network of a few steps withstands


def student(regime, teacher, network, **kwargs):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.7)
    made = build(regime, teacher, network=network, **{"scheduler": schedule} | BOTH_TERMS.get(regime, {}) | kwargs)
    if hasattr(made, "attack"):
        made.attack = made.attack.resized(TINY)
    elif made.threat is not None:
        made._threat = replace(made.threat, eps=TINY)
    return made


@pytest.fixture(scope="module")
def dropout_teacher(tmp_path_factory):
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("teacher") / "dropout.pt"
    torch.save(dropout_mlp(FACTS).state_dict(), path)
    return TeacherSource(checkpoint=str(path), network=dropout_mlp)


def another_process():
    """Other states of every generator."""
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    random.seed(6)


def assert_resumes(make, folder):
    """Goes on after the first of three epochs."""
    torch.manual_seed(0)
    whole = make()
    run = trainer(folder, max_epochs=3, callbacks=[every_epoch(folder)])
    run.fit(whole, digits())
    another_process()
    resumed = make()
    again = trainer(folder, max_epochs=3, callbacks=[every_epoch(folder / "again")])
    again.fit(resumed, digits(), ckpt_path=folder / "epoch=0.ckpt")
    assert again.global_step == run.global_step == 9
    assert_identical(everything(resumed), everything(whole))
    one, other = (torch.load(f / "epoch=2.ckpt", weights_only=True) for f in (folder, folder / "again"))
    moments, again_moments = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other))
    assert moments.keys() == again_moments.keys()
    assert all(torch.equal(moments[key]["momentum_buffer"], again_moments[key]["momentum_buffer"]) for key in moments)
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["best_robust"] == other["best_robust"]
    if hasattr(whole, "delta"):
        assert torch.equal(resumed.delta, whole.delta)
        assert torch.equal(other["delta"], one["delta"])
    return run, again


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("regime", [ARD, FastARD, IAD, AdversarialTraining], ids=name)
def test_resuming_after_an_epoch(regime, network, wrn_teacher, tmp_path):
    """Every regime's is in test_all_regimes.py; here with both terms of a loss, and after IAD's warm-up."""
    assert_resumes(lambda: student(regime, wrn_teacher, NETWORKS[network]), tmp_path)


@pytest.mark.parametrize(
    ("regime", "noise"),
    [
        *((Distillation, [noise]) for noise in ANYWHERE + OF_A_TEACHER),
        *((Teacher, [noise]) for noise in ANYWHERE),
        *((regime, ANYWHERE + OF_A_TEACHER * regime.has_teacher) for regime in REGIMES),
    ],
    ids=lambda value: name(value) if isinstance(value, type) else "+".join(type(noise).__name__ for noise in value),
)
def test_resuming_with_noise(regime, noise, dropout_teacher, tmp_path):
    """And the noise makes a difference."""
    network = fickle_wrn if regime is SelfDistillation else dropout_mlp
    run, _ = assert_resumes(lambda: student(regime, dropout_teacher, network, noise=noise), tmp_path)
    torch.manual_seed(0)
    calm = student(regime, dropout_teacher, network)
    trainer(tmp_path, max_epochs=3).fit(calm, digits())
    assert not torch.equal(calm.network.fc.weight, run.lightning_module.network.fc.weight)


def test_the_best_robust_accuracy_is_remembered(tmp_path):
    """What a resumed fit warns against is measured by the best of the whole fit."""
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(AdversarialTraining), digits())
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert 0 <= checkpoint["best_robust"] < 0.5
    checkpoint["best_robust"] = 1.0
    torch.save(checkpoint, tmp_path / "better.ckpt")
    resumed = build(AdversarialTraining)
    with pytest.warns(UserWarning, match=r"in epoch 1 .*, its best was 100\.0%"):
        trainer(tmp_path, max_epochs=2, callbacks=[every_epoch(tmp_path)]).fit(
            resumed, digits(), ckpt_path=tmp_path / "better.ckpt"
        )
    assert torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["best_robust"] == 1.0


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_resuming_within_an_epoch(regime, wrn_teacher, tmp_path):
    """Lightning's loader begins anew there, so the fit is another one; it takes the steps that were left, and no more.

    A mini-batch that is replayed is still taught by the teacher's word on itself, though the count begins anew.
    """

    def made():
        return student(regime, wrn_teacher, cnn if regime is SelfDistillation else mlp)

    steps = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer(tmp_path, callbacks=[steps], limit_train_batches=5).fit(made(), digits())
    checkpoint = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    resumed, taught, deltas = made(), [], []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            deltas.append(pl_module.delta.clone() if hasattr(pl_module, "delta") else None)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert outputs["loss"].isfinite()
            if regime is FastARD:
                taught.append(torch.equal(pl_module._taught, pl_module.teacher(batch.x)))

    run = trainer(tmp_path, callbacks=[Watch()], limit_train_batches=5, max_epochs=2)
    run.fit(resumed, digits(), ckpt_path=tmp_path / "step=3.ckpt")
    assert run.global_step == 10
    assert len(deltas) == 7
    assert all(value.isfinite().all() for value in everything(resumed).values())
    if regime in (FastARD, FreeAdversarialTraining):
        assert torch.equal(deltas[0], checkpoint["delta"])
    assert all(taught)


@pytest.mark.parametrize("options", [{"augment": True}, {"validation": 0.0}], ids=str)
def test_resuming_with_augmentation_or_without_validation(options, tmp_path):
    fits = []
    for start in (None, tmp_path / "epoch=0.ckpt"):
        torch.manual_seed(len(fits))
        regime = student(AdversarialTraining, None, cnn)
        run = trainer(tmp_path, max_epochs=2, callbacks=[every_epoch(tmp_path if start is None else tmp_path / "b")])
        run.fit(regime, digits(**options), ckpt_path=start)
        fits.append(everything(regime.network))
    assert_identical(*fits)


def test_the_same_fit_twice(wrn_teacher, tmp_path):
    """And its epochs differ from each other: dropout is seeded by epoch, not once for all."""
    fits = []
    for _ in range(2):
        torch.manual_seed(0)
        regime = student(ARD, wrn_teacher, cnn)
        trainer(tmp_path).fit(regime, digits())
        fits.append(everything(regime.network))
    assert_identical(*fits)
    masks = []

    class Watched(ARD):
        def on_train_batch_start(self, batch, batch_idx):
            masks.append(torch.get_rng_state())

    trainer(tmp_path, max_epochs=2, limit_train_batches=1).fit(student(Watched, wrn_teacher, cnn), digits())
    assert not torch.equal(masks[0], masks[1])


def test_another_seed_is_another_fit(tmp_path, monkeypatch):
    fits = []
    for seed in ("0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        torch.manual_seed(0)
        regime = student(AdversarialTraining, None, mlp)
        trainer(tmp_path).fit(regime, digits())
        fits.append(everything(regime.network)["fc.weight"])
    assert not torch.equal(*fits)
