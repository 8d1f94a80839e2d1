"""A fit that is stopped after an epoch and goes on is the fit that was never stopped, bit for bit."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from regime_helpers import (
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

from lightning_modules import ARD, AdversarialTraining, FastARD, FickleTeacher

NETWORKS = {"mlp": mlp, "cnn with dropout": cnn, "wrn with dropout": fickle_wrn}


def student(regime, teacher, network):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.7)
    return build(regime, teacher, network=network, scheduler=schedule, **({"alpha": 0.6} if regime is ARD else {}))


@pytest.mark.parametrize(
    ("regime", "network"),
    [
        *((regime, "cnn with dropout") for regime in REGIMES),
        *((regime, network) for regime in (ARD, FastARD, FickleTeacher) for network in ("mlp", "wrn with dropout")),
    ],
    ids=name,
)
def test_resuming_after_an_epoch(regime, network, wrn_teacher, tmp_path):
    torch.manual_seed(0)
    whole = student(regime, wrn_teacher, NETWORKS[network])
    run = trainer(tmp_path, max_epochs=3, callbacks=[every_epoch(tmp_path)])
    run.fit(whole, digits())
    # Another process: other initial weights, other states of every generator.
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    random.seed(6)
    resumed = student(regime, wrn_teacher, NETWORKS[network])
    again = trainer(tmp_path, max_epochs=3, callbacks=[every_epoch(tmp_path / "again")])
    again.fit(resumed, digits(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.global_step == run.global_step == 9
    assert_identical(everything(resumed.network), everything(whole.network))
    if regime is FastARD:
        assert torch.equal(resumed.delta, whole.delta)
    one, other = (
        torch.load(folder / "epoch=2.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for folder in (tmp_path, tmp_path / "again")
    )
    assert all(torch.equal(one[key]["momentum_buffer"], other[key]["momentum_buffer"]) for key in one)


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
