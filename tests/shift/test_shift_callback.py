"""``--shift`` behind a test: tables, records, files and pictures; nothing at all unless it is asked for."""

import numpy as np
import pytest
import torch
import yaml
from main_helpers import DDP, QUIET, ROOT, of, process, results, student_config, write
from PIL import Image
from pyarrow import parquet

from attacks.compare import compare
from datamodules import Digits
from main import main
from networks.checkpoint import load_network
from shift import corrupt

LIKE = {"corruptions": {"class_path": "shift.CIFARCLike", "init_args": {"severities": [2, 5]}}, "images": 40}
TEST = ["--interpret.images", "0", "--suite.images", "10"]


@pytest.fixture(scope="module")
def run(tiny_teacher, tmp_path_factory):
    """A student's run folder."""
    home = tmp_path_factory.mktemp("shift")
    config = write(home / "student.yaml", student_config({"checkpoint": str(tiny_teacher / "checkpoints/best.ckpt")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return main(["fit", "--config", config, "--runs", str(home / "runs"), *TEST, *QUIET]).folder


@pytest.fixture
def words(run, tmp_path):
    def of_test(shift, *more):
        given = write(tmp_path / "shift.yaml", shift)
        weights = run / "checkpoints" / "best.ckpt"
        where = ["--config", run / "config.yaml", "--ckpt_path", weights, "--runs", tmp_path / "runs"]
        return ["test", *where, *TEST, "--shift", given, *more]

    return of_test


def other_digits(root, names="0123456789"):
    """The test digits of even index as a folder of images, whose classes are named as given."""
    images, labels = Digits().load(train=False)
    for position in range(0, len(labels), 2):
        for split in ("train", "test"):
            folder = root / split / names[labels[position]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[position, 0].numpy()).save(folder / f"{position}.png")
    return {"class_path": "datamodules.ImageFolder", "init_args": {"root": str(root), "size": 8, "channels": 1}}


def test_corruptions_of_student_and_teacher(run, words, cli, tiny_teacher, capsys):
    folder = cli(*words(LIKE)).folder
    figures = results(folder)
    data = Digits()
    data.setup("test")
    index = torch.randperm(360, generator=torch.Generator().manual_seed(0))[:40]
    batch = data.batch("test", index)
    for role, checkpoint, home in (("student", "best", run), ("teacher", "", tiny_teacher)):
        network = load_network(home / "checkpoints" / "best.ckpt").network.eval()
        for kind in ("gaussian_noise", "fog", "pixelate"):
            x = torch.from_numpy(corrupt(batch.x.numpy(), index.tolist(), kind, 5))
            right = int((network(x).argmax(1) == batch.y).sum())
            assert figures[role, checkpoint, f"CIFAR-C-like at severity 2, 5: {kind} 5"] == (right / 40, 40)
        # Of all the suite's and its own figures none is called by the published files' name.
        assert not [metric for _, _, metric in figures if "CIFAR-10" in metric]
    source = "CIFAR-C-like at severity 2, 5: "
    ratio = of("student", figures)[f"{source}error relative to teacher"][0]
    tables = (folder / "outcomes" / f"corrupted-{name}.parquet" for name in ("student-best", "teacher"))
    student, teacher = map(parquet.read_table, tables)
    assert student["index"].to_pylist() == sorted(index.tolist())
    counted = [c.removeprefix("rank/") for c in student.column_names if c.startswith("rank/")]
    counted = sorted({c.rpartition(" ")[0] for c in counted} - {"", "speckle_noise", "gaussian_blur"})
    assert len(counted) == 14
    sums = [
        [sum((table[f"rank/{kind} {s}"].to_numpy() > 0).mean() for s in (2, 5)) for kind in counted]
        for table in (student, teacher)
    ]
    assert ratio == pytest.approx(np.mean(np.divide(*sums)))
    assert of("student", figures)[f"{source}mean error of 14"][0] == pytest.approx(50 * np.mean(sums[0]))
    pictures = {path.name for path in (folder / "figures" / "shift").iterdir()}
    assert pictures == {
        "accuracy-student-best.png",
        "accuracy-teacher.png",
        "difference-student-best.png",
        "severity-student-best.png",
    }
    shown = capsys.readouterr().out
    assert "mean error of 14" in shown
    assert "ECE at severity 5" in shown
    assert "fog 5" not in shown


@pytest.mark.slow
def test_two_runs_are_compared_image_by_image(words, cli):
    folders = [cli(*words(LIKE, "--shift.corruptions.seed", seed)).folder for seed in (0, 1)]
    found = {row.name: row for row in compare(*(f / "outcomes" / "corrupted-student-best.parquet" for f in folders))}
    assert found["clean"].first == found["clean"].second
    assert found["contrast 5"].only_first == found["contrast 5"].only_second == 0


def test_other_datasets_by_the_names_of_their_classes(words, cli, tmp_path):
    """The even test digits in folders whose order is another: the same images, told as well."""
    names = "9876543210"
    own = other_digits(tmp_path / "own")
    mixed = other_digits(tmp_path / "mixed", names)
    folder = cli(*words({"ood": {"the same": own, "named in reverse": mixed}})).folder
    student = of("student", results(folder))
    right = parquet.read_table(folder / "outcomes" / "ood-the-same-student-best.parquet")
    assert right.num_rows == 180
    assert student["the same: accuracy"] == ((right["rank/clean"].to_numpy() == 0).mean(), 180)
    # A digit d that is called 9 - d is right where the network says 9 - d.
    said, label = right["prediction/clean"].to_numpy(), right["label"].to_numpy()
    assert student["named in reverse: accuracy"][0] == pytest.approx((said == 9 - label).mean())
    assert student["test set: accuracy"][1] == 360
    assert of("teacher", results(folder), "").keys() >= {"the same: ECE", "the same: NLL", "test set: accuracy"}
    assert not list(folder.glob("figures/shift/*"))


def test_nothing_unless_asked_for(run, words, cli):
    figures = results(run)
    assert not [metric for _, _, metric in figures if "CIFAR" in metric or "test set" in metric]
    assert not (run / "figures" / "shift").exists()
    none = cli(*words(LIKE | {"images": 0})).folder
    assert not [metric for _, _, metric in results(none) if "CIFAR" in metric]


@pytest.mark.slow
def test_its_config_repeats_it(words, cli, tmp_path):
    first = cli(*words(LIKE)).folder
    saved = yaml.safe_load((first / "config.yaml").read_text())["shift"]
    assert saved["corruptions"]["init_args"]["severities"] == [2, 5]
    again = cli("test", "--config", first / "config.yaml", "--runs", tmp_path / "again").folder
    assert results(again) == results(first)


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ({"ood": {"signs": "stop"}}, "stop"),
        ({"corruptions": {"class_path": "shift.CIFARC", "init_args": {"root": "nowhere"}}}, "nowhere/labels.npy"),
        ({"corruptions": {"class_path": "shift.CIFARCLike", "init_args": {"severities": [7]}}}, "1 to 5"),
        ({"images": -1}, "at least 0"),
        ({"ood": {"test set": {"class_path": "datamodules.Digits"}}}, "rename it"),
        ({"ood": {"ring": {"class_path": "datamodules.ToyRing"}}}, "shift.ood.ring has images (2, 1, 1)"),
        ({"ood": {key: {"class_path": "datamodules.Digits"} for key in ("a b", "A-b")}}, "a b, A-b would share a file"),
    ],
)
def test_bad_input_is_one_sentence(words, command, shift, said):
    ended = command(*words(shift))
    assert ended.status != 0
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_what_does_not_fit_ends_a_fit_before_it_begins(run, cli, tmp_path):
    shift = write(tmp_path / "shift.yaml", {"ood": {"some": other_digits(tmp_path / "some", "abcdefghij")}})
    with pytest.raises(ValueError, match=r"shift\.ood\.some must hold the network's classes by name, but lacks 0, 1"):
        cli("fit", "--config", run / "config.yaml", "--runs", tmp_path / "runs", "--shift", shift)
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


def test_an_unreadable_other_dataset_ends_a_fit_before_it_begins(run, cli, tmp_path):
    other = other_digits(tmp_path / "some")
    next((tmp_path / "some" / "test").rglob("*.png")).write_text("no image")
    data = write(tmp_path / "data.yaml", other_digits(tmp_path / "own"))
    shift = write(tmp_path / "shift.yaml", {"ood": {"some": other}})
    with pytest.raises(ValueError, match=r"1 of the 180 images of .*some"):
        cli("fit", "--config", run / "config.yaml", "--data", data, "--runs", tmp_path / "runs", "--shift", shift)
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.slow
def test_two_processes_say_what_one_says(words, tmp_path):
    shift = LIKE | {"ood": {"the same": other_digits(tmp_path / "own")}, "images": 31}
    found = []
    for number, more in enumerate(([], DDP)):
        ended = process(*words(shift, "--runs", tmp_path / f"{number}", *more), timeout=300)
        assert ended.status == 0, ended.err
        (folder,) = (tmp_path / f"{number}" / "student").glob("*-test")
        found.append({key: value for key, value in results(folder).items() if ": " in key[2]})
    assert found[0].keys() == found[1].keys()
    for key, (value, n) in found[0].items():
        assert found[1][key] == (pytest.approx(value, abs=1e-6), n)


@pytest.mark.parametrize("piece", sorted((ROOT / "configs" / "shift").glob("*.yaml")), ids=lambda path: path.stem)
def test_pieces_that_ship_are_read(piece, at_root, capsys):
    with pytest.raises(SystemExit) as end:
        main(["test", "--config", "configs/kd_wrn.yaml", "--shift", str(piece), "--print_config"])
    assert end.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)["shift"]
    given = yaml.safe_load(piece.read_text())
    assert found["corruptions"]["class_path"] == given["corruptions"]["class_path"]
    assert found["images"] == given.get("images")
    assert (found["ood"] or {}).keys() == given.get("ood", {}).keys()
