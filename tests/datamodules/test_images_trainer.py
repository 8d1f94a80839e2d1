"""What a Trainer makes of a dataset: stages, order, augmentation and replays."""

import os
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from test_images import Pattern
from torch import Tensor, nn

from datamodules import Batch, Digits, Images, ToyRing


class Recorder(pl.LightningModule):
    """Keeps every batch that arrives, by stage."""

    def __init__(self, replays: int = 1) -> None:
        super().__init__()
        self.replays = replays
        self.layer = nn.LazyLinear(1)
        self.seen: dict[str, list[tuple[int, Batch]]] = {}

    def keep(self, stage: str, batch: Batch) -> Tensor:
        assert isinstance(batch, Batch)
        self.seen.setdefault(stage, []).append((self.current_epoch, batch))
        return self.layer(batch.x.flatten(1)).mean()

    def training_step(self, batch: Batch) -> Tensor:
        return self.keep("train", batch)

    def validation_step(self, batch: Batch) -> None:
        self.keep("sanity" if self.trainer.sanity_checking else "validation", batch)

    def test_step(self, batch: Batch) -> None:
        self.keep("test", batch)

    def predict_step(self, batch: Batch) -> None:
        self.keep("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def indices(self, stage: str, epoch: int = 0) -> list[list[int]]:
        return [batch.index.tolist() for at, batch in self.seen[stage] if at == epoch]

    def images(self, stage: str) -> Tensor:
        return torch.cat([batch.x for _, batch in self.seen[stage]])


def trainer(epochs: int = 2) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )


def fit(data: Images, replays: int = 1, seed: int = 0, epochs: int = 2) -> Recorder:
    pl.seed_everything(seed, verbose=False)
    module = Recorder(replays)
    module.layer(torch.zeros(1, data.facts.channels * data.facts.size**2))
    trainer(epochs).fit(module, data)
    return module


@pytest.fixture(autouse=True)
def _clean_seed(monkeypatch):
    """seed_everything leaves the seed in the environment; nothing may leak into another test."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


class TestTrainer:
    @pytest.mark.parametrize("data", [Digits(batch_size=64, augment=True), ToyRing(batch_size=300)])
    def test_every_stage_gets_its_split_in_the_box(self, data) -> None:
        module = fit(data, epochs=1)
        run = trainer()
        run.validate(module, data, verbose=False)
        run.test(module, data, verbose=False)
        run.predict(module, data, return_predictions=False)
        low, high = data.facts.box
        for stage, split in {"train": "train", "test": "test", "predict": "test"}.items():
            seen = torch.cat([batch.index for _, batch in module.seen[stage]])
            assert seen.sort().values.equal(data.split_index(split))
            assert module.images(stage).min() >= low
            assert module.images(stage).max() <= high
        assert module.images("predict").equal(data.batch("test").x)

    def test_only_training_is_augmented(self) -> None:
        data = Pattern(batch_size=8, augment=True)
        module = fit(data)
        trainer().test(module, data, verbose=False)
        plain = data.batch("test").x[:1]
        for stage in ("sanity", "validation", "test"):
            images = module.images(stage)
            assert images.equal(plain.expand_as(images))
        assert len(module.images("train").unique(dim=0)) > 30

    def test_augmentation_is_off_by_default(self) -> None:
        images = fit(Pattern(batch_size=8)).images("train")
        assert images.equal(images[:1].expand_as(images))

    def test_epochs_differ_in_order_and_keep_the_last_partial_batch(self) -> None:
        module = fit(Pattern(batch_size=8))
        first, second = module.indices("train", 0), module.indices("train", 1)
        assert [len(batch) for batch in first] == [8, 8, 8, 8, 4]
        assert first != second
        assert sorted(chain(*first)) == sorted(chain(*second))

    def test_replays_are_identical_batches_in_a_row(self) -> None:
        module = fit(Pattern(batch_size=8, augment=True), replays=3)
        batches = [batch for epoch, batch in module.seen["train"] if epoch == 0]
        assert len(batches) == 4 * 3
        for start in range(0, 12, 3):
            first, *copies = batches[start : start + 3]
            assert all(copy.x.equal(first.x) and copy.index.equal(first.index) for copy in copies)
        assert len({tuple(batch.index.tolist()) for batch in batches}) == 4

    def test_too_few_images_to_replay(self) -> None:
        with pytest.raises(ValueError, match="at least one full batch of 128, there are 36 images"):
            fit(Pattern(), replays=2)

    def test_runs_repeat_with_the_seed(self) -> None:
        one, same, other = (fit(Pattern(batch_size=8, augment=True), seed=seed) for seed in (1, 1, 2))
        assert os.environ["PL_GLOBAL_SEED"] == "2"
        assert one.indices("train") == same.indices("train") != other.indices("train")
        assert one.images("train").equal(same.images("train"))

    def test_crops_change_with_the_epoch(self) -> None:
        module = fit(Pattern(batch_size=40, validation=0.0, augment=True))
        first, second = (batch.x[batch.index.argsort()] for _, batch in module.seen["train"])
        assert not first.equal(second)

    def test_no_validation_set_means_no_validation(self) -> None:
        assert "validation" not in fit(Pattern(validation=0.0)).seen

    def test_an_omitted_class_is_missing_from_all_stages_but_the_test(self) -> None:
        data = Digits(omit=3, batch_size=64)
        module = fit(data, epochs=1)
        trainer().test(module, data, verbose=False)
        labels = {stage: torch.cat([batch.y for _, batch in seen]) for stage, seen in module.seen.items()}
        digits = {stage: set(found.tolist()) for stage, found in labels.items()}
        assert digits["train"] == digits["validation"] == set(range(10)) - {3}
        assert digits["test"] == set(range(10))
