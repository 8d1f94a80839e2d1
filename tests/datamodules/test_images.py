"""The base of all datasets: splits, batches and checks."""

import pytest
import torch
from torch import Tensor

from datamodules import CIFAR100, Digits, Images, ToyRing, store
from networks.base import Facts


class Pattern(Images):
    """Forty training and ten test images whose pixels count up, so that a crop or a flip shows."""

    facts = Facts(classes=3, channels=1, size=8, mean=(0.5,), std=(0.25,))

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        count = 40 if train else 10
        images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(count, 1, 1, 1)
        return images, torch.arange(count) % 3


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
        x, y, index, undisturbed, *_ = data.batch("test")
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
    @pytest.mark.parametrize("bound", [0, store.IN_MEMORY])
    def test_the_gpu_gives_the_same_batch(self, monkeypatch, bound) -> None:
        monkeypatch.setattr(store, "IN_MEMORY", bound)
        data = Pattern()
        index = torch.arange(20)
        here, there = data.batch("train", index, (1, 2)), data.batch("train", index.cuda(), (1, 2))
        assert all(tensor.is_cuda for tensor in there[:3])
        assert here.x.equal(there.x.cpu())

    @pytest.mark.parametrize(("bound", "stays"), [(40 * 64 - 1, "cpu"), (40 * 64, "meta")])
    def test_what_is_larger_than_the_bound_stays_where_it_is(self, monkeypatch, bound, stays) -> None:
        monkeypatch.setattr(store, "IN_MEMORY", bound)
        data = Pattern(batch_size=4)
        (fetched, *_) = data.train_dataloader()
        assert (fetched.images is not None) == (stays == "cpu")
        device = torch.device("meta")  # a device without memory
        batch = data.batch(
            "train", fetched.index.to(device), None, None if fetched.images is None else fetched.images.to(device)
        )
        assert batch.x.device == batch.y.device == device
        images, labels = data._source(True, device)
        assert (images.device.type, labels.device.type) == (stays, "meta")


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

    def test_images_without_labels_are_refused(self, monkeypatch) -> None:
        monkeypatch.setattr(
            Pattern, "load", lambda self, train: (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long())
        )
        with pytest.raises(ValueError, match="3 images and 2 labels"):
            Pattern().setup("fit")
