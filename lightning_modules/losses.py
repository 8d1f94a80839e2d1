"""The losses of every regime, as functions of tensors.

Notation: ``z_S``, ``z_T`` logits of student and teacher, shape (B, C); ``p(z, t) = softmax(z / t)``; ``y`` labels,
shape (B,). Every function returns a scalar, the mean over the batch, computed in float32 whatever the precision of the
logits. Temperatures are positive and mixing weights lie in [0, 1]; :func:`check_temperature` and :func:`check_weight`
refuse others before training starts.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

KLReduction = Literal["batchmean", "mean"]


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError for a temperature that is not positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def check_weight(name: str, value: float) -> None:
    """Raises ValueError for a mixing weight outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}.")


def check_smoothing(value: float, classes: int) -> None:
    """Raises ValueError for label smoothing that is negative or leaves the label less than the other classes."""
    if not 0 <= value <= 1 - 1 / classes:
        raise ValueError(f"smoothing must lie in [0, {1 - 1 / classes:g}] for {classes} classes, got {value}.")


def cross_entropy(logits: Tensor, y: Tensor, t: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """``CE(z / t, q)`` with ``q = 1 - s`` on y and ``s / (C - 1)`` elsewhere.

    Paper 000 trains its teachers with t = T and s = 0; label smoothing (003, §4.2) has t = 1 and s = 0.1.
    """
    classes = logits.shape[1]
    # torch spreads its share over all the classes, the label's own among them.
    return F.cross_entropy(logits.float() / t, y, label_smoothing=smoothing * classes / (classes - 1))


def soft_cross_entropy(teacher: Tensor, student: Tensor, t: float, student_t: float) -> Tensor:
    """``-sum_c p(z_T, t)_c log p(z_S, t_S)_c``, averaged over the batch: defensive distillation (000, eq. 5; 001).

    There is no factor t^2.
    """
    target = (teacher.float() / t).softmax(1)
    return -(target * (student.float() / student_t).log_softmax(1)).sum(1).mean()


def kl_divergence(target: Tensor, student: Tensor, t: float = 1.0, reduction: KLReduction = "batchmean") -> Tensor:
    """``KL(p(z_T, t) || p(z_S, t)) = sum_c p_T (log p_T - log p_S)`` of logits; gradients flow to both sides.

    Args:
        target: logits of the target distribution.
        student: logits of the distribution that is to match it.
        t: temperature of both.
        reduction: ``batchmean`` sums over the classes and averages over the batch, as the equations do; ``mean`` also
            divides by the number of classes, as ``torch.nn.KLDivLoss()`` does by default and with it the code released
            with ARD.
    """
    log_target = (target.float() / t).log_softmax(1)
    log_student = (student.float() / t).log_softmax(1)
    loss = F.kl_div(log_student, log_target, reduction="batchmean", log_target=True)
    return loss / target.shape[1] if reduction == "mean" else loss


def distillation(
    teacher: Tensor | None,
    student: Tensor | None,
    clean: Tensor | None,
    y: Tensor,
    alpha: float,
    t: float,
    ce_t: float = 1.0,
    reduction: KLReduction = "batchmean",
    scale: float | None = None,
) -> Tensor:
    """``a t^2 KL(p(z_T, t) || p(z_S, t)) + (1 - a) CE(z / t_CE, y)``.

    With ``clean`` the same logits as ``student`` this is Hinton's loss (004, eq. 3; 002, eq. 3); with ``student`` the
    logits on adversarial images and ``clean`` those on clean ones it is ARD's (002, eq. 1). The factor t^2 makes up
    for the gradient's shrinking by 1/t^2; paper 003 (eq. 2, 3, 6) has 1 in its place.

    Args:
        teacher: z_T; may be None at a = 0, where it has no weight.
        student: z_S; may be None at a = 0.
        clean: logits in the cross-entropy; may be None at a = 1.
        y: labels.
        alpha: a, the weight of the teacher's word against the label's.
        t: temperature of both distributions in the KL term.
        ce_t: temperature of the student in the cross-entropy: 1 in the released code, t in the printed equations.
        reduction: see :func:`kl_divergence`.
        scale: what stands in the place of t^2.
    """
    scale = t**2 if scale is None else scale
    terms = []
    if alpha > 0:
        if teacher is None or student is None:
            raise ValueError(f"At alpha = {alpha} the KL term needs the logits of teacher and student.")
        terms.append(alpha * scale * kl_divergence(teacher, student, t, reduction))
    if alpha < 1:
        if clean is None:
            raise ValueError(f"At alpha = {alpha} the cross-entropy needs clean logits.")
        terms.append((1 - alpha) * cross_entropy(clean, y, ce_t))
    return torch.stack(terms).sum()


def trades(clean: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """``CE(z(x), y) + b KL(p(z(x)) || p(z(x')))`` (Zhang et al. 2019, eq. 5); the target is not detached."""
    return cross_entropy(clean, y) + beta * kl_divergence(clean, adversarial)


def virtual_teacher(y: Tensor, classes: int, confidence: float, t: float) -> Tensor:
    """``p^d_t``: probability d on y and ``(1 - d) / (C - 1)`` elsewhere, softened: ``p^(1/t) / sum p^(1/t)``; (B, C).

    It is what a network with the logits ``log p^d`` would say at the temperature t (003, §4.3.2; Yuan et al. 2020).
    """
    log_p = torch.full((len(y), classes), (1 - confidence) / (classes - 1), device=y.device).log()
    return (log_p.scatter(1, y[:, None], math.log(confidence)) / t).softmax(1)


def divergence_from(target: Tensor, student: Tensor, t: float = 1.0) -> Tensor:
    """``KL(q || p(z, t))`` of a distribution q (B, C), whose entries may be 0, and logits z."""
    return F.kl_div((student.float() / t).log_softmax(1), target, reduction="batchmean")


def introspection(clean: Tensor, adversarial: Tensor, trust: Tensor) -> Tensor:
    """``mean_i (1 - r_i) KL(p(z_S(x_i)) || p(z_S(x'_i)))`` with ``r = p_T(y given x')^b`` in [0, 1], shape (B,).

    IAD's term (Zhu et al. 2022): the less an image's teacher is to be trusted, the more the student trusts itself.
    The target is not detached, as in the authors' code.
    """
    log_clean, log_adversarial = clean.float().log_softmax(1), adversarial.float().log_softmax(1)
    apart = F.kl_div(log_adversarial, log_clean, reduction="none", log_target=True).sum(1)
    return ((1 - trust) * apart).mean()
