from pathlib import Path

import pytest
import torch
from regime_helpers import FACTS, build, digits, every_epoch, fickle_wrn, mlp, trainer

from datamodules import Batch
from lightning_modules import Teacher, TeacherSource


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # the command line leaves one behind
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="session")
def mlp_teacher(teacher_folder: Path) -> TeacherSource:
    """A checkpoint of a run; no batch-norm, no dropout."""
    torch.manual_seed(1)
    callback = every_epoch(teacher_folder)
    fit = trainer(teacher_folder, callbacks=[callback], limit_train_batches=40, num_sanity_val_steps=0)
    fit.fit(build(Teacher), datamodule=digits())
    return TeacherSource(checkpoint=callback.best_model_path, network=mlp)


@pytest.fixture(scope="session")
def wrn_teacher(teacher_folder: Path) -> TeacherSource:
    """A plain state dict, of a network with batch-norm that has seen images and with dropout."""
    torch.manual_seed(2)
    network = fickle_wrn(FACTS).train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(32, *FACTS.shape))
    path = teacher_folder / "wrn.pt"
    torch.save(network.state_dict(), path)
    return TeacherSource(checkpoint=str(path), network=fickle_wrn)


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Sixteen real digits."""
    data = digits()
    data.setup("fit")
    return data.batch("train", data.split_index("train")[:16])
