"""Two processes on the CPU take the steps that one takes on both their batches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from regime_helpers import REGIMES, Gradients, Losses, build, digits, mlp, name, pgd, trainer

from lightning_modules import (
    AKD,
    ARD,
    IAD,
    AdaAD,
    FastARD,
    FickleTeacher,
    InputNoise,
    LabelCorruption,
    SignalDependentNoise,
    Swap,
    TeacherSource,
    TfKDReg,
    TfKDSelf,
)
from lightning_modules.replay import Replayed
from networks import MLP

HERE = Path(__file__).parent
SCRIPT = """
import sys
from test_regime_ddp import in_two_processes

if __name__ == "__main__":
    in_two_processes(*sys.argv[1:])
"""
NOISE = [LabelCorruption(0.3), LabelCorruption(0.3, fixed=True), InputNoise(0.1)]
OF_A_TEACHER = [SignalDependentNoise(0.3), Swap(0.5, "all", threshold=0.5)]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name(regime): (regime, {}) for regime in REGIMES},
    "ARD with both terms": (ARD, {"alpha": 0.6}),
    "FastARD with both terms": (FastARD, {"alpha": 0.6, "delta_loss": "ce"}),
    "IAD after its warm-up, with IGDM": (IAD, {"alpha": 0.6, "warmup": 0, "igdm": 1.0}),
    "AdaAD with both terms and IGDM": (AdaAD, {"alpha": 0.6, "igdm": 1.0}),
    "AKD shown clean images": (AKD, {"alpha": 0.6, "teacher_sees": "clean"}),
    "TfKDReg with an attack": (TfKDReg, {"attack": pgd()}),
    "TfKDSelf with an attack": (TfKDSelf, {"attack": pgd()}),
    **{
        f"{name(regime)} with noise": (regime, {"noise": NOISE + OF_A_TEACHER * regime.has_teacher})
        for regime in REGIMES
    },
    "ARD with a fickle teacher": (ARD, {"noise": [FickleTeacher()]}),
}
# The heads of self-distillation normalise by a process's batch, and each process's dropout draws for itself.
BY_PROCESS = {"SelfDistillation", "SelfDistillation with noise", "ARD with a fickle teacher"}


def dropout_mlp(facts):
    return MLP(facts, widths=(16,), dropout=0.3)


def fit(case: str, teacher: str, folder: str, size: int, **kwargs: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    regime, options = CASES[case]
    gradients, losses = Gradients(), Losses()
    source = TeacherSource(checkpoint=teacher, network=dropout_mlp if "fickle" in case else mlp)
    student = build(regime, source, **options)
    run = trainer(Path(folder), callbacks=[gradients, losses], limit_train_batches=4, limit_val_batches=1.0, **kwargs)
    run.fit(student, datamodule=digits(size))
    return {
        "rank": run.global_rank,
        "gradients": gradients.steps,
        "losses": losses.values,
        "weights": dict(student.state_dict()),
        "parameters": [key for key, _ in student.named_parameters()],
        "delta": getattr(student, "delta", None),
        "metrics": {key: float(value) for key, value in run.callback_metrics.items()},
    }


def in_two_processes(teacher: str, folder: str) -> None:
    """All cases in turn, each with a trainer of its own, in one group of processes."""
    found = {case: fit(case, teacher, folder, 16, strategy="ddp", devices=2) for case in CASES}
    rank = next(iter(found.values()))["rank"]
    torch.save(found, f"{folder}/rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(mlp_teacher, tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "script.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
        patch.setenv("OMP_NUM_THREADS", "1")
        command = [sys.executable, "script.py", mlp_teacher.checkpoint, str(folder)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_steps_of_two_processes(case, ranks, mlp_teacher, tmp_path):
    """The perturbations of free replay too are, image by image, those of the single process."""
    one, other = (rank[case] for rank in ranks)
    assert (one["rank"], other["rank"]) == (0, 1)
    assert torch.tensor([one["losses"], other["losses"]]).isfinite().all()
    assert len(one["losses"]) == len(one["gradients"]) == 4
    assert one["losses"] != other["losses"]  # of different images
    for key in one["parameters"]:
        assert torch.equal(one["weights"][key], other["weights"][key]), key
        for step, same in zip(one["gradients"], other["gradients"], strict=True):
            assert torch.equal(step[key], same[key]), key
    logged = [key for key in one["metrics"] if not key.startswith("train/loss_step")]
    assert {"train/loss", "val/acc", "val/loss"} <= {*logged}
    assert all(one["metrics"][key] == other["metrics"][key] for key in logged)
    if case in BY_PROCESS:
        return
    whole = fit(case, mlp_teacher.checkpoint, str(tmp_path), 32)
    assert len(whole["gradients"]) == 4
    for step, expected in zip(one["gradients"], whole["gradients"], strict=True):
        assert step.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(step[key], expected[key], rtol=1e-4, atol=1e-6)
    for key, value in whole["weights"].items():
        torch.testing.assert_close(one["weights"][key], value, rtol=1e-4, atol=1e-6)
    if issubclass(CASES[case][0], Replayed):
        for rank, found in enumerate((one, other)):
            torch.testing.assert_close(found["delta"], whole["delta"][rank::2])
    for key in logged:
        assert one["metrics"][key] == pytest.approx(whole["metrics"][key], rel=1e-4), key
