"""Every config that ships is read by the real parser, and runs."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from main_helpers import QUIET, ROOT, checkpoint, image_folder, results
from torch import nn

from main import main

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Grids and sweeps are no pieces of a config, and have tests of their own.
PIECES = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name not in ("studies", "sweeps"))
ADD_ONS = sorted((ROOT / "configs" / "compat").glob("*.yaml"))
NOISES = sorted((ROOT / "configs" / "noise").glob("*.yaml"))
DATA = sorted((ROOT / "configs" / "data").glob("*.yaml"))
# One step, against the regimes' own attack and the suite's alike.
ONE_STEP = '[{"class_path": "attacks.PGD", "init_args": {"steps": 1}}]'


def stem(path: Path) -> str:
    return path.stem


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    """The config as the command line understands it."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *map(str, args), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("config", CONFIGS, ids=stem)
def test_config_is_parsed(config, at_root, capsys) -> None:
    whole = printed(capsys, "--config", config)
    assert whole["suite"]["attacks"]
    assert whole["trainer"]["max_epochs"] > 0
    if "teacher" in whole["model"]["init_args"]:
        teacher = whole["model"]["init_args"]["teacher"]["config"]
        assert (ROOT / teacher) in CONFIGS
        assert printed(capsys, "--config", teacher)["data"]["class_path"] == whole["data"]["class_path"]


@pytest.mark.parametrize("piece", DATA, ids=stem)
def test_data_piece_replaces_any_configs_data(piece, at_root, capsys) -> None:
    whole = printed(capsys, "--config", "configs/ard_resnet18_mnv2.yaml", "--data", piece)
    expected = yaml.safe_load(piece.read_text())
    assert whole["data"]["class_path"] == expected["class_path"]
    assert expected.get("init_args", {}).items() <= whole["data"]["init_args"].items()


@pytest.mark.parametrize("config", [path for path in CONFIGS if path.stem.startswith("ard_")], ids=stem)
@pytest.mark.parametrize("add_on", ADD_ONS, ids=stem)
def test_add_on_changes_what_it_names_alone(add_on, config, at_root, capsys) -> None:
    before = printed(capsys, "--config", config)
    after = printed(capsys, "--config", config, "--config", add_on)
    assert after["model"]["init_args"].pop("kl_reduction") == "mean"
    assert after["model"]["init_args"]["attack"]["init_args"].pop("batchnorm") == "train"
    del before["model"]["init_args"]["kl_reduction"], before["model"]["init_args"]["attack"]["init_args"]["batchnorm"]
    assert after == before


@pytest.mark.parametrize("add_on", NOISES, ids=stem)
def test_noise_changes_noise_schedule_and_teacher_alone(add_on, at_root, capsys) -> None:
    before = printed(capsys, "--config", "configs/kd_wrn.yaml")
    after = printed(capsys, "--config", "configs/kd_wrn.yaml", "--config", add_on)
    teachers = [whole["model"]["init_args"]["teacher"].pop("override") for whole in (before, after)]
    noises = [whole["model"]["init_args"].pop("noise") for whole in (before, after)]
    assert (teachers[0], noises[0]) == (None, None)
    assert teachers[1] or noises[1]
    epochs, milestones = [], []
    for whole in (before, after):
        epochs.append(whole["trainer"].pop("max_epochs"))
        milestones.append(whole["model"]["init_args"]["scheduler"]["init_args"].pop("milestones"))
    fickle = add_on.stem.startswith("fickle")
    assert (epochs[0] != epochs[1], milestones[0] != milestones[1]) == (fickle, fickle)
    assert after == before


def test_noises_add_up(at_root, capsys) -> None:
    pieces = ["soft_randomization", "swap_top2", "label_corruption_s"]
    files = [word for piece in pieces for word in ("--config", f"configs/noise/{piece}.yaml")]
    noise = printed(capsys, "--config", "configs/kd_wrn.yaml", *files)["model"]["init_args"]["noise"]
    found = [source["class_path"].rpartition(".")[2] for source in noise]
    assert found == ["InputNoise", "Swap", "LabelCorruption"]


@pytest.mark.slow
@pytest.mark.parametrize("add_on", ["fickle_0.3", "label_corruption_ts", "swap_all"])
def test_noise_runs_with_the_teacher_that_it_overrides(add_on, tmp_path, at_root) -> None:
    home = image_folder(tmp_path / "images", 10, 16)
    words = ["--config", "configs/kd_wrn.yaml", "--config", f"configs/noise/{add_on}.yaml", "--runs", tmp_path / "runs"]
    words += ["--data", "configs/data/image_folder.yaml", "--data.root", home, "--data.size", "16"]
    words += ["--data.batch_size", "2", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.max_epochs", "1", "--train_teacher", "true"]
    words += ["--suite.images", "2", f"--suite.attacks={ONE_STEP}", *QUIET]
    cli = main(["fit", *map(str, words)])
    (teacher,) = (tmp_path / "runs" / "teachers").glob("teacher_wrn-*")
    whole = yaml.safe_load((teacher / "config.yaml").read_text())["model"]["init_args"]
    assert whole["network"]["init_args"]["dropout"] == (0.3 if add_on == "fickle_0.3" else 0)
    assert bool(whole["noise"]) == (add_on == "label_corruption_ts")
    assert len(cli.model.noise) == 1
    active = [m.p for m in cli.model.teacher.module.modules() if isinstance(m, nn.Dropout) and m.training]
    assert active == ([0.3] * 18 if add_on == "fickle_0.3" else [])


@pytest.mark.parametrize("piece", PIECES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_piece_is_used_or_documented(piece) -> None:
    """A piece that no config names is one that a person adds, and is told of where she would look."""
    name = f"{piece.parent.name}/{piece.name}"
    users = [config for config in CONFIGS if re.search(rf"^\s*\w+: {re.escape(name)}$", config.read_text(), re.M)]
    readme = (ROOT / "README.md").read_text()
    add_on = piece.parent.name == "data" and "--data" in readme and piece.read_text().startswith("#")
    assert users or add_on or f"configs/{name}" in readme


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs one batch of a config on a stand-in for its data, its teacher's first; returns the run's folder."""
    home = tmp_path_factory.mktemp("configs")
    colour, grey = (image_folder(home / str(c), 10, size, c) for c, size in ((3, 32), (1, 28)))
    signs = image_folder(home / "signs", 58, 256, train=1)
    for table in ("TsignRecgTrain4170Annotation.txt", "TsignRecgTest1994Annotation.txt"):
        (signs / table).write_text("".join(f"{label}/0.png;256;256;0;0;256;256;{label};\n" for label in range(58)))
    folders: dict[str, Path] = {}

    def fit(name: str) -> Path:
        if name in folders:
            return folders[name]
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        arguments = ["--config", f"configs/{name}.yaml", "--runs", str(home / "runs")]
        if config["data"] in ("data/cifar10.yaml", "data/cifar10_half.yaml"):
            arguments += ["--data", "configs/data/image_folder.yaml", "--data.root", str(colour)]
        elif config["data"] in ("data/mnist.yaml", "data/mnist_omitted.yaml"):
            arguments += ["--data", "configs/data/mnist_folder.yaml", "--data.root", str(grey)]
        elif name == "flavours_tsrd":
            arguments += ["--data.root", str(signs)]
        if name == "kd_mnist_omitted":
            arguments += ["--data.omit", "2"]
        if teacher := config["model"]["init_args"].get("teacher"):
            arguments += [
                "--model.teacher.checkpoint",
                str(fit(Path(teacher["config"]).stem) / "checkpoints/last.ckpt"),
            ]
        if "attack" in config["model"]["init_args"]:
            arguments += ["--model.attack.init_args.steps", "1"]
        if "replays" in config["model"]["init_args"]:
            arguments += ["--model.replays", "2", "--trainer.limit_train_batches", "2"]
        else:
            arguments += ["--trainer.limit_train_batches", "1"]
        # Validation's PGD-10 on WRN-34-10 would take most of the time; other configs show that it runs.
        arguments += ["--trainer.limit_val_batches", "0" if name == "trades_wrn" else "1"]
        arguments += ["--data.batch_size", "2", "--data.eval_batch_size", "2", "--trainer.max_epochs", "1"]
        arguments += ["--trainer.limit_test_batches", "1", "--suite.images", "2", f"--suite.attacks={ONE_STEP}"]
        arguments += ["--suite.diagnose", "false", "--suite.top", "1", "--interpret.images", "0"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            folders[name] = main(["fit", *arguments, "--train_teacher", "false", *QUIET]).folder
        return folders[name]

    yield fit
    shutil.rmtree(home)  # WRN-34-10's weights and momentum are 370 MB


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=stem)
def test_config_runs_one_batch(config, fitted) -> None:
    folder = fitted(config.stem)
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert checkpoint(last)["global_step"] == (2 if config.stem.startswith(("fast_ard", "free_at")) else 1)
    assert best.exists() or config.stem == "trades_wrn"
    figures = results(folder)
    distils = "teacher" in yaml.safe_load(config.read_text())["model"]["init_args"]
    assert {model for model, _, _ in figures} == ({"student", "teacher"} if distils else {"network"})
    attacked = {key: found for key, found in figures.items() if key[2] in ("clean", "PGD-1", "worst case")}
    assert {metric for _, _, metric in attacked} == {"clean", "PGD-1", "worst case"}
    assert all(n == 2 and value in (0, 0.5, 1) for value, n in attacked.values())
    further = {metric.split()[0] for _, _, metric in figures.keys() - attacked.keys()}
    parts = {"self_distillation_resnet18": {"head", "ensemble"}, "kd_mnist_omitted": {"clean", "PGD-1", "worst"}}
    assert further == parts.get(config.stem, set())
