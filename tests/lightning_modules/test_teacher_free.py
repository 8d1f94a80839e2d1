"""Learning from a smaller teacher, from oneself and from no teacher, held against paper 003 and Yuan et al.'s code."""

import inspect

import pytest
import torch
from formulas import Double, ce, check, crafted, kl, kl_from, log_p, sharpen, shown, smooth
from regime_helpers import FACTS, STEPS, build, name, pgd
from torch import Tensor
from torch.nn import functional as F

from lightning_modules import ReversedKD, TfKDReg, TfKDSelf

T = 3.0
CLASSES = FACTS.classes
ALPHA = pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
CE_T = pytest.mark.parametrize(("option", "ce_t"), [(1, 1.0), ("t", T)])
ATTACK = pytest.mark.parametrize("attacked", [False, True])


def virtual(y: Tensor, d: float, t: float) -> Tensor:
    """``p^d_t``: the powers 1/t of d and of (1 - d) / (C - 1), made to sum to 1."""
    powers = smooth(y, d) ** (1 / t)
    return powers / powers.sum(1, keepdim=True)


@ALPHA
@CE_T
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_reversed_kd_has_no_factor(batch, mlp_teacher, alpha, option, ce_t, reduction):
    """003 eq. 2: the KL is not multiplied by t²."""
    options = {"temperature": T, "ce_temperature": option, "kl_reduction": reduction}
    regime = sharpen(build(ReversedKD, mlp_teacher, alpha=alpha, **options))
    z_t = Double(regime.teacher.module)(batch.x)
    divisor = CLASSES if reduction == "mean" else 1
    check(
        regime,
        batch,
        lambda net: (1 - alpha) * ce(net(batch.x), batch.y, ce_t) + alpha * kl(z_t, net(batch.x), T) / divisor,
    )


def test_reversed_kds_defaults(batch, mlp_teacher):
    """0.6 and 20, of Yuan et al.'s code."""
    regime = sharpen(build(ReversedKD, mlp_teacher))
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: 0.4 * ce(net(batch.x), batch.y) + 0.6 * kl(z_t, net(batch.x), 20.0))


def seen_by(attacked: bool, regime: TfKDSelf | TfKDReg, batch) -> Tensor:
    """What the student is trained on: x, or x' by PGD on the cross-entropy."""
    return crafted(regime, batch) if attacked else batch.x


@ALPHA
@ATTACK
def test_tf_kd_self(batch, mlp_teacher, alpha, attacked):
    """003 eq. 3, and 6 with an attack: the pre-trained network is asked about x, no factor t²."""
    options = {"alpha": alpha, "temperature": T} | ({"attack": pgd()} if attacked else {})
    regime = sharpen(build(TfKDSelf, mlp_teacher, **options))
    x = seen_by(attacked, regime, batch)
    assert torch.equal(x, batch.x) != attacked
    z_pre = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: (1 - alpha) * ce(net(x), batch.y) + alpha * kl(z_pre, net(x), T))


@ALPHA
@ATTACK
@pytest.mark.parametrize("multiplier", [None, 1.0, 7.5])
def test_tf_kd_self_as_released(batch, mlp_teacher, alpha, attacked, multiplier):
    """``KLDivLoss()`` means over B · C, times t², times 50 unless given otherwise."""
    options = {"alpha": alpha, "temperature": T} | ({"attack": pgd()} if attacked else {})
    regime = sharpen(build(TfKDSelf, mlp_teacher, compat="yuan2020", multiplier=multiplier, **options))
    x = seen_by(attacked, regime, batch)
    z_pre = Double(regime.teacher.module)(batch.x)
    constant = 50 if multiplier is None else multiplier
    check(
        regime,
        batch,
        lambda net: (1 - alpha) * ce(net(x), batch.y) + alpha * constant * T * T * kl(z_pre, net(x), T) / CLASSES,
    )


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_tf_kd_self_is_the_authors_line(batch, mlp_teacher):
    """``nn.KLDivLoss()(log_softmax(z / T), softmax(z_pre / T)) * (T * T) * multiplier`` (loss_kd_self)."""
    regime = sharpen(build(TfKDSelf, mlp_teacher, compat="yuan2020"))
    z, z_pre = regime.network(batch.x), regime.teacher.module(batch.x)
    term = torch.nn.KLDivLoss()(F.log_softmax(z / 6, 1), F.softmax(z_pre / 6, 1)) * (6 * 6) * 50
    expected = 0.05 * F.cross_entropy(z, batch.y) + 0.95 * term
    torch.testing.assert_close(regime.step(batch, 0)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_pre_trained_network_sees_clean_images(batch, mlp_teacher):
    regime = build(TfKDSelf, mlp_teacher, attack=pgd())
    with shown(regime.teacher.module) as asked, shown(regime.network) as seen:
        regime.step(batch, 0)
    (x,) = asked
    assert torch.equal(x, batch.x)
    assert len(seen) == STEPS + 1
    assert torch.equal(seen[-1], crafted(regime, batch))


@ALPHA
@ATTACK
@pytest.mark.parametrize("confidence", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_tf_kd_reg(batch, alpha, attacked, confidence, temperature):
    """003 eq. 4, and 7 with an attack: both distributions are softened, no factor t²."""
    options = {"alpha": alpha, "temperature": temperature, "confidence": confidence}
    regime = sharpen(build(TfKDReg, **options, **({"attack": pgd()} if attacked else {})))
    x = seen_by(attacked, regime, batch)
    p = virtual(batch.y, confidence, temperature)
    check(regime, batch, lambda net: (1 - alpha) * ce(net(x), batch.y) + alpha * kl_from(p, net(x), temperature))


@ALPHA
@ATTACK
@pytest.mark.parametrize("multiplier", [None, 1.0, 7.5])
def test_tf_kd_reg_as_released(batch, alpha, attacked, multiplier):
    """The *probabilities* are divided by t and put through a softmax, the student is not tempered; times 100 / C."""
    regime = sharpen(
        build(
            TfKDReg,
            alpha=alpha,
            temperature=T,
            confidence=0.97,
            compat="yuan2020",
            multiplier=multiplier,
            **({"attack": pgd()} if attacked else {}),
        )
    )
    x = seen_by(attacked, regime, batch)
    p = log_p(smooth(batch.y, 0.97), T).exp()
    constant = 100 if multiplier is None else multiplier
    check(
        regime,
        batch,
        lambda net: (1 - alpha) * ce(net(x), batch.y) + alpha * constant * kl_from(p, net(x)) / CLASSES,
    )


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_tf_kd_reg_is_the_authors_line(batch):
    """``nn.KLDivLoss()(log_softmax(z), softmax(teacher_soft / T)) * multiplier`` (loss_kd_regularization)."""
    regime = sharpen(build(TfKDReg, compat="yuan2020"))
    z = regime.network(batch.x)
    soft = torch.full_like(z, 0.01 / (CLASSES - 1))
    soft[torch.arange(len(z)), batch.y] = 0.99
    term = torch.nn.KLDivLoss()(F.log_softmax(z, 1), F.softmax(soft / 20, 1)) * 100
    expected = 0.9 * F.cross_entropy(z, batch.y) + 0.1 * term
    torch.testing.assert_close(regime.step(batch, 0)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_virtual_teacher_at_temperature_one_is_label_smoothing(batch):
    """003, §4.3: ``(1 - a) CE + a KL(p^d || p)`` has the gradient of cross-entropy with one mixed target."""
    regime = sharpen(build(TfKDReg, alpha=0.3, temperature=1.0, confidence=0.9))
    net = Double(regime.network)
    mixed = 0.7 * smooth(batch.y, 1.0) + 0.3 * smooth(batch.y, 0.9)
    expected = net.gradients(-(mixed * log_p(net(batch.x))).sum() / len(batch.y))
    regime.step(batch, 0)[0].backward()
    for key, parameter in regime.network.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), expected[key], rtol=1e-3, atol=1e-5)


def test_what_the_softmax_is_trained_at(mlp_teacher):
    """A strong attack divides by it: a student that is left untempered was trained at 1."""
    assert build(TfKDReg, temperature=T, compat="yuan2020").trained_at == 1.0
    assert build(TfKDReg, temperature=T).trained_at == T
    assert build(TfKDSelf, mlp_teacher, temperature=T).trained_at == T
    assert build(ReversedKD, mlp_teacher, temperature=T).trained_at == T


def test_the_defaults_are_the_authors():
    def defaults(regime: type, *arguments: str) -> tuple:
        parameters = inspect.signature(regime.__init__).parameters
        return tuple(parameters[argument].default for argument in arguments)

    assert defaults(ReversedKD, "alpha", "temperature") == (0.6, 20.0)
    assert defaults(TfKDSelf, "alpha", "temperature", "attack", "compat") == (0.95, 6.0, None, None)
    assert defaults(TfKDReg, "alpha", "temperature", "confidence") == (0.1, 20.0, 0.99)
    assert defaults(TfKDReg, "attack", "compat") == (None, None)


@pytest.mark.parametrize(
    ("regime", "options", "message"),
    [
        *((TfKDReg, {"confidence": value}, f"confidence.* got {value}") for value in (0.89, 1.01, float("nan"))),
        (TfKDReg, {"alpha": 1.1}, r"alpha must lie in \[0, 1\], got 1.1"),
        (TfKDReg, {"alpha": -0.1}, r"alpha must lie in \[0, 1\], got -0.1"),
        (TfKDReg, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (TfKDReg, {"temperature": -1.0}, "temperature must be positive, got -1.0"),
        *((regime, {"compat": "hinton2015"}, "compat .*hinton2015") for regime in (TfKDSelf, TfKDReg)),
        *((regime, {"multiplier": 50.0}, "multiplier=50.0 needs compat") for regime in (TfKDSelf, TfKDReg)),
        *((regime, {"multiplier": 0.0}, "multiplier=0.0 needs compat") for regime in (TfKDSelf, TfKDReg)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else name(value).replace(" ", ""),
)
def test_refused_arguments(mlp_teacher, regime, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(regime, mlp_teacher, **options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regime", [TfKDSelf, TfKDReg], ids=name)
def test_a_negative_constant_is_refused(mlp_teacher, regime):
    with pytest.raises(ValueError, match=r"multiplier .*-1"):
        build(regime, mlp_teacher, compat="yuan2020", multiplier=-1.0)
