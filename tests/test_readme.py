"""The README keeps its word: its examples run, its tables name what there is."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch import rand

import lightning_modules
from lightning_modules import Distiller, Regime
from main import main

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


def test_the_table_names_every_regime_and_every_config():
    regimes = [
        name
        for name in lightning_modules.__all__
        if isinstance(getattr(lightning_modules, name), type)
        and issubclass(getattr(lightning_modules, name), Regime)
        and name not in (Regime.__name__, Distiller.__name__)
    ]
    for name in [*regimes, *(path.stem for path in (ROOT / "configs").glob("*.yaml"))]:
        assert f"`{name}`" in README, name
