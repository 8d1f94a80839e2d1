"""``compile``: a graph that trains and one that crafts, and nothing left of them in what is kept."""

import pytest
import pytorch_lightning as pl
import torch
from compile_helpers import CRAFTING, Graphs, Tiny, traced
from regime_helpers import FACTS, build, digits, every_epoch, trainer

from lightning_modules import ARD, AdaAD, AdversarialTraining, Distillation, TeacherSource

# The graphs


@pytest.mark.parametrize("options", CRAFTING.values(), ids=CRAFTING)
def test_a_graph_for_the_weights_and_one_for_the_images_alone(options, tmp_path):
    """Of batches of both sizes that an epoch has; two epochs, validation and a test make no more."""
    regime = build(AdversarialTraining, compile=True, **options)
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=1.0)
    with Graphs() as graphs:
        fit.fit(regime, digits(1000))
        fit.test(regime, digits(1000), verbose=False)
    assert fit.num_training_batches == 2
    weights = len(list(regime.network.parameters()))
    assert sorted(graphs.backwards) == [1, 1, weights, weights]
    assert graphs.forwards == 0


def test_without_compile_there_are_none(wrn_teacher, tmp_path):
    with Graphs() as graphs:
        trainer(tmp_path).fit(build(ARD, wrn_teacher, network=Tiny), digits())
    assert graphs.backwards == []
    assert graphs.forwards == 0


def test_a_network_whose_copy_is_made_anew_is_compiled_anew(batch):
    regime = build(AdversarialTraining, network=Tiny, compile=True)
    with Graphs() as graphs:
        for _ in range(2):
            regime.on_train_epoch_start()
            regime.craft(batch)
        assert graphs.backwards == [1]
        regime.network.bn2.eps = 1.0  # bn1's is in the copy's weights
        regime.on_train_epoch_start()
        regime.craft(batch)
    assert graphs.backwards == [1, 1]


# What is left of it


class Look(pl.Callback):
    """Names and modes of a student while it is trained."""

    def __init__(self):
        self.names = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.names.append(list(pl_module.state_dict()))


def test_a_checkpoint_does_not_know_and_what_is_left_computes_as_without(batch, tmp_path):
    look, kept = Look(), every_epoch(tmp_path)
    regime = build(AdversarialTraining, network=Tiny, compile=True)
    fresh = build(AdversarialTraining, network=Tiny)
    with Graphs() as graphs:
        trainer(tmp_path, callbacks=[look, kept]).fit(regime, digits())
        made = len(graphs.backwards)
        loaded = torch.load(kept.best_model_path, weights_only=True)
        fresh.load_state_dict(loaded["state_dict"])
        logits = [module.network.eval()(batch.x) for module in (regime, fresh)]
    assert look.names == [list(fresh.state_dict())] * 3
    assert loaded["hyper_parameters"]["compile"] is True
    assert torch.equal(*logits)
    assert made == len(graphs.backwards) > 0


# The teacher


@pytest.fixture
def tiny_teacher():
    torch.manual_seed(2)
    return TeacherSource(module=Tiny(FACTS))


def test_what_the_teacher_answers_by_is_compiled_and_what_is_judged_is_not(batch, tiny_teacher):
    student = build(Distillation, tiny_teacher, compile=True)
    expected = student.teacher(batch.x)
    with Graphs() as graphs:
        student.teacher.on(batch.x.device)(batch.x)
        assert graphs.forwards == 0
        student.on_fit_start()
        assert torch.equal(student.teacher(batch.x), expected)
        student.teacher.on(batch.x.device)(batch.x)
        student.teacher(batch.x)
    assert graphs.forwards == 1
    assert graphs.backwards == []


def test_a_teacher_that_is_differentiated_has_no_gradient_of_weights(batch, tiny_teacher):
    student = build(AdaAD, tiny_teacher, network=Tiny, compile=True).train()
    with Graphs() as graphs:
        student.on_fit_start()
        student.step(batch, 0)
    assert graphs.backwards == [1, 1]  # the student's and the teacher's; the loss was not differentiated


def test_a_teacher_with_a_cache_is_not_compiled(mlp_teacher, tmp_path):
    """It is asked about what is missing, and so in numbers of all sizes."""
    student = build(Distillation, mlp_teacher, cache=True, compile=True)
    with traced():
        trainer(tmp_path).fit(student, digits())
    assert not student.teacher.compiled


def test_a_teacher_without_a_student_that_is_compiled_is_not(mlp_teacher, tmp_path):
    student = build(Distillation, mlp_teacher)
    trainer(tmp_path).fit(student, digits())
    assert not student.teacher.compiled
