"""What a teacher answers by in training: a copy with its batch-norm folded, where that is the same function."""

import pytest
import torch
from regime_helpers import FACTS, assert_identical, build, calls, everything, pgd, wrn
from torch import nn

from lightning_modules import ARD, AdaAD, Distillation, FickleTeacher


def folded(source, **kwargs):
    return build(Distillation, source, **kwargs).teacher


def test_it_is_the_same_function_and_the_teacher_is_left_alone(batch, wrn_teacher):
    teacher, plain = folded(wrn_teacher), folded(wrn_teacher, folding=False)
    before = everything(teacher.module)
    answer, expected = teacher(batch.x), plain(batch.x)
    copy = teacher.answering(batch.x)
    assert copy is not teacher.module
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in network.modules()) for network in (copy, teacher.module)]
    assert norms[0] < norms[1]
    assert not answer.requires_grad
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert_identical(everything(teacher.module), before)
    assert teacher.answering(batch.x) is copy


def test_what_is_judged_and_what_is_loaded_in_a_notebook_is_the_teacher_itself(batch, wrn_teacher):
    teacher = folded(wrn_teacher)
    with calls(teacher.module) as asked:
        teacher.on(batch.x.device)(batch.x)
        wrn_teacher.load(FACTS)(batch.x)
    assert len(asked) == 1
    assert wrn_teacher.load(FACTS).folding is False


@pytest.mark.parametrize("case", ["switched off", "nothing to fold"])
def test_without_a_copy_the_teacher_answers(case, batch, wrn_teacher, mlp_teacher):
    source = wrn_teacher if case == "switched off" else mlp_teacher
    teacher = folded(source, folding=case != "switched off")
    assert teacher.answering(batch.x) is teacher.module


def test_a_fickle_teacher_answers_itself(batch, wrn_teacher):
    """Also one that has answered before."""
    student = build(Distillation, wrn_teacher, noise=[FickleTeacher()])
    assert student.teacher.answering(batch.x) is not student.teacher.module
    student.setup("fit")
    assert student.teacher.answering(batch.x) is student.teacher.module
    assert not torch.equal(student.teacher(batch.x), student.teacher(batch.x))


def test_the_copy_moves_with_the_teacher(batch, wrn_teacher):
    teacher = folded(wrn_teacher)
    teacher(batch.x)
    assert teacher(batch.x.to("meta")).device.type == "meta"
    assert {p.device.type for p in teacher.module.parameters()} == {"meta"}


def test_in_bfloat16_it_answers_as_the_teacher_does(batch, wrn_teacher):
    """As far from float32, to a half: other roundings, no more of them."""
    exact = folded(wrn_teacher, folding=False)(batch.x)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(folded(wrn_teacher, folding=on)(batch.x) - exact).norm() for on in (False, True)]
    assert 0 < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("regime", [AdaAD, ARD], ids=["AdaAD", "ARD"])
def test_examples_are_crafted_on_copies_and_are_those_of_the_networks(regime, batch, wrn_teacher):
    attack = pgd(loss="kl" if regime is AdaAD else "ce")
    examples = []
    for folding in (True, False):
        torch.manual_seed(0)
        student = build(regime, wrn_teacher, network=wrn, attack=attack, folding=folding, alpha=1.0).train()
        with torch.no_grad():
            for _ in range(3):
                student.network(batch.x)  # running averages of what it sees
        student.searched(batch.x)
        student.teacher(batch.x)
        with calls(student.network) as asked, calls(student.teacher.module) as heard:
            loss, _ = student.step(batch, 0)
        # The pass of the weights alone is the network's own.
        assert len(asked) == (1 if folding else 4)
        assert len(heard) == (0 if folding else 4 if regime is AdaAD else 1)
        examples.append(float(loss))
    assert examples[0] == pytest.approx(examples[1], rel=1e-3)
