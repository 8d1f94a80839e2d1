"""``test``, ``validate`` and ``predict`` of a run that a person already has."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from main_helpers import QUIET, ROOT, image_folder, of, results, student_config, teacher_config, write
from pyarrow import parquet

from lightning_modules import Teacher
from main import main

TEST_SET = 360


@pytest.fixture(scope="module")
def run(tiny_teacher, tmp_path_factory):
    """A student that is another network than its config file says: the command line chose it."""
    home = tmp_path_factory.mktemp("evaluation")
    config = write(home / "student.yaml", student_config({"checkpoint": str(tiny_teacher / "checkpoints/best.ckpt")}))
    other = ["--model.network.widths", "[24, 12]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        arguments = ["fit", "--config", config, "--runs", str(home / "runs"), "--suite.images", "null", *other, *QUIET]
        return home, config, main(arguments).folder


@pytest.fixture
def again(run, cli):
    """Runs a subcommand on the run's best weights, by default with its own resolved config."""
    home, _, folder = run

    def call(subcommand, *more, config=folder / "config.yaml"):
        weights = folder / "checkpoints" / "best.ckpt"
        return cli(subcommand, "--config", config, "--ckpt_path", weights, "--runs", home / "runs", *more).folder

    return call


def test_test_repeats_the_fits_figures(run, again):
    fit = results(run[2])
    test = results(again("test"))
    assert {n for _, n in test.values()} == {TEST_SET}
    assert of("student", test) == of("student", fit)
    assert of("teacher", test, "") == of("teacher", fit, "")
    assert not [path for path in run[2].iterdir() if "test" in path.name], "a test must not write into the fit's folder"


def test_its_own_config_repeats_a_test(again, cli, tmp_path):
    """As its command.sh says: weights and radius included."""
    folder = again("test", "--suite.threat.eps", "0.05")
    repeated = cli("test", "--config", folder / "config.yaml", "--runs", tmp_path).folder
    assert of("student", results(repeated)) == of("student", results(folder))


def test_test_obeys_the_command_line(run, again):
    """The checkpoint's hyper-parameters win over the model's; the evaluation's settings are not among them."""
    folder = again("test", "--suite.threat.eps", "0.05", "--suite.images", "300")
    figures, fit = of("student", results(folder)), of("student", results(run[2]))
    assert {n for _, n in figures.values()} == {300}
    assert figures["FGSM"][0] > fit["FGSM"][0]
    assert '"threat": "linf 0.05"' in (folder / "results.jsonl").read_text()
    zero = of("student", results(again("test", "--suite.threat.eps", "0")))
    assert zero["FGSM"] == zero["clean"] == fit["clean"]


def test_test_with_the_file_that_names_another_network(run, again):
    """An auditor has the config that ships and the checkpoint; the checkpoint knows its own network."""
    wrong = yaml.safe_load(Path(run[1]).read_text())["model"]["init_args"]["network"]["init_args"]
    assert wrong != yaml.safe_load((run[2] / "config.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    all_images = ["--suite.images", "null"]
    assert of("student", results(again("test", *all_images, config=run[1]))) == of("student", results(run[2]))
    changed = of("student", results(again("test", *all_images, "--suite.threat.eps", "0.05", config=run[1])))
    assert changed["FGSM"][0] > of("student", results(run[2]))["FGSM"][0]


@pytest.mark.slow
def test_checkpoints_teacher_is_compared_not_another(run, again, cli, tiny_teacher, tmp_path):
    """The run's file may name its teacher by a config; that such a teacher exists by now does not make it the run's."""
    home, _, folder = run
    recipe = yaml.safe_load((tiny_teacher / "config.yaml").read_text())
    recipe["model"]["init_args"]["network"]["init_args"]["widths"] = [64]
    config = write(home / "by_config.yaml", student_config({"config": write(home / "other.yaml", recipe)}))
    # The other teacher is trained, for another student.
    cli("fit", "--config", config, "--train_teacher", "true", "--runs", home / "runs", "--name", "other student")
    fit, test = results(folder), results(again("test", "--suite.images", "null", config=config))
    assert of("teacher", test, "") == of("teacher", fit, "")


def test_evaluation_after_the_run_was_moved(run, cli, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(run[2], folder)
    weights = folder / "checkpoints" / "best.ckpt"
    ended = cli("test", "--config", folder / "config.yaml", "--ckpt_path", weights, "--runs", tmp_path)
    assert of("student", results(ended.folder)) == of("student", results(run[2]))


def test_validate(run, again, capsys):
    again("validate")
    out = capsys.readouterr().out
    assert "val/robust_acc" in out
    assert "val/acc" in out


def test_predict(run, again):
    table = parquet.read_table(again("predict") / "predictions.parquet").to_pydict()
    assert table["index"] == list(range(TEST_SET))
    probabilities = np.array(table["probabilities"])
    assert probabilities.shape == (TEST_SET, 10)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == table["prediction"]).all()
    clean = of("student", results(run[2]))["clean"][0]
    assert np.mean(np.equal(table["prediction"], table["label"])) == pytest.approx(clean)


@pytest.mark.parametrize("subcommand", ["test", *(name for name in ("predict", "validate"))])
def test_nothing_is_said_of_untrained_weights(subcommand, run, command, tmp_path):
    ended = command(subcommand, "--config", run[2] / "config.yaml", "--runs", tmp_path)
    assert ended.status
    assert "--ckpt_path" in ended.err
    assert not list(tmp_path.rglob("predictions.parquet"))


def test_seven_classes_need_not_be_repeated(cli, tiny_teacher, tmp_path):
    """A network for other data than its config's default restores itself."""
    root = image_folder(tmp_path / "images", classes=7, size=8, channels=1, train=4, test=2)
    data = {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(root), "size": 8, "channels": 1}}
    config = write(tmp_path / "seven.yaml", teacher_config(max_epochs=1) | {"data": data})
    folder = cli("fit", "--config", config, "--runs", tmp_path / "runs").folder
    best = folder / "checkpoints" / "best.ckpt"
    tested = cli("test", "--config", config, "--ckpt_path", best, "--runs", tmp_path / "runs").folder
    assert of("network", results(tested)) == of("network", results(folder))
    assert Teacher.load_from_checkpoint(best, weights_only=True).facts.classes == 7


def test_a_network_normalises_as_it_was_trained_to_whatever_data_it_is_shown(cli, tmp_path):
    images = image_folder(tmp_path / "images", 2, 8)
    data = {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(images), "size": 8, "mean": [0.4] * 3}}
    config = write(tmp_path / "own.yaml", teacher_config() | {"data": data})
    words = ["--config", config, "--runs", tmp_path / "runs", "--data.validation", "0", "--suite.images", "2"]
    folder = cli("fit", *words).folder
    again = cli("test", *words, "--ckpt_path", folder / "checkpoints" / "last.ckpt", "--data.mean", "[0.1,0.2,0.3]")
    assert again.datamodule.facts.mean == (0.1, 0.2, 0.3)
    assert again.model.network.normalise.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    assert again.model.facts.mean == pytest.approx((0.4,) * 3)
    last = {key: value for key, value in results(folder).items() if key[1] == "last"}
    assert results(again.folder) == last
