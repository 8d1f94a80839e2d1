"""Every test leaves working directory and environment as it found them; the command line is run from the root."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from main_helpers import QUIET, ROOT, Ended, command_line, teacher_config, write
from matplotlib.figure import Figure

# Variables that a run sets for itself or its processes, and that must not reach the next test.
LEFT_BEHIND = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "TEMPERED_RUN_FOLDER")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is cached for a person is cached for the tests elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPERED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = {key: os.environ.get(key) for key in LEFT_BEHIND}
    yield
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, in order."""
    figures = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        savefig(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of ``python main.py``; teachers' processes find this folder's helpers."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def command(at_root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    return command_line(monkeypatch, capsys)


@pytest.fixture
def cli(at_root: None) -> Callable[..., Any]:
    """``main`` with nothing on the screen but what it prints itself."""
    from main import main

    return lambda *args: main([*map(str, args), *QUIET])


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny teacher on digits."""
    from main import main

    folder = tmp_path_factory.mktemp("teacher")
    config = write(folder / "tiny.yaml", teacher_config())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return main(["fit", "--config", config, "--runs", str(folder / "runs"), *QUIET]).folder
