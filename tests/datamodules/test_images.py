"""The base of all datasets: splits, batches, checks, and what a Trainer makes of them."""

import os
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules import CIFAR100, Batch, Digits, Images, ToyRing
from networks.base import Facts


class Pattern(Images):
    """Forty training and ten test images whose pixels count up, so that a crop or a flip shows."""

    facts = Facts(classes=3, channels=1, size=8, mean=(0.5,), std=(0.25,))

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        count = 40 if train else 10
        images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(count, 1, 1, 1)
        return images, torch.arange(count) % 3


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


class TestSplits:
    @pytest.mark.parametrize("validation", [0.0, 0.1, 0.25, 0.9])
    def test_train_and_validation_are_disjoint_and_exhaustive(self, validation) -> None:
        data = Pattern(validation=validation)
        train, held_out = data.split_index("train"), data.split_index("validation")
        assert torch.cat([train, held_out]).sort().values.equal(torch.arange(40))
        assert len(held_out) == round(40 * validation)
        assert train.equal(train.sort().values)

    def test_seed_alone_decides_and_the_test_set_is_untouched(self) -> None:
        one, same, other = Pattern(), Pattern(batch_size=3), Pattern(split_seed=1)
        assert one.split_index("validation").equal(same.split_index("validation"))
        assert not one.split_index("validation").equal(other.split_index("validation"))
        for data in (one, other):
            assert data.split_index("test").equal(torch.arange(10))

    @pytest.mark.parametrize("validation", [-0.1, 1.0])
    def test_an_impossible_share_is_refused(self, validation) -> None:
        with pytest.raises(ValueError, match="validation is the held-out share"):
            Pattern(validation=validation)

    def test_a_share_that_leaves_nothing_to_train_is_refused(self) -> None:
        with pytest.raises(ValueError, match="takes all 40 training images"):
            Pattern(validation=0.999).setup("fit")


class TestOmit:
    @pytest.mark.parametrize("validation", [0.0, 0.25])
    def test_its_images_are_left_out_and_the_others_stay_where_they_were(self, validation) -> None:
        whole, part = Pattern(validation=validation), Pattern(validation=validation, omit=1)
        labels = whole.load(train=True)[1]
        for split in ("train", "validation"):
            index = whole.split_index(split)
            assert part.split_index(split).equal(index[labels[index] != 1])
            assert not part.batch(split).y.eq(1).any()
        indices = torch.cat([part.split_index("train"), part.split_index("validation")])
        assert len(indices.unique()) == len(indices) == 40 - 13
        index = part.split_index("train")
        assert part.batch("train").y.equal(labels[index])  # positions in the whole array still
        assert part.batch("train").index.equal(index)

    def test_the_test_set_keeps_all(self) -> None:
        assert Pattern(omit=1).split_index("test").equal(torch.arange(10))
        assert Digits(omit=3).batch("test").y.eq(3).sum() == Digits().batch("test").y.eq(3).sum() > 0

    def test_every_stage_of_a_trainer_sees_what_it_should(self) -> None:
        data = Digits(omit=3, batch_size=64)
        module = fit(data, epochs=1)
        trainer().test(module, data, verbose=False)
        labels = {stage: torch.cat([batch.y for _, batch in seen]) for stage, seen in module.seen.items()}
        digits = {stage: set(found.tolist()) for stage, found in labels.items()}
        assert digits["train"] == digits["validation"] == set(range(10)) - {3}
        assert digits["test"] == set(range(10))

    def test_its_name(self) -> None:
        assert Pattern().omitted is None
        assert Pattern(omit=0).omitted == (0, "0")
        assert ToyRing(omit=2).omitted == (2, "ring")

    def test_the_facts_stay(self) -> None:
        assert Digits(omit=3).facts == Digits().facts

    @pytest.mark.parametrize("omit", [-1, 3])
    @pytest.mark.parametrize("stage", ["fit", "validate", "test", None])
    def test_a_class_that_does_not_exist_is_refused_before_anything_is_loaded(self, monkeypatch, omit, stage) -> None:
        data = ToyRing(omit=omit)
        monkeypatch.setattr(data, "load", lambda train: pytest.fail("loaded"))
        with pytest.raises(ValueError, match=rf"omit={omit} names .* 0 to 2 \(lower left, upper right, ring\)"):
            data.setup(stage)

    def test_classes_without_names_are_refused_by_number(self) -> None:
        with pytest.raises(ValueError, match=r"^omit=3 names no class: give one of 0 to 2, or null for none\.$"):
            Pattern(omit=3).setup("fit")

    def test_a_hundred_names_are_cut(self) -> None:
        with pytest.raises(ValueError, match=r"0 to 99 \(apple, .* …\), or null") as caught:
            CIFAR100(omit=100).setup("fit")
        assert len(str(caught.value)) < 300

    def test_nothing_left_to_train_is_refused(self, monkeypatch) -> None:
        data = Pattern(omit=1)
        monkeypatch.setattr(data, "load", lambda train: (Pattern().load(train)[0], torch.ones(40).long()))
        with pytest.raises(ValueError, match="of the omitted class 1"):
            data.setup("fit")


class TestBatch:
    def test_whole_split_in_order_without_a_trainer(self) -> None:
        data = Digits()
        x, y, index, undisturbed = data.batch("test")
        assert x.shape == (360, 1, 8, 8)
        assert (x.dtype, y.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert undisturbed is None
        assert (x.min(), x.max()) == (0, 1)
        assert index.equal(torch.arange(360))
        assert y.shape == (360,)

    def test_index_names_the_same_image_in_any_batch(self) -> None:
        data = Digits()
        validation = data.batch("validation")
        part = data.batch("validation", validation.index[[5, 2]])
        assert part.x.equal(validation.x[[5, 2]])
        assert part.y.equal(validation.y[[5, 2]])

    def test_key_fixes_the_crop_of_an_image(self) -> None:
        data = Pattern()
        index = torch.arange(10)
        plain, first, again, other = (data.batch("train", index, key) for key in (None, (0, 1), (0, 1), (0, 2)))
        assert first.x.equal(again.x)
        assert not first.x.equal(other.x)
        assert plain.x.equal(plain.x[:1].expand(10, -1, -1, -1))
        assert data.batch("train", index[3:5], (0, 1)).x.equal(first.x[3:5])

    def test_points_are_taken_as_they_are(self) -> None:
        data = ToyRing()
        assert data.batch("test").x.equal(data.load(train=False)[0])

    def test_each_set_is_loaded_once(self, monkeypatch) -> None:
        data, loads = Pattern(), []
        monkeypatch.setattr(data, "load", lambda train: loads.append(train) or Pattern.load(data, train))
        for stage in ("fit", "fit", "validate", "test", "predict", None):
            data.setup(stage)
        data.batch("validation")
        assert loads == [True, False]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_the_gpu_gives_the_same_batch(self) -> None:
        data = Pattern()
        index = torch.arange(20)
        here, there = data.batch("train", index, (1, 2)), data.batch("train", index.cuda(), (1, 2))
        assert all(tensor.is_cuda for tensor in there[:3])
        assert here.x.equal(there.x.cpu())


class TestChecks:
    @pytest.mark.parametrize(("label", "first"), [(3, 7), (-1, 0)])
    def test_a_label_out_of_range_is_named(self, monkeypatch, label, first) -> None:
        images, labels = Pattern().load(train=True)
        labels[[first, 9]] = label
        data = Pattern()
        monkeypatch.setattr(data, "load", lambda train: (images, labels))
        with pytest.raises(ValueError, match=rf"Label {label} of image {first} is not in \[0, 3\).*3 classes"):
            data.setup("fit")

    def test_a_wrong_shape_is_named_with_the_right_one(self, monkeypatch) -> None:
        data = Pattern()
        monkeypatch.setattr(data, "load", lambda train: (torch.zeros(4, 3, 9, 9, dtype=torch.uint8), torch.zeros(4)))
        with pytest.raises(ValueError, match=r"\(3, 9, 9\).*\(1, 8, 8\)"):
            data.setup("test")

    def test_points_are_not_augmented(self) -> None:
        with pytest.raises(ValueError, match="neither shifted nor mirrored"):
            ToyRing(augment=True).setup("fit")


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
