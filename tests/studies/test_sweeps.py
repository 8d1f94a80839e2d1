"""The sweeps that ship: W&B accepts them, and what its agent would run is a command that logs what they go by."""

import csv

import pytest
import yaml
from main_helpers import QUIET, ROOT, image_folder
from test_configs import printed

from main import main

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
each_sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)


def words(sweep, values):
    """What W&B's agent runs for a choice of values, behind the interpreter and the program, as it spells them."""
    agent = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    spelt = agent.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    stands = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": [sweep["program"]]}
    parts = [stands.get(part, [part]) for part in agent.create_sweep_command([*sweep["command"]])]
    command = [word for part in parts for word in (spelt["args"] if part == ["${args}"] else part)]
    assert command[:3] == ["/usr/bin/env", "python", "main.py"]
    assert all(f"--{key}={value}" in command for key, value in values.items())
    return command[3:]


def ends(sweep):
    """The lowest value of every parameter, and the highest."""
    return [{key: said[end] for key, said in sweep["parameters"].items()} for end in ("min", "max")]


def at(config, option):
    """The value of a dotted option in a resolved config."""
    for part in option.split("."):
        config = (config if part in config else config["init_args"])[part]
    return config


@each_sweep
def test_every_parameter_is_an_option_from_end_to_end(path, at_root, capsys):
    sweep = yaml.safe_load(path.read_text())
    for values in ends(sweep):
        verb, *rest = words(sweep, values)
        assert verb == "fit"
        config = printed(capsys, *rest)
        assert {key: at(config, key) for key in values} == values
        assert sweep["early_terminate"]["min_iter"] < config["trainer"]["max_epochs"]


@each_sweep
def test_wandbs_own_schema_has_nothing_against_it(path):
    """``pip install --no-deps sweeps jsonref``: the release asks for an older NumPy than all else."""
    schema = pytest.importorskip("sweeps.config")
    sweep = yaml.safe_load(path.read_text())
    assert schema.schema_violations_from_proposed_config(sweep) == []
    assert schema.schema_violations_from_proposed_config({**sweep, "method": "by luck"}) != []


@pytest.mark.slow
@each_sweep
def test_a_trial_logs_what_the_sweep_goes_by_and_sees_no_test_image(path, at_root, tmp_path):
    sweep = yaml.safe_load(path.read_text())
    trial = ["--runs", tmp_path / "runs"]
    if "digits" not in path.stem:
        home = image_folder(tmp_path / "images", 10, 16)
        trial += ["--data", "configs/data/image_folder.yaml", "--data.root", home, "--data.size", "16"]
    trial += ["--data.batch_size", "2", "--data.eval_batch_size", "2", "--trainer.max_epochs", "1"]
    trial += ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    if path.stem.startswith("ard"):
        trial += ["--model.teacher.override", "{trainer: {max_epochs: 1}}"]
    folder = main([*words(sweep, ends(sweep)[0]), *map(str, trial), *QUIET]).folder
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sweep["metric"]["goal"] == "maximize"
    assert [0 <= float(row[sweep["metric"]["name"]]) <= 1 for row in rows if row[sweep["metric"]["name"]]] == [True]
    assert not (folder / "results.csv").exists()
    assert not any(key.startswith("test/") for key in rows[0])
