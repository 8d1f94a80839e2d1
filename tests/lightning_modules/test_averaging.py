"""The average of the weights, in every regime, beside one computed from the weights of every step."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import REGIMES, assert_identical, build, digits, everything, name, trainer, wrn

from lightning_modules import Distiller, Teacher
from lightning_modules.averaging import Averaging


class Weights(pl.Callback):
    """Keeps parameters and buffers as they are after every batch."""

    def __init__(self):
        self.batches = []
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.batches.append(everything(pl_module))
        self.steps.append(trainer.global_step)


def averaged(batches, steps, decay):
    """In double precision: after the first optimiser step its weights, then ``d a + (1 - d) w`` at each."""
    average, before = None, 0
    for weights, step in zip(batches, steps, strict=True):
        if step == before:  # gradients are accumulated
            continue
        before = step
        now = {key: value.double().numpy() for key, value in weights.items()}
        average = now if average is None else {k: decay * average[k] + (1 - decay) * now[k] for k in now}
    return average


def fit(model, tmp_path, decay=0.7, **kwargs):
    weights = Weights()
    callback = Averaging(decay)
    run = trainer(tmp_path, callbacks=[weights, callback], limit_train_batches=4, **kwargs)
    run.fit(model, datamodule=digits())
    return weights, callback


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_average_of_every_regime(regime, mlp_teacher, tmp_path):
    model = build(regime, mlp_teacher)
    weights, _ = fit(model, tmp_path, max_epochs=2)
    expected = averaged(weights.batches, weights.steps, 0.7)
    found = everything(model)  # after a fit the network is the average
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.double().numpy(), expected[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert any(not torch.equal(found[key], weights.batches[-1][key]) for key in found)


def test_batch_norms_average(tmp_path):
    """Its moving averages are averaged, and what is constant stays what it is, bit for bit."""
    model = build(Teacher, network=wrn)
    constants = {key: value for key, value in everything(model).items() if "normalise" in key}
    assert constants
    weights, _ = fit(model, tmp_path, decay=0.999, max_epochs=3)
    expected = averaged(weights.batches, weights.steps, 0.999)
    found = everything(model)
    for key, value in found.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.double().numpy(), expected[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert_identical({key: found[key] for key in constants}, constants)


def test_one_update_for_each_optimiser_step(tmp_path):
    model = build(Teacher)
    weights, callback = fit(model, tmp_path, accumulate_grad_batches=2)
    assert weights.steps == [0, 1, 1, 2]
    assert callback._average_model.n_averaged == 2
    expected = averaged(weights.batches, weights.steps, 0.7)
    for key, value in everything(model).items():
        np.testing.assert_allclose(value.double().numpy(), expected[key], rtol=1e-5, atol=1e-6)


def test_no_decay_is_no_average(tmp_path):
    model = build(Teacher)
    weights, _ = fit(model, tmp_path, decay=0.0)
    assert_identical(everything(model), weights.batches[-1])


@pytest.mark.parametrize("regime", [regime for regime in REGIMES if issubclass(regime, Distiller)], ids=name)
def test_teacher_is_not_copied(regime, mlp_teacher, tmp_path):
    model = build(regime, mlp_teacher)
    teacher = model.teacher  # loaded before the copy is made
    _, callback = fit(model, tmp_path)
    assert callback._average_model.module.teacher is model.teacher is teacher
    assert not [key for key in callback._average_model.state_dict() if "teacher" in key]


def test_average_is_kept_where_training_is(tmp_path, monkeypatch):
    """Lightning's callback asks a model that has not been moved to its GPU yet."""
    asked = []

    class AveragedModel(torch.optim.swa_utils.AveragedModel):
        def __init__(self, model, device, **kwargs):
            asked.append((model.device, device))
            super().__init__(model, torch.device("cpu"), **kwargs)

    monkeypatch.setattr("pytorch_lightning.callbacks.weight_averaging.AveragedModel", AveragedModel)
    run = trainer(tmp_path)
    gpu = torch.device("cuda", 3)
    monkeypatch.setattr(type(run.strategy), "root_device", property(lambda self: gpu))
    Averaging(0.5).setup(run, build(Teacher), "fit")
    assert asked == [(torch.device("cpu"), gpu)]


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5, float("nan")])
def test_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Averaging(decay)


def test_a_fit_that_averaged_does_not_go_on_without(tmp_path):
    """The weights in its checkpoint are the average, the momentum is that of others."""
    fit(build(Teacher), tmp_path, enable_checkpointing=True)
    (path,) = tmp_path.rglob("*.ckpt")
    with pytest.raises(ValueError, match=r"averages its weights.*--ema"):
        trainer(tmp_path, max_epochs=2).fit(build(Teacher), datamodule=digits(), ckpt_path=path)
