"""A file of answers is one teacher's, whatever becomes of it, and whoever else writes it."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from answers_helpers import CPU, Photographs, assert_stored_as_computed, frozen, opened, photographs, stored
from main_helpers import COMMON, NETWORK, sgd, write
from regime_helpers import build, calls, mlp, trainer
from torch import Tensor, nn

from datamodules import Digits
from lightning_modules import Distillation, FrozenTeacher, TeacherSource
from networks import Facts

HERE = Path(__file__).parent
ALL = 18 * 162  # images to train on, views of each


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> int:
    return len(list(folder.glob("answers-*")))


def whole(network: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(network, "hash 0", "a test", 1.0)


class TestWhoseAnswers:
    @pytest.fixture
    def first(self, folder):
        opened()
        assert files(folder) == 1

    @pytest.mark.parametrize(
        "make",
        [
            lambda: opened(frozen(1)),
            lambda: opened(whole(mlp(Photographs.facts, normalize=False))),
            lambda: opened(whole(mlp(Facts(4, 3, 32, (0.4,) * 3, (0.25,) * 3)))),
            lambda: opened(augment=False),
            lambda: opened(precision="bf16-mixed"),
        ],
        ids=["weights", "no normalisation", "another mean", "views", "precision"],
    )
    def test_another_one_has_a_file_of_its_own(self, make, first, folder):
        make()
        assert files(folder) == 2

    def test_so_have_other_images(self, first, folder, monkeypatch):
        load = Photographs.load
        monkeypatch.setattr(Photographs, "load", lambda self, train: (load(self, train)[0] ^ 1, load(self, train)[1]))
        opened()
        assert files(folder) == 2

    def test_another_split_shares_it(self, first, folder):
        opened(validation=0.5, split_seed=7, batch_size=2)
        assert files(folder) == 1

    def test_a_teacher_who_says_something_else_is_noticed(self):
        """Of a module's ways, its hash knows its weights alone."""

        class Divided(nn.Module):
            def __init__(self, temperature: float) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.network, self.temperature = mlp(Photographs.facts), temperature

            def forward(self, x: Tensor) -> Tensor:
                return self.network(x) / self.temperature

        warm, hot = (whole(Divided(temperature)) for temperature in (1.0, 2.0))
        cache = opened(warm, validation=0.75)
        cache.fill(CPU)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert opened(warm, validation=0.75).share() == 1
        with pytest.warns(UserWarning, match="other answers than those of the teacher from a test: made anew"):
            assert opened(hot).share() == 0
        assert cache.share() == 1  # who has the old file goes on with it


class TestBroken:
    @pytest.mark.parametrize("size", [0, 100, 24 * 162 * 9 + 1])
    def test_a_file_of_another_size_is_made_anew(self, folder, size):
        opened(validation=0.75).fill(CPU)
        (file,) = folder.glob("answers-*")
        file.write_bytes(bytes(size))
        with pytest.warns(UserWarning, match=f"holds {size:,} bytes, not 34,992: it is made anew"):
            cache = opened(validation=0.75)
        assert cache.share() == 0
        cache.fill(CPU)
        assert_stored_as_computed(*stored(folder, cache.data), cache.data, cache.teacher)

    def test_a_folder_that_cannot_take_it_is_named(self, folder, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(OSError, match=r"cache cannot take the 0\.03 MB .*No space left.*make room"):
            opened()
        assert not files(folder)

    @pytest.mark.parametrize("value", [7e4, float("nan")])
    def test_what_fp16_cannot_hold_is_refused(self, value, folder):
        teacher = frozen()
        teacher.module.register_forward_hook(lambda module, inputs, output: torch.full_like(output, value))
        cache = opened(teacher)
        with pytest.raises(FloatingPointError, match="fp16 cannot hold: train without a cache"):
            cache.fill(CPU)
        assert not stored(folder, cache.data)[1].any()


PATHS = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
FILLING = f"""
import sys
sys.path[:0] = {PATHS!r}
from answers_helpers import CPU, opened

cache = opened(eval_batch_size=int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
cache.fill(CPU)
"""


def filling(size: int) -> subprocess.Popen[str]:
    """A process that fills the cache in batches of a size once it is told to; it is ready for that."""
    pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FILLING, str(size)]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.slow
def test_two_processes_fill_one_file(folder):
    both = [filling(size) for size in (7, 16)]
    for process in both:
        go(process)
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert files(folder) == 1
    cache = opened()
    assert cache.share() == 1
    assert assert_stored_as_computed(*stored(folder, cache.data), cache.data, cache.teacher) == ALL


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_wrote(folder):
    process, cache = filling(1), opened()
    go(process)
    while cache.share() < 0.05:  # what another process writes is seen at once
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    count = assert_stored_as_computed(*stored(folder, cache.data), cache.data, cache.teacher)
    assert 0.05 * ALL <= count < ALL
    with calls(cache.teacher.module) as answers:
        cache.fill(CPU)
    assert sum(map(len, answers)) == ALL - count
    assert cache.share() == 1


DDP = f"""
import sys
sys.path[:0] = {PATHS!r}
from pathlib import Path
from test_answers_files import ddp

if __name__ == "__main__":
    ddp(Path(sys.argv[1]), sys.argv[2])
"""


def ddp(folder: Path, checkpoint: str) -> None:
    """A fit of two processes, all asked ahead; each writes down of how many images its teacher was asked."""
    teacher, data = TeacherSource(checkpoint=checkpoint, network=mlp), photographs()
    student = build(Distillation, teacher, facts=data.facts, network=mlp, cache="ahead")
    with calls(student.teacher.module) as answers:
        fit = trainer(folder, max_epochs=2, limit_train_batches=1.0, strategy="ddp", devices=2)
        fit.fit(student, datamodule=data)
    (folder / f"rank{fit.global_rank}").write_text(str(sum(map(len, answers))))


@pytest.mark.slow
def test_the_processes_of_a_fit_share_the_asking(tmp_path, folder):
    (tmp_path / "script.py").write_text(DDP)
    torch.save(frozen().module.state_dict(), tmp_path / "teacher.pt")
    command = [sys.executable, "script.py", str(tmp_path), str(tmp_path / "teacher.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):  # who opens the file last may find answers in it to check
        assert int((tmp_path / f"rank{rank}").read_text()) - ALL // 2 in range(17)
    data = photographs()
    assert int(stored(folder, data)[1][data.split_index("train")].sum()) == ALL


@pytest.mark.parametrize("word", ["ahead", pytest.param("true", marks=pytest.mark.slow)])
def test_the_command_line_reads_it(word, cli, tiny_teacher, tmp_path, folder):
    """A config's student of one step, which stores that step's answers, or all."""
    init = {"network": NETWORK, "optimizer": sgd(), "teacher": {"checkpoint": f"{tiny_teacher}/checkpoints/best.ckpt"}}
    model = {"class_path": "lightning_modules.Distillation", "init_args": init}
    config = write(tmp_path / "kd.yaml", COMMON | {"model": model})
    words = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--runs", tmp_path / "runs"]
    done = cli("fit", "--config", config, "--model.cache", word, *words)
    expected = len(done.datamodule.split_index("train")) if word == "ahead" else 64
    assert int(stored(folder, Digits())[1].sum()) == expected
