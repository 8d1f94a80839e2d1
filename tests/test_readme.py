"""The README keeps its word: its examples run, its tables name what there is."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from torch import rand

import lightning_modules
from lightning_modules import Distiller, Noise, Regime
from main import main
from studies.grid import find
from studies.regimes import noises, regimes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OWN = README[README.index("## Bring your own") :]
EXAMPLES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", OWN, re.DOTALL))
COMMANDS = re.findall(r"```sh\npython main\.py (.*?)\n```", OWN, re.DOTALL)


def test_there_are_four_examples_and_each_has_a_command():
    assert sorted(EXAMPLES) == ["my_attack.py", "my_images.yaml", "my_network.py", "my_regime.py"]
    assert len(COMMANDS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_example_runs(number, tmp_path, monkeypatch):
    command = COMMANDS[number]
    name = next(name for name in EXAMPLES if name.split(".")[0] in command)
    (tmp_path / name).write_text(EXAMPLES[name])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "my_images" / split / kind
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray((rand(32, 32, 3) * 255).byte().numpy()).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trial = ["--trainer.fast_dev_run", "true", "--runs", str(tmp_path / "runs"), "--wandb", "false"]
    cli = main([*shlex.split(command), *trial, "--data.batch_size", "2"])
    assert cli.trainer.state.finished
    if name == "my_attack.py":
        assert "test/random corner" in cli.trainer.callback_metrics
    sys.modules.pop(Path(name).stem, None)


def test_the_tables_are_those_that_the_code_makes():
    shown = README[README.index("<!-- python -m studies.regimes -->") : README.index("<!-- end -->")]
    assert shown.split("\n", 1)[1].strip() == f"{regimes()}\n\n{noises()}"


def test_the_tables_name_every_regime_every_noise_and_every_config():
    """Told apart from the script that makes the tables: it could overlook one."""
    public = [getattr(lightning_modules, name) for name in lightning_modules.__all__]
    classes = [cls for cls in public if isinstance(cls, type) and issubclass(cls, (Regime, Noise))]
    names = [cls.__name__ for cls in classes if cls not in (Regime, Distiller, Noise)]
    assert len(names) > 20
    for name in [*names, *(path.stem for path in (ROOT / "configs").glob("*.yaml"))]:
        assert f"`{name}`" in README, name


def test_every_command_of_the_docs_is_there(at_root):
    """``python -m MODULE``, and of studies their grids."""
    said = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    modules = set(re.findall(r"python -m ([\w.]+)", said))
    assert {"studies", "benchmarks", "benchmarks.shares"} <= modules
    assert [name for name in sorted(modules) if not find_spec(name)] == []
    grids = set(re.findall(r"python -m studies (?:plan|run|status|report|board) (\w+)", said)) - {"NAME"}
    assert {"flavours_toy", "claims", "temperature"} <= grids
    assert all(find(name).is_file() for name in grids)
