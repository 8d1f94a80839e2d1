"""Other datasets: classes are matched by name, and what does not match is refused in one sentence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from shift_helpers import Brightness, batches

from networks import Facts
from shift import class_map, judgements, relabelled
from shift.elsewhere import records

FACTS = Facts(classes=4, channels=3, size=32, mean=(0.5,) * 3, std=(0.2,) * 3, names=("cat", "dog", "frog", "ship"))


def named(*names):
    return replace(FACTS, classes=len(names), names=names)


def test_another_order_is_mapped():
    theirs = named("ship", "cat", "frog", "dog")
    classes = class_map(FACTS, theirs, "theirs")
    assert [FACTS.names[label] for label in classes] == list(theirs.names)
    grey = np.repeat(np.uint8([0, 85, 170, 255]), 3)[:, None, None, None] * np.ones((12, 3, 32, 32), np.uint8)
    labels = np.repeat([1, 3, 2, 0], 3)  # as they count their classes
    (found,) = judgements({"network": Brightness()}, relabelled(batches(grey, labels, 5, 7), classes)).values()
    assert found.correct.all()
    assert found.label.tolist() == np.repeat(range(4), 3).tolist()
    (wrong,) = judgements({"network": Brightness()}, batches(grey, labels)).values()
    assert wrong.correct.sum() == 3  # frogs alone


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (FACTS, named("cat", "dog", "ship"), "by name, but lacks frog"),
        (FACTS, named("cat", "dog", "frog", "ship", "deer"), "by name, but has deer"),
        (FACTS, named("Cat", "dog", "frog", "lorry"), "lacks cat, ship and has Cat, lorry"),
        (FACTS, replace(FACTS, names=()), "its classes have no names"),
        (replace(FACTS, names=()), FACTS, "our classes have no names"),
        (FACTS, replace(FACTS, size=64), r"images \(3, 64, 64\).*takes \(3, 32, 32\)"),
        (FACTS, replace(FACTS, box=(-1.0, 1.0)), r"in \[-1.0, 1.0\].* in \[0.0, 1.0\]"),
    ],
)
def test_what_does_not_match_is_refused_in_one_sentence(ours, theirs, said):
    with pytest.raises(ValueError, match=said) as refused:
        class_map(ours, theirs, "shift.ood.sketches")
    assert str(refused.value).startswith("shift.ood.sketches")
    assert str(refused.value).count(". ") == 0


def test_records_hold_wilsons_interval_and_the_means():
    grey = np.uint8([0, 85, 170, 255, 255])[:, None, None, None] * np.ones((5, 3, 32, 32), np.uint8)
    labels = [0, 1, 2, 3, 0]
    model = Brightness()
    (said,) = judgements({"network": model}, batches(grey, labels)).values()
    accuracy, ece, nll = records("sketches", said, 2.0)
    assert (accuracy.metric, accuracy.value, accuracy.n) == ("sketches: accuracy", 0.8, 5)
    interval = stats.binomtest(4, 5).proportion_ci(method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    x = torch.from_numpy(grey).float() / 255
    losses = torch.nn.functional.cross_entropy(model(x).double(), torch.tensor(labels), reduction="none")
    assert (nll.metric, nll.value) == ("sketches: NLL", pytest.approx(float(losses.mean())))
    assert (ece.metric, ece.value) == ("sketches: ECE", pytest.approx(said.ece))
