"""The study of whether what is fast learns the same."""

from pathlib import Path

import pytest
import torch
import yaml
from main_helpers import image_folder, only
from scipy import stats
from study_helpers import cells

from attacks import Radius
from studies import same_results as study


def figures(seeds):
    return [
        {way: {"clean": 90.0 + seed + place, "PGD-20 x5": 50.0 + seed * place} for place, way in enumerate(study.WAYS)}
        for seed in range(seeds)
    ]


def test_differences_are_paired_by_seed_and_their_interval_is_that_of_a_t_test():
    plain, default, *_ = study.rows(figures(3))
    assert plain == ["plain", "91.0 ± 1.0", "", "50.0 ± 0.0", ""]
    low, high = stats.t.interval(0.95, 2, loc=1, scale=stats.sem([0.0, 1.0, 2.0]))
    assert default[:3] == ["default", "92.0 ± 1.0", "+1.0 ± 0.0"]
    assert default[4] == f"{(low + high) / 2:+.1f} ± {(high - low) / 2:.1f}"


def test_the_study_from_its_command_to_its_tables(tmp_path, monkeypatch, capsys):
    asked = []

    def side_by_side(task, arguments, jobs, title):
        asked.extend(arguments)
        return [figures(2)[seed] for _, seed, _ in arguments]

    monkeypatch.setattr(study, "side_by_side", side_by_side)
    study.run(["--seeds", "2", "--runs", str(tmp_path / "runs"), "--cifar10", str(tmp_path)])
    assert [(seed, folder.name) for _, seed, folder in asked] == [
        (seed, name) for seed in range(2) for name in ("Digits", "CIFAR-10")
    ]
    for name, eps in (("Digits", "0.15"), ("CIFAR-10", "8/255")):
        head, *rows = cells(tmp_path / "runs" / f"{name}.md")
        assert head[1:] == ["clean, %", "difference, 95 %", f"PGD-20 x5 at linf {eps}, %", "difference, 95 %"]
        assert rows == [[cell or "" for cell in row] for row in study.rows(figures(2))]
        assert f"ARD on {name}, 2 seeds, 640 updates" in (tmp_path / "runs" / f"{name}.md").read_text()


def test_without_a_folder_there_are_digits_alone():
    assert list(study.subjects(None)) == ["Digits"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("Digits", 64), ("CIFAR-10", 32)])
def test_every_way_is_trained_as_it_says(name, batch, tmp_path, monkeypatch, at_root):
    monkeypatch.setattr("studies.arms.STEPS", 2)
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))
    folder = image_folder(tmp_path / "images", classes=2, size=32, train=40)
    subject = study.subjects(folder)[name]
    found = study.train(subject, 0, tmp_path)
    assert list(found) == list(study.WAYS)
    configs, hparams = {}, {}
    for way in ("teacher", *study.WAYS):
        run = only(tmp_path, f"{way} seed 0/*/")
        configs[way] = yaml.safe_load((run / "config.yaml").read_text())
        hparams[way] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    of = [hparams[way] for way in study.WAYS]
    assert [each.get("folding", True) for each in of] == [False, True, True, True]
    assert [each.get("channels_last", True) for each in of] == [False, True, True, True]
    assert [each.get("cache", False) for each in of] == [False, False, False, True]
    precisions = [configs[way]["trainer"]["precision"] for way in study.WAYS]
    assert [precision == "bf16-mixed" for precision in precisions] == [False, False, True, False]
    teachers = {configs[way]["model"]["init_args"]["teacher"]["checkpoint"] for way in study.WAYS}
    assert [Path(path).parts[-4] for path in teachers] == ["teacher seed 0"]
    for each in configs.values():
        threats = [each["model"]["init_args"]["attack"]["init_args"]["threat"], each["suite"]["threat"]]
        assert [Radius(threat["init_args"]["eps"]) for threat in threats] == [Radius(subject.eps)] * 2
        assert each["data"]["init_args"]["batch_size"] == batch
