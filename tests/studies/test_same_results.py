"""The study of whether what is fast learns the same."""

import pytest
import torch
from scipy import stats

from studies import same_results as study


def test_differences_are_paired_by_seed_and_their_interval_is_that_of_a_t_test():
    figures = [
        {way: {"clean": 90.0 + seed + place, "PGD-20 x5": 50.0 + seed * place} for place, way in enumerate(study.WAYS)}
        for seed in range(3)
    ]
    plain, default, *_ = study.rows(figures)
    assert plain == ["plain", "91.0 ± 1.0", "", "50.0 ± 0.0", ""]
    low, high = stats.t.interval(0.95, 2, loc=1, scale=stats.sem([0.0, 1.0, 2.0]))
    assert default[:3] == ["default", "92.0 ± 1.0", "+1.0 ± 0.0"]
    assert default[4] == f"{(low + high) / 2:+.1f} ± {(high - low) / 2:.1f}"


@pytest.mark.slow
def test_every_way_is_trained_as_it_says(tmp_path, monkeypatch, at_root):
    monkeypatch.setattr("studies.arms.STEPS", 2)
    found = study.train(0, tmp_path)
    assert list(found) == list(study.WAYS)
    hparams = {}
    for way in study.WAYS:
        (folder,) = (tmp_path / f"{way} seed 0").iterdir()
        hparams[way] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert [hparams[way].get("folding", True) for way in study.WAYS] == [False, True, True, True]
    assert [hparams[way].get("cache", False) for way in study.WAYS] == [False, False, False, True]
