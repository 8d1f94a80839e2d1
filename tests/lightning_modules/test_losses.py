"""The losses against NumPy in float64, their limits and their gradients in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import special, stats
from torch.nn import functional as F

from lightning_modules import losses

CLOSE = {"rtol": 1e-4, "atol": 2e-5}

temperatures = st.sampled_from([0.5, 1.0, 4.0, 20.0, 30.0])
weights = st.floats(0, 1, width=32)


def arrays(shape: tuple[int, ...], bound: float = 20):
    return hnp.arrays(np.float32, shape, elements=st.floats(-bound, bound, width=32))


@st.composite
def problems(draw, count: int = 2):
    """Some logits of the same batch (as many as ``count``), and its labels."""
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    logits = [draw(arrays((batch, classes))) for _ in range(count)]
    y = draw(hnp.arrays(np.int64, (batch,), elements=st.integers(0, classes - 1)))
    return *logits, y


def log_p(z, t=1.0):
    return special.log_softmax(z.astype(np.float64) / t, axis=1)


def numpy_ce(z, y, t=1.0):
    return -log_p(z, t)[np.arange(len(y)), y].mean()


def numpy_kl(target, student, t=1.0):
    return special.rel_entr(np.exp(log_p(target, t)), np.exp(log_p(student, t))).sum(1).mean()


def tensors(*values, grad=False):
    found = [torch.tensor(value) for value in values]
    return [value.requires_grad_(grad and value.is_floating_point()) for value in found]


@given(problems(1), temperatures)
def test_cross_entropy(problem, t):
    z, y = problem
    assert_allclose(losses.cross_entropy(*tensors(z, y), t), numpy_ce(z, y, t), **CLOSE)


@given(problems(1))
def test_cross_entropy_is_torchs_at_temperature_one(problem):
    z, y = tensors(*problem)
    torch.testing.assert_close(losses.cross_entropy(z, y), F.cross_entropy(z, y))


@given(problems(), temperatures, temperatures)
def test_soft_cross_entropy(problem, t, student_t):
    teacher, student, _ = problem
    expected = -(np.exp(log_p(teacher, t)) * log_p(student, student_t)).sum(1).mean()
    assert_allclose(losses.soft_cross_entropy(*tensors(teacher, student), t, student_t), expected, **CLOSE)


@given(problems(), temperatures)
def test_kl_divergence_is_scipys_relative_entropy_of_target_and_student(problem, t):
    target, student, _ = problem
    expected = stats.entropy(np.exp(log_p(target, t)), np.exp(log_p(student, t)), axis=1).mean()
    assert_allclose(losses.kl_divergence(*tensors(target, student), t), expected, **CLOSE)


def test_kl_divergence_by_hand():
    """p = (3/4, 1/4) against q = (1/2, 1/2), which the other order of arguments does not give."""
    target, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    there = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    back = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert losses.kl_divergence(target, student).item() == pytest.approx(there, abs=1e-6)
    assert losses.kl_divergence(student, target).item() == pytest.approx(back, abs=1e-6)


@given(problems(), temperatures)
def test_soft_cross_entropy_less_the_teachers_entropy_is_kl(problem, t):
    teacher, student, _ = problem
    soft = losses.soft_cross_entropy(*tensors(teacher, student), t, t)
    entropy = stats.entropy(np.exp(log_p(teacher, t)), axis=1).mean()
    assert_allclose(soft - entropy, losses.kl_divergence(*tensors(teacher, student), t), **CLOSE)


@given(problems(), temperatures)
def test_mean_divides_by_the_classes_too(problem, t):
    target, student = tensors(*problem[:2])
    whole = losses.kl_divergence(target, student, t, "batchmean")
    part = losses.kl_divergence(target, student, t, "mean")
    torch.testing.assert_close(whole, part * target.shape[1])


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_mean_is_what_torchs_kldivloss_does_by_default():
    target, student = torch.randn(2, 4, 10)
    reference = torch.nn.KLDivLoss()(F.log_softmax(student / 5, 1), F.softmax(target / 5, 1))
    torch.testing.assert_close(losses.kl_divergence(target, student, 5.0, "mean"), reference)


@given(problems(3), weights, temperatures, temperatures, st.sampled_from(["batchmean", "mean"]))
def test_distillation(problem, alpha, t, ce_t, reduction):
    teacher, student, clean, y = problem
    divisor = 1 if reduction == "batchmean" else teacher.shape[1]
    expected = alpha * t**2 * numpy_kl(teacher, student, t) / divisor + (1 - alpha) * numpy_ce(clean, y, ce_t)
    found = losses.distillation(*tensors(teacher, student, clean, y), alpha, t, ce_t, reduction)
    # t^2 = 900 magnifies the rounding of the KL, too
    assert_allclose(found, expected, rtol=1e-3, atol=2e-6 * t**2 + 5e-5)


@given(problems(), temperatures)
def test_distillation_tempers_the_cross_entropy_only_where_told(problem, t):
    student, clean, y = problem
    default = losses.distillation(None, *tensors(student, clean, y), 0.0, t)
    assert_allclose(default, numpy_ce(clean, y), **CLOSE)
    printed = losses.distillation(None, *tensors(student, clean, y), 0.0, t, ce_t=t)
    assert_allclose(printed, numpy_ce(clean, y, t), **CLOSE)


@given(problems(), temperatures)
def test_distillation_without_a_teacher_at_alpha_zero_and_without_clean_logits_at_one(problem, t):
    first, second, y = problem
    labels_alone = losses.distillation(None, None, *tensors(first, y), 0.0, t)
    assert_allclose(labels_alone, numpy_ce(first, y), **CLOSE)
    teacher_alone = losses.distillation(*tensors(first, second), None, torch.tensor(y), 1.0, t)
    assert_allclose(teacher_alone, t**2 * numpy_kl(first, second, t), rtol=1e-3, atol=2e-6 * t**2 + 5e-5)


@given(problems(1), temperatures)
def test_a_student_that_agrees_with_its_teacher_loses_nothing(problem, t):
    (z,) = tensors(problem[0])
    shifted = z + 1  # the same distribution
    assert losses.kl_divergence(z, z.clone(), t).item() == pytest.approx(0, abs=1e-6)
    assert losses.kl_divergence(z, shifted, t).item() == pytest.approx(0, abs=5e-5)
    assert losses.distillation(z, z.clone(), None, None, 1.0, t).item() == pytest.approx(0, abs=1e-6 * t**2)


@given(arrays((3, 7), 3), arrays((3, 7), 3))
def test_at_a_high_temperature_kl_matches_logits(teacher, student):
    """p_c = (1 + (z_c - mean z) / t) / C + O(t^-2), so t^2 KL -> 1/(2C) sum_c (d_c - mean d)^2, d = z_T - z_S.

    With P = p_T, Q = p_S the leading term of KL is 1/2 sum_c (P - Q)^2 / Q = C/2 sum_c ((d_c - mean d) / (t C))^2.
    """
    expected = 0.5 * (teacher.astype(np.float64) - student).var(axis=1).mean()
    found = losses.distillation(*tensors(teacher, student), None, None, 1.0, 100.0)
    # the next term is smaller by |z| / t; float32 leaves t^2 times its epsilon
    assert_allclose(found, expected, rtol=0.1, atol=5e-3)


@given(problems(), temperatures)
def test_gradients_of_kl_reach_both_sides(problem, t):
    """d/dz_S = (q - p) / t; d/dz_T = p (log p - log q - KL) / t, each over the batch."""
    target, student, _ = problem
    a, b = tensors(target, student, grad=True)
    losses.kl_divergence(a, b, t).backward()
    log_target, log_student = log_p(target, t), log_p(student, t)
    p, q = np.exp(log_target), np.exp(log_student)
    kl = (p * (log_target - log_student)).sum(1, keepdims=True)
    assert_allclose(b.grad, (q - p) / t / len(p), **CLOSE)
    assert_allclose(
        a.grad, p * (log_target - log_student - kl) / t / len(p), rtol=1e-4, atol=2e-4
    )  # differences of up to 80


@given(problems(3), st.floats(0.1, 0.9), st.sampled_from([1.0, 4.0, 30.0]))
def test_gradients_of_distillation_do_not_shrink_with_the_temperature(problem, alpha, t):
    """a t (p(z_S, t) - p(z_T, t)) / B for the KL, (1 - a) (p(z) - onehot) / B for the cross-entropy."""
    teacher, student, clean, y = problem
    s, c = tensors(student, clean, grad=True)
    losses.distillation(torch.tensor(teacher), s, c, torch.tensor(y), alpha, t).backward()
    p, q = np.exp(log_p(teacher, t)), np.exp(log_p(student, t))
    assert_allclose(s.grad, alpha * t * (q - p) / len(y), rtol=1e-3, atol=1e-5 * t)
    onehot = np.eye(clean.shape[1])[y]
    assert_allclose(c.grad, (1 - alpha) * (np.exp(log_p(clean)) - onehot) / len(y), **CLOSE)


def test_hintons_loss_has_both_terms_on_the_same_logits():
    """With ``clean`` and ``student`` one tensor, its gradient is the sum of both terms'."""
    teacher, z = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)
    y = torch.tensor([0, 4, 2, 1])
    losses.distillation(teacher, z, z, y, 0.9, 4.0).backward()
    kl = 4.0 * (F.softmax(z / 4, 1) - F.softmax(teacher / 4, 1))
    ce = F.softmax(z, 1) - F.one_hot(y, 5)
    torch.testing.assert_close(z.grad, ((0.9 * kl + 0.1 * ce) / 4).detach(), rtol=1e-4, atol=1e-6)


@given(problems(), st.floats(0, 10, width=32))
def test_trades(problem, beta):
    clean, adversarial, y = problem
    expected = numpy_ce(clean, y) + beta * numpy_kl(clean, adversarial)
    assert_allclose(losses.trades(*tensors(clean, adversarial, y), beta), expected, rtol=1e-4, atol=2e-4)


@given(problems())
def test_trades_does_not_detach_its_target(problem):
    clean, adversarial, y = problem
    a, b = tensors(clean, adversarial, grad=True)
    losses.trades(a, b, torch.tensor(y), 6.0).backward()
    log_clean, log_adversarial = log_p(clean), log_p(adversarial)
    p, q = np.exp(log_clean), np.exp(log_adversarial)
    kl = (p * (log_clean - log_adversarial)).sum(1, keepdims=True)
    through_target = p * (log_clean - log_adversarial - kl)
    onehot = np.eye(clean.shape[1])[y]
    assert_allclose(a.grad, (p - onehot + 6 * through_target) / len(y), rtol=1e-4, atol=1e-4)
    assert_allclose(b.grad, 6 * (q - p) / len(y), rtol=1e-4, atol=1e-4)


# Label smoothing


def explicit(y, own, classes):
    """``own`` on the label, the rest in equal parts on the others, written entry by entry."""
    return np.array([[own if c == label else (1 - own) / (classes - 1) for c in range(classes)] for label in y])


@given(problems(1), temperatures, weights)
def test_smoothed_cross_entropy(problem, t, share):
    z, y = problem
    classes = z.shape[1]
    s = share * (1 - 1 / classes)
    expected = -(explicit(y, 1 - s, classes) * log_p(z, t)).sum(1).mean()
    assert_allclose(losses.cross_entropy(*tensors(z, y), t, s), expected, **CLOSE)


@given(problems(1), temperatures)
def test_no_smoothing_is_the_label_itself(problem, t):
    z, y = tensors(*problem)
    assert torch.equal(losses.cross_entropy(z, y, t, 0.0), losses.cross_entropy(z, y, t))


@given(problems(1), st.sampled_from([0.05, 0.1, 0.3]))
def test_torchs_label_smoothing_is_another(problem, s):
    """It spreads s over all the classes, the label's too: s there is s (C - 1) / C here."""
    z, y = tensors(*problem)
    classes = z.shape[1]
    ours = losses.cross_entropy(z, y, 1.0, s * (classes - 1) / classes)
    torch.testing.assert_close(ours, F.cross_entropy(z, y, label_smoothing=s), rtol=1e-4, atol=2e-5)


def test_at_the_largest_smoothing_all_classes_are_alike():
    z = torch.randn(6, 4)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(losses.cross_entropy(z, y, 1.0, 0.75), losses.cross_entropy(z, y.flip(0), 1.0, 0.75))
    torch.testing.assert_close(losses.cross_entropy(z, y, 1.0, 0.75), -F.log_softmax(z, 1).mean())


@given(problems(1), temperatures, weights)
def test_gradient_of_smoothed_cross_entropy(problem, t, share):
    """(p(z, t) - q) / t, over the batch."""
    z, y = problem
    s = share * (1 - 1 / z.shape[1])
    (a,) = tensors(z, grad=True)
    losses.cross_entropy(a, torch.tensor(y), t, s).backward()
    expected = (np.exp(log_p(z, t)) - explicit(y, 1 - s, z.shape[1])) / t / len(y)
    assert_allclose(a.grad, expected, **CLOSE)


@pytest.mark.parametrize(("value", "classes"), [(-0.01, 10), (0.91, 10), (0.51, 2), (1.0, 10), (float("nan"), 10)])
def test_smoothing_out_of_its_range_is_refused(value, classes):
    with pytest.raises(ValueError, match=f"smoothing .*{value}"):
        losses.check_smoothing(value, classes)


@pytest.mark.parametrize(("value", "classes"), [(0.0, 10), (0.1, 10), (0.9, 10), (0.5, 2), (0.99, 100)])
def test_smoothing_in_its_range_passes(value, classes):
    losses.check_smoothing(value, classes)


# Teachers that are distributions


@given(st.integers(2, 12), st.floats(0.9, 1.0), temperatures, st.data())
def test_virtual_teacher(classes, d, t, data):
    """``p^d`` at the temperature t: powers 1/t, made to sum to 1 (003, §4.3.2)."""
    y = data.draw(hnp.arrays(np.int64, (5,), elements=st.integers(0, classes - 1)))
    powers = explicit(y, d, classes) ** (1 / t)
    found = losses.virtual_teacher(torch.tensor(y), classes, d, t)
    assert found.shape == (5, classes)
    # 1 - d is a small number: in float32 it has the rounding of d
    assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-3, atol=2e-6)
    assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found.argmax(1).numpy() == y).all()


@pytest.mark.parametrize("t", [1.0, 20.0])
def test_a_virtual_teacher_that_is_certain_is_the_label(t):
    y = torch.tensor([2, 0])
    assert torch.equal(losses.virtual_teacher(y, 4, 1.0, t).float(), F.one_hot(y, 4).float())


def test_virtual_teacher_by_hand():
    """0.99 on the label, 0.01 / 9 elsewhere; its square roots at t = 2."""
    (row,) = losses.virtual_teacher(torch.tensor([3]), 10, 0.99, 1.0)
    assert_allclose(row, [0.99 if c == 3 else 0.01 / 9 for c in range(10)], rtol=1e-5)
    (row,) = losses.virtual_teacher(torch.tensor([3]), 10, 0.99, 2.0)
    total = 0.99**0.5 + 9 * (0.01 / 9) ** 0.5
    assert_allclose(row, [(0.99 if c == 3 else 0.01 / 9) ** 0.5 / total for c in range(10)], rtol=1e-5)


@given(problems(), temperatures)
def test_divergence_from_a_distribution(problem, t):
    """That of a softmax is the KL of its logits."""
    target, student, _ = problem
    q = np.exp(log_p(target))
    expected = special.rel_entr(q, np.exp(log_p(student, t))).sum(1).mean()
    assert_allclose(losses.divergence_from(torch.tensor(q).float(), torch.tensor(student), t), expected, **CLOSE)


@given(problems(1), temperatures)
def test_divergence_from_a_label_is_cross_entropy(problem, t):
    """0 log 0 = 0, and the gradient is that of cross-entropy."""
    z, y = problem
    (a,) = tensors(z, grad=True)
    q = torch.tensor(np.eye(z.shape[1], dtype=np.float32)[y])
    loss = losses.divergence_from(q, a, t)
    assert_allclose(loss.item(), numpy_ce(z, y, t), **CLOSE)
    loss.backward()
    assert_allclose(a.grad, (np.exp(log_p(z, t)) - q.numpy()) / t / len(y), **CLOSE)


@given(problems(), st.data())
def test_introspection(problem, data):
    """``mean_i (1 - r_i) KL(p(clean_i) || p(adversarial_i))``, and no gradient to the trust."""
    clean, adversarial, _ = problem
    trust = data.draw(hnp.arrays(np.float32, (len(clean),), elements=weights))
    each = special.rel_entr(np.exp(log_p(clean)), np.exp(log_p(adversarial))).sum(1)
    found = losses.introspection(*tensors(clean, adversarial, trust))
    assert found.shape == ()
    assert_allclose(found, ((1 - trust.astype(np.float64)) * each).mean(), **CLOSE)


@given(problems(), st.data())
def test_gradients_of_introspection_reach_both_sides(problem, data):
    clean, adversarial, _ = problem
    trust = data.draw(hnp.arrays(np.float32, (len(clean),), elements=weights))
    a, b = tensors(clean, adversarial, grad=True)
    losses.introspection(a, b, torch.tensor(trust)).backward()
    log_clean, log_adversarial = log_p(clean), log_p(adversarial)
    p, q = np.exp(log_clean), np.exp(log_adversarial)
    kl = (p * (log_clean - log_adversarial)).sum(1, keepdims=True)
    share = (1 - trust.astype(np.float64))[:, None] / len(p)
    assert_allclose(a.grad, share * p * (log_clean - log_adversarial - kl), rtol=1e-4, atol=2e-4)
    assert_allclose(b.grad, share * (q - p), **CLOSE)


def test_introspection_of_full_trust_is_nothing():
    first, second = torch.randn(2, 6, 10)
    assert losses.introspection(first, second, torch.ones(6)).item() == 0
    whole = losses.kl_divergence(first, second)
    torch.testing.assert_close(losses.introspection(first, second, torch.zeros(6)), whole)


@given(problems(3), weights, temperatures, st.sampled_from([0.0, 1.0, 50.0]), st.sampled_from(["batchmean", "mean"]))
def test_a_scale_stands_in_the_place_of_the_squared_temperature(problem, alpha, t, scale, reduction):
    teacher, student, clean, y = problem
    divisor = 1 if reduction == "batchmean" else teacher.shape[1]
    expected = alpha * scale * numpy_kl(teacher, student, t) / divisor + (1 - alpha) * numpy_ce(clean, y)
    found = losses.distillation(*tensors(teacher, student, clean, y), alpha, t, 1.0, reduction, scale)
    assert_allclose(found, expected, rtol=1e-3, atol=2e-6 * scale + 5e-5)


@given(problems(3), weights, temperatures)
def test_without_a_scale_it_is_the_squared_temperature(problem, alpha, t):
    given = tensors(*problem)
    assert torch.equal(losses.distillation(*given, alpha, t), losses.distillation(*given, alpha, t, scale=t * t))


def every_loss(first, second, y):
    distribution = torch.eye(first.shape[1])[y]
    return {
        "smoothed": losses.cross_entropy(first, y, 4.0, 0.1),
        "divergence_from": losses.divergence_from(distribution, first, 4.0),
        "introspection": losses.introspection(first, second, torch.full((len(y),), 0.25)),
        "cross_entropy": losses.cross_entropy(first, y, 4.0),
        "soft_cross_entropy": losses.soft_cross_entropy(first, second, 4.0, 1.0),
        "kl_divergence": losses.kl_divergence(first, second, 4.0),
        "distillation": losses.distillation(first, second, second, y, 0.5, 4.0),
        "trades": losses.trades(first, second, y, 6.0),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_computed_in_float32_whatever_the_precision(dtype, autocast):
    first, second, y = torch.randn(6, 10).to(dtype), torch.randn(6, 10).to(dtype), torch.arange(6)
    expected = every_loss(first.float(), second.float(), y)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = every_loss(first, second, y)
    for name, loss in found.items():
        assert loss.dtype == torch.float32, name
        assert loss.shape == (), name
        torch.testing.assert_close(loss, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_saturated_logits_stay_finite():
    """A network distilled at a high temperature has logits in the thousands at T = 1."""
    first = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    second = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    for name, loss in every_loss(first, second, torch.tensor([1])).items():
        gradients = torch.autograd.grad(loss, (first, second), allow_unused=True, retain_graph=True)
        assert loss.isfinite(), name
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None), name
    assert losses.kl_divergence(first, second).item() == pytest.approx(2e4)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive_are_refused(value):
    with pytest.raises(ValueError, match="t_student"):
        losses.check_temperature("t_student", value)


@pytest.mark.parametrize("value", [1e-3, 1, 1.0, 100])
def test_positive_temperatures_pass(value):
    losses.check_temperature("t", value)


@pytest.mark.parametrize("value", [-1e-6, 1.0001, -1, 900, float("nan"), float("inf")])
def test_weights_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError, match="alpha"):
        losses.check_weight("alpha", value)


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.93, 1.0])
def test_weights_in_the_unit_interval_pass(value):
    losses.check_weight("alpha", value)
