"""Two processes on the CPU take the step that one takes on both their batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from regime_helpers import Gradients, build, digits, trainer

from lightning_modules import ARD, FastARD, Teacher

HERE = Path(__file__).parent
SCRIPT = """
import sys
import torch
from regime_helpers import Gradients, build, digits, mlp, trainer
import lightning_modules
from lightning_modules import TeacherSource

def run():
    regime, teacher, out = sys.argv[1:4]
    torch.manual_seed(0)
    callback = Gradients()
    source = TeacherSource(checkpoint=teacher, network=mlp)
    options = {} if regime == "Teacher" else {"alpha": float(sys.argv[4])}
    student = build(getattr(lightning_modules, regime), source, **options)
    fit = trainer(out, callbacks=[callback], limit_train_batches=4, strategy="ddp", devices=2)
    fit.fit(student, datamodule=digits(16))
    torch.save(
        {"gradients": callback.steps, "weights": student.state_dict(), "delta": getattr(student, "delta", None)},
        f"{out}/rank{fit.global_rank}.pt",
    )

if __name__ == "__main__":
    run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("regime", "alpha"), [(Teacher, None), (ARD, 0.6), (FastARD, 1.0)])
def test_steps_of_two_processes(regime, alpha, mlp_teacher, tmp_path, monkeypatch):
    """FastARD's two perturbations too are, image by image, the one of the single process."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "script.py", regime.__name__, mlp_teacher.checkpoint, str(tmp_path), str(alpha)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]

    torch.manual_seed(0)
    callback = Gradients()
    student = build(regime, mlp_teacher, **({} if alpha is None else {"alpha": alpha}))
    fit = trainer(tmp_path, callbacks=[callback], limit_train_batches=4)
    fit.fit(student, datamodule=digits(32))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert len(found["gradients"]) == len(callback.steps) == 4
        for step, expected in zip(found["gradients"], callback.steps, strict=True):
            assert step.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(step[key], expected[key], rtol=1e-4, atol=1e-6)
        for key, value in student.state_dict().items():
            torch.testing.assert_close(found["weights"][key], value, rtol=1e-4, atol=1e-6)
        if regime is FastARD:
            torch.testing.assert_close(found["delta"], student.delta[rank::2])
