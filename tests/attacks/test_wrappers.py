"""Attacks made of others: at a temperature, over a model's noise, from another model."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, TwoClasses, broken, classifier, draws, two_classes, untouched
from scipy import stats
from torch import nn

from attacks import APGD, EOT, FGSM, MIFGSM, PGD, Strong, Threat, Transfer
from attacks.objectives import cross_entropy, margin

NORM = pytest.mark.parametrize("norm", ["linf", "l2"])
WRAPPERS = {
    "Strong": lambda attack: Strong(attack, 4.0),
    "EOT": lambda attack: EOT(attack, 2),
    "Transfer": lambda attack: Transfer(attack, nn.Identity()),
}
EVERY = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


class Divided(nn.Module):
    def __init__(self, model, divisor):
        super().__init__()
        self.model, self.divisor = model, divisor

    def forward(self, x):
        return self.model(x) / self.divisor


# --- all of them ---


@EVERY
def test_a_wrapper_takes_what_its_attack_states(wrap):
    wrapped = wrap(PGD(Threat("l2", 0.25), batchnorm="train"))
    assert wrapped.threat == Threat("l2", 0.25)
    assert wrapped.batchnorm == "train"
    assert wrapped.limited
    assert wrapped.under(Threat("linf", 0.1, (-1.0, 1.0))).threat == Threat("l2", 0.25, (-1.0, 1.0))


@EVERY
def test_a_wrapper_hands_the_threat_on_and_leaves_its_attack_alone(wrap):
    inner = PGD(steps=3)
    wrapped = wrap(inner)
    assert wrapped.under(Threat("l2", 0.25)).attack.threat == Threat("l2", 0.25)
    assert wrapped.evaluating() is not inner
    with pytest.raises(ValueError, match="threat"):
        _ = inner.threat
    assert not inner.early_stop


@pytest.mark.parametrize(("which", "passes"), [("Strong", 1), ("EOT", 9)])  # of a model that draws nobody leaves
def test_a_wrapper_in_evaluation_has_its_attack_leave_broken_images(which, passes):
    model, x, y = two_classes()
    counting = Counting(model)
    WRAPPERS[which](PGD(Threat(eps=1e-9), steps=9)).evaluating()(counting, x, 1 - y, draws(6))
    assert len(counting.sizes) == passes
    counting = Counting(model)
    WRAPPERS[which](PGD(Threat(eps=1e-9), steps=9))(counting, x, 1 - y, draws(6))
    assert len(counting.sizes) == 9


def test_wrappers_nest(network, batch):
    """At a temperature, over noise that is not there, on another model: all of it is one division."""
    plain = PGD(Threat(), steps=3)
    nested = Transfer(EOT(Strong(plain, 5.0), 2), Divided(network, 4.0))
    expected = plain(Divided(network, 20.0), *batch, draws(6))
    torch.testing.assert_close(nested(nn.Identity(), *batch, draws(6)), expected)
    assert nested.name == "PGD-3 strong T=5 EOT-2 from another model"


# --- Strong ---


def saturated(size=8):
    """Logits as after distillation at a high temperature: in float32 the softmax is exactly one-hot.

    Each image could be broken: half the largest drop is enough, which no random start reaches.
    """
    generator = torch.Generator().manual_seed(0)
    shape, eps = (3, 8, 8), 0.1
    weight = torch.randn(192, generator=generator)
    x = 0.5 + 0.1 * (torch.rand(size, *shape, generator=generator) - 0.5)
    y = torch.arange(size) % 2
    lift = torch.where(y == 1, 1.0, -1.0) * 0.5 * eps * weight.abs().sum() - x.flatten(1) @ weight
    x = x + (lift / weight.square().sum())[:, None].mul(weight).reshape(x.shape)  # w . x = +- half the drop
    return TwoClasses(weight, scale=1e4), x, y, Threat("linf", eps)


def test_saturated_cross_entropy_has_no_gradient_and_the_margin_has():
    model, x, y, _ = saturated()
    x.requires_grad_(True)
    assert (model(x).argmax(1) == y).all()
    assert torch.autograd.grad(cross_entropy(model(x), y).sum(), x)[0].abs().max() == 0
    slope = torch.autograd.grad(margin(model(x), y).sum(), x)[0].flatten(1)
    torch.testing.assert_close(slope.abs(), (1e4 * model.weight.detach().abs()).expand(len(x), -1))


def test_strong_attacks_and_margins_break_what_weak_cross_entropy_cannot():
    model, x, y, threat = saturated()
    for attack in (PGD(threat), FGSM(threat), MIFGSM(threat), APGD(threat)):
        assert not broken(model, attack(model, x, y, draws(8)), y).any(), attack.name
        assert broken(model, Strong(attack, 1e4)(model, x, y, draws(8)), y).all(), attack.name
    for attack in (PGD(threat, loss="margin"), FGSM(threat, loss="margin"), Strong(PGD(threat)).at(1e4)):
        assert broken(model, attack(model, x, y, draws(8)), y).all(), attack.name


@NORM
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_strong_is_the_attack_on_the_divided_model(norm, batchnorm, network, batch):
    threat = Threat(norm, "8/255" if norm == "linf" else 0.5)
    for plain in (
        FGSM(threat, batchnorm=batchnorm),
        PGD(threat, steps=3, restarts=2, batchnorm=batchnorm),
        APGD(threat, steps=3, targets=2, batchnorm=batchnorm),
    ):
        strong = Strong(plain, 20.0)(network, *batch, draws(6))
        assert strong.equal(plain(Divided(network, 20.0), *batch, draws(6)))


def test_strong_fills_in_a_temperature_only_where_none_is_given(network, batch):
    plain = PGD(Threat(), steps=3)
    strong = Strong(plain)
    assert strong.at(20.0)(network, *batch, draws(6)).equal(Strong(plain, 20.0)(network, *batch, draws(6)))
    given_one = Strong(plain, 7.0)
    assert given_one.at(20.0)(network, *batch, draws(6)).equal(given_one(network, *batch, draws(6)))
    assert strong.name == "PGD-3 strong"


def test_strong_without_a_temperature_says_so(network, batch):
    with pytest.raises(ValueError, match="temperature"):
        Strong(FGSM(Threat()))(network, *batch)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_that_are_not_positive_are_refused(temperature, network, batch):
    """A negative one would turn the attack into a defence."""
    with pytest.raises(ValueError, match="temperature"):
        Strong(FGSM(Threat()), temperature)(network, *batch)


# --- EOT ---


class Gated(nn.Module):
    """Says 1 where the mean pixel is above 0.55; half of all passes give an image no gradient."""

    def forward(self, x):
        z = x.flatten(1).mean(1) - 0.55
        gate = (torch.rand(len(x)) < 0.5).to(x.dtype)
        z = gate * z + (1 - gate) * z.detach()
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("attack", [PGD(steps=40), EOT(PGD(steps=40), 2)], ids=lambda attack: attack.name)
def test_on_a_model_that_draws_no_path_is_taken_to_go_round(attack):
    torch.manual_seed(1)
    x, y = torch.full((200, 1, 2, 2), 0.5), torch.zeros(200).long()
    attack = attack.under(Threat("linf", 0.1))
    assert broken(Gated(), attack(Gated(), x, y, draws(200)), y).double().mean() > 0.95
    assert broken(Gated(), attack.evaluating(False)(Gated(), x, y, draws(200)), y).double().mean() > 0.95


class Jittered(nn.Module):
    """z = (0, x'x / 2) of images with noise added: the gradient of one pass is x + sigma n."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        z = 0.5 * (x + self.sigma * torch.randn_like(x)).flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("samples", [1, 4, 25])
def test_eot_averages_the_noise_of_a_gradient_away(samples):
    """A pixel of value v gets the right sign with probability Phi(v sqrt(samples) / sigma)."""
    torch.manual_seed(1)
    x, sigma = torch.full((200, 1, 5, 5), 0.2), 0.5
    attack = EOT(FGSM(Threat("linf", 0.1, (-1.0, 1.0)), loss="margin"), samples)
    risen = int((attack(Jittered(sigma), x, torch.zeros(200).long()) > x).sum())
    assert stats.binomtest(risen, x.numel(), stats.norm.cdf(0.2 * samples**0.5 / sigma)).pvalue > 1e-3


def test_eot_climbs_the_expected_logits_where_a_single_pass_does_not():
    torch.manual_seed(1)
    x, y, threat = torch.full((50, 1, 5, 5), 0.2), torch.zeros(50).long(), Threat("linf", 0.1, (-1.0, 1.0))
    plain = MIFGSM(threat, steps=5, decay=0.0, loss="margin")
    reached = {
        name: float(attack(Jittered(1.0), x, y).flatten(1).square().sum(1).mean())
        for name, attack in {"plain": plain, "EOT": EOT(plain, 40)}.items()
    }
    best = 25 * 0.3**2
    assert reached["plain"] < 0.7 * best
    assert reached["EOT"] > 0.9 * best


@NORM
@pytest.mark.parametrize("evaluating", [False, True])
def test_without_noise_eot_is_its_attack_at_a_multiple_of_its_price(norm, evaluating):
    model = classifier((3, 4, 4), torch.float64)
    x = torch.rand(30, 3, 4, 4).double()
    y = model(x).argmax(1)
    for plain in (FGSM(), PGD(steps=4, restarts=2), APGD(steps=5, loss="dlr"), PGD(steps=3, loss="margin", targets=2)):
        attack = plain.under(Threat(norm, 0.1 if norm == "linf" else 0.4))
        attack = attack.evaluating() if evaluating else attack
        once, often = Counting(model), Counting(model)
        expected = attack(once, x, y, draws(30))
        torch.testing.assert_close(EOT(attack, 5)(often, x, y, draws(30)), expected, rtol=1e-9, atol=1e-9)
        assert often.sizes == [5 * size for size in once.sizes]
        assert EOT(plain, 5).budget == 5 * plain.budget
        assert EOT(plain, 5).name == f"{plain.name} EOT-5"


def test_eot_leaves_labels_with_their_images_in_every_sample():
    """Each image of a batch keeps its own mean, whatever its place."""

    class Noisy(nn.Module):
        def forward(self, x):
            z = x.flatten(1).mean(1)
            return torch.stack([10 * z, torch.randn_like(z)], 1)

    x = torch.linspace(-1, 1, 11).reshape(11, 1, 1, 1).expand(-1, 1, 2, 2)
    seen = []

    class Spy(FGSM):
        def perturb(self, model, x, y, draws):
            seen.append(model(x))
            return x

    EOT(Spy(Threat(box=(-1.0, 1.0))), 400)(Noisy(), x, torch.zeros(11).long())
    torch.testing.assert_close(seen[0][:, 0], 10 * torch.linspace(-1, 1, 11))
    assert seen[0][:, 1].abs().max() < 5 / 20
    assert np.abs(np.corrcoef(seen[0].T)[0, 1]) < 0.9


def test_eot_needs_a_sample():
    with pytest.raises(ValueError, match="at least 1"):
        EOT(FGSM(), 0)


# --- Transfer ---


@NORM
@pytest.mark.parametrize("evaluating", [False, True])
def test_transfer_crafts_on_its_source_and_never_asks_the_target(norm, evaluating, network, batch):
    source = type(network)()
    threat = Threat(norm, "8/255" if norm == "linf" else 0.5)
    for plain in (FGSM(threat), PGD(threat, steps=3, restarts=2), APGD(threat, steps=3), MIFGSM(threat, steps=3)):
        expected = plain(source, *batch, draws(6))
        target, counted = Counting(network), Counting(source)
        with untouched(network), untouched(source):
            attack = Transfer(plain, counted)
            found = (attack.evaluating() if evaluating else attack)(target, *batch, draws(6))
        assert found.equal(expected)
        assert target.sizes == []
        assert counted.sizes[0] == 6
        assert not found.equal(plain(network, *batch, draws(6)))


def test_transfer_leaves_its_source_as_it_was_when_it_fails(network, batch):
    failing = Counting(type(network)(), fail_at=2)
    with untouched(failing), untouched(network), pytest.raises(RuntimeError, match="out of memory"):
        Transfer(PGD(Threat(), steps=3), failing)(network, *batch)


def test_in_evaluation_transfer_makes_all_its_steps():
    """What breaks the source at once need not break the target: in training nothing leaves, and here neither."""
    source, x, y = two_classes()
    counted = Counting(source)
    Transfer(PGD(Threat("linf", 0.1), steps=7), counted).evaluating()(nn.Identity(), x, 1 - y, draws(6))
    assert counted.sizes == [6] * 7


def test_transfer_may_be_from_the_attacked_model_itself(network, batch):
    plain = PGD(Threat(), steps=3)
    with untouched(network):
        found = Transfer(plain, network)(network, *batch, draws(6))
    assert found.equal(plain(network, *batch, draws(6)))


def test_transfer_uses_the_batch_norm_mode_of_its_attack(network, batch):
    source = type(network)().train()
    plain = PGD(Threat(), steps=3, batchnorm="train")
    assert Transfer(plain, source)(network, *batch, draws(6)).equal(plain(source, *batch, draws(6)))


def test_transfer_says_where_it_comes_from_and_has_no_budget():
    attack = Transfer(PGD(steps=3), nn.Identity())
    assert attack.name == "PGD-3 from another model"
    assert Transfer(PGD(steps=3), nn.Identity(), "resnet18").name == "PGD-3 from resnet18"
    assert attack.budget is None
