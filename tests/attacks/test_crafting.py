"""No attack leaves a trace on the model that it attacks, nor on the random state around it."""

import random

import numpy as np
import pytest
import torch
from attack_helpers import ATTACKS, Counting, build, draws, untouched
from torch import nn
from torch.nn import functional as F

from attacks import PGD, RowWise, Threat, ascend, crafting, narrow, tempered
from attacks.objectives import Goal

EVERY = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
BATCHNORM = pytest.mark.parametrize("batchnorm", ["eval", "train"])
NORM = pytest.mark.parametrize("norm", ["linf", "l2"])


def threat(norm="linf"):
    return Threat(norm, "8/255") if norm == "linf" else Threat(norm, 0.5)


def wide(norm="linf"):
    """In which every attack finds something: one may return the image itself where it does not."""
    return Threat(norm, 0.5) if norm == "linf" else Threat(norm, 8.0)


def predicted(network, x, batchnorm="eval"):
    """Labels that an attack of smallest change has something to do about."""
    with crafting(network, batchnorm):
        return network(x).argmax(1)


@EVERY
@BATCHNORM
@NORM
def test_the_model_is_untouched(attack, batchnorm, norm, network, batch):
    with untouched(network):
        build(attack, threat(norm), batchnorm, network)(network, *batch)


@EVERY
@BATCHNORM
def test_the_model_is_untouched_in_eval_mode(attack, batchnorm, network, batch):
    network.eval()
    with untouched(network):
        build(attack, threat(), batchnorm, network)(network, *batch)


@EVERY
@BATCHNORM
@pytest.mark.parametrize("which", ["first", "last"])
def test_the_model_is_untouched_when_it_fails_half_way(attack, batchnorm, which, network, batch):
    counting = Counting(network)
    build(attack, threat(), batchnorm, counting)(counting, *batch, draws(6))
    failing = Counting(network, fail_at=1 if which == "first" else len(counting.sizes))
    with untouched(failing), pytest.raises(RuntimeError, match="out of memory"):
        build(attack, threat(), batchnorm, failing)(failing, *batch, draws(6))


@EVERY
@BATCHNORM
def test_batch_norms_of_every_kind_are_put_back(attack, batchnorm, batch):
    """Cumulative averages, none at all, and statistics that a checkpoint does not keep."""
    model = nn.Sequential(
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.Flatten(2),
        nn.BatchNorm1d(3, affine=False),
        nn.Flatten(),
        nn.Linear(3 * 64, 5),
    )
    model.register_buffer("temporary", torch.randn(3), persistent=False)
    with untouched(model):
        build(attack, threat(), batchnorm, model)(model, *batch)


@EVERY
@BATCHNORM
def test_a_buffer_that_every_forward_moves_is_put_back(attack, batchnorm, network, batch):
    """Such as a count of calls or a running range for quantisation, which eval mode does not stop."""

    class Observed(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return self.network(x)

    model = Observed()
    with untouched(model):
        build(attack, threat(), batchnorm, model)(model, *batch)


@EVERY
def test_batch_norm_train_uses_the_batchs_statistics_and_eval_the_running_ones(attack, network, batch):
    """Seen by what the attack depends on: the running averages, or not."""
    x = batch[0]
    y = predicted(network, x)
    results = {}
    for batchnorm in ("eval", "train"):
        for shift in (0.0, 3.0):
            network.bn.running_mean.fill_(shift)
            network.frozen_bn.running_mean.fill_(0.0)
            results[batchnorm, shift] = build(attack, wide(), batchnorm, network)(network, x, y, draws(6))
    assert not results["eval", 0.0].equal(results["eval", 3.0])
    torch.testing.assert_close(results["train", 0.0], results["train", 3.0])


@EVERY
@BATCHNORM
def test_dropout_is_off_while_crafting(attack, batchnorm, network, batch):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(build(attack, threat(), batchnorm, network)(network, *batch, draws(6)))
    assert results[0].equal(results[1])


@EVERY
@NORM
@BATCHNORM
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_attacks_work_where_gradients_are_off(attack, norm, batchnorm, mode, network):
    def images():
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(6, 3, 8, 8, generator=generator)
        return x, predicted(network, x, batchnorm)

    outside = build(attack, wide(norm), batchnorm, network)(network, *images(), draws(6))
    with mode(), untouched(network):
        inside = build(attack, wide(norm), batchnorm, network)(network, *images(), draws(6))
        assert not torch.is_grad_enabled()
        assert not inside.equal(images()[0])
    torch.testing.assert_close(inside.clone(), outside)


@EVERY
def test_what_is_given_and_what_is_returned_carry_no_graph(attack, network, batch):
    x, y = batch[0], predicted(network, batch[0])
    x.requires_grad_(True)
    before = x.detach().clone()
    adversarial = build(attack, threat(), source=network)(network, x, y)
    assert x.equal(before)
    assert x.grad is None
    assert x.requires_grad
    assert not adversarial.requires_grad
    assert adversarial.data_ptr() != x.data_ptr()
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype


@EVERY
@NORM
def test_given_draws_take_the_place_of_every_generator(attack, norm, network, batch):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"], random.getstate()  # noqa: NPY002
        results.append(build(attack, threat(norm), source=network)(network, *batch, draws(6)))
        assert torch.get_rng_state().equal(before[0])
        assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before[1]["key"])  # noqa: NPY002
        assert random.getstate() == before[2]
    assert results[0].equal(results[1])


@EVERY
def test_without_draws_torchs_seed_decides(attack, network, batch):
    results = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        results.append(build(attack, threat(), source=network)(network, *batch))
    assert results[0].equal(results[1])


def test_without_draws_two_calls_start_elsewhere(network, batch):
    attack = PGD(threat())
    assert not attack(network, *batch).equal(attack(network, *batch))


@EVERY
def test_weights_still_get_their_gradients_under_autocast(attack, network, batch):
    """Autocast keeps 16-bit copies of the weights; those made while they were frozen would carry no graph."""
    x, y = batch
    network.body[1].p = 0.0
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = build(attack, threat(), source=network)(network, x, y)
        F.cross_entropy(network(adversarial), y).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert found
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(network(adversarial), y).backward()
    for name, p in network.named_parameters():
        if p.requires_grad:
            assert found[name] is not None, name
            torch.testing.assert_close(found[name], p.grad)


@BATCHNORM
def test_inside_the_context(batchnorm, network, batch):
    with torch.no_grad(), crafting(network, batchnorm):
        assert torch.is_grad_enabled()
        assert not any(p.requires_grad for p in network.parameters())
        assert network.bn.training == (batchnorm == "train")
        others = [m for m in network.modules() if not isinstance(m, nn.BatchNorm2d)]
        assert not any(module.training for module in others)
        x = batch[0].requires_grad_(True)
        assert torch.autograd.grad(network(x).sum(), x)[0].abs().sum() > 0


def test_contexts_nest(network, batch):
    with untouched(network), crafting(network), crafting(network, "train"):
        network(batch[0])


def test_tempered(network, batch):
    network.eval()
    torch.testing.assert_close(tempered(network, 20.0)(batch[0]), network(batch[0]) / 20)
    assert tempered(network, 1.0) is network


# --- a model that knows its images ---


class Headed(RowWise):
    """Adds a constant of its own to every image's logits; several samples of the images come one after another."""

    def __init__(self, model, offsets):
        super().__init__()
        self.model, self.offsets = model, offsets

    def forward(self, x):
        return self.model(x) + self.offsets.repeat(len(x) // len(self.offsets), 1)

    def narrowed(self, kept):
        return Headed(self.model, self.offsets[kept])


@pytest.mark.parametrize("kept", [torch.tensor([4, 0]), torch.tensor([True, False, False, False, True, False])])
def test_a_model_is_narrowed_with_its_images(kept, network, batch):
    x = batch[0]
    network.eval()
    headed = Headed(network, torch.randn(6, 5))
    assert narrow(network, kept) is network
    for model in (headed, tempered(headed, 3.0), tempered(tempered(headed, 3.0), 2.0)):
        torch.testing.assert_close(narrow(model, kept)(x[kept]), model(x)[kept])


def test_narrowing_twice_is_narrowing_to_a_part_of_the_part(network, batch):
    x = batch[0]
    network.eval()
    model = tempered(Headed(network, torch.randn(6, 5)), 3.0)
    twice = narrow(narrow(model, torch.tensor([5, 3, 1])), torch.tensor([2, 0]))
    torch.testing.assert_close(twice(x[[1, 5]]), model(x)[[1, 5]])


@EVERY
@NORM
@pytest.mark.parametrize("evaluating", [False, True])
def test_every_attack_narrows_the_model_with_its_images(attack, norm, evaluating, network, batch):
    """A head for every image must give what each image's own model gives."""
    x = batch[0]
    offsets = torch.randn(6, 5)
    y = predicted(Headed(network, offsets), x)
    y[2] = (y[2] + 1) % 5  # wrong from the start
    whole, one_by_one = [], []
    for rows, found in [(torch.arange(6), whole), *((torch.tensor([row]), one_by_one) for row in range(6))]:
        model = Headed(network, offsets[rows])
        chosen = build(attack, threat(norm), source=model)
        chosen = chosen.evaluating() if evaluating else chosen
        found.append(chosen(model, x[rows], y[rows], draws(6)[rows]))
    # Convolutions of another batch size round otherwise, which a sign can turn into a step: nearly all must agree.
    same = (torch.cat(whole) - torch.cat(one_by_one)).abs() < 1e-4
    assert same.float().mean() > 0.97


def test_ascend_gives_every_image_its_own_gradient(network, batch):
    x, y = batch
    network.eval().requires_grad_(False)
    logits, values, gradient = ascend(network, x, Goal("ce", y))
    torch.testing.assert_close(logits, network(x))
    torch.testing.assert_close(values, F.cross_entropy(network(x), y, reduction="none"))
    for row in range(6):
        image = x[row : row + 1].requires_grad_(True)
        (own,) = torch.autograd.grad(F.cross_entropy(network(image), y[row : row + 1]), image)
        torch.testing.assert_close(gradient[row : row + 1], own, rtol=1e-4, atol=1e-7)
    assert not any(part.requires_grad for part in (logits, values, gradient))


def test_ascend_takes_half_precision_logits_to_single(network, batch):
    half = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).bfloat16()
    logits, values, gradient = ascend(half, batch[0].bfloat16(), Goal("ce", batch[1]))
    assert (logits.dtype, values.dtype, gradient.dtype) == (torch.float32, torch.float32, torch.bfloat16)
