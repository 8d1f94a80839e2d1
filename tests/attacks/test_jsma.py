"""JSMA: its pairs against an exhaustive search, its path against a plain loop, and what it promises on any model."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from attacks import Strong, Threat, jsma
from attacks.jsma import JSMA, best_pair, crafted
from attacks.subject import Ledger, Subject


def net(shape=(3, 4, 4), dtype=torch.float64, classes=4, seed=0, scale=2.0):
    """A fixed network on inputs of any shape."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, scale / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def noted(attack, model, x, y):
    """The examples, and what is noted of each image and class."""
    ledger = Ledger(len(x), x.device)
    return attack(Subject(model, ledger), x, y), ledger.notes["features"]


def train(temperature):
    """A small CNN on the embedded digits whose logits are divided by a temperature while it is trained."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(300):
            rows = torch.randint(1400, (128,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]) / temperature, y[rows]).backward()
            optimizer.step()
    model.eval()
    x, y = x[1400:], y[1400:]
    right = model(x).argmax(1) == y
    assert right.float().mean() > 0.9
    return model, x[right][:60], y[right][:60]


@pytest.fixture(scope="module")
def digits():
    return train(1.0)


# --- the best pair ---


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 24),
    kind=st.sampled_from(["any", "ties", "equal", "opposed"]),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_best_pair_is_the_best_of_all_pairs(count, kind, density, seed):
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, 8, count, generator=generator, dtype=torch.float64)
    if kind == "ties":
        u, v = u.round(), v.round()
    elif kind != "any":  # v falls as u rises: no feature dominates another
        v = u.clone() if kind == "equal" else 1 - u
    domain = torch.rand(8, count, generator=generator) < density
    pair, found = best_pair(u, v, domain)
    sum_u, sum_v = (part[:, :, None] + part[:, None, :] for part in (u, v))
    allowed = domain[:, :, None] & domain[:, None, :] & ~torch.eye(count, dtype=torch.bool)
    products = torch.where((sum_u > 0) & (sum_v > 0) & allowed, sum_u * sum_v, 0)
    best = products.flatten(1).amax(1)
    assert found.equal(best > 0)
    assert products[torch.arange(8), pair[:, 0], pair[:, 1]][found].equal(best[found])


def test_few_features_are_compared(monkeypatch):
    """About 2 ln D of D independent ones: with a bound far below D^2 all images are still compared at once."""
    u, v = torch.randn(2, 5, 3072)
    splits = []
    split = torch.Tensor.split
    monkeypatch.setattr(jsma, "PAIRS", 5 * 60**2)
    monkeypatch.setattr(torch.Tensor, "split", lambda part, size: splits.append(size) or split(part, size))
    best_pair(u, v, torch.ones(5, 3072, dtype=torch.bool))
    assert min(splits) >= 5


# --- the path ---


def plain(model, x, target, theta, gamma, jacobian):
    """One image led to a class by the definition: the whole Jacobian, all pairs."""
    start, limit = x.clone(), gamma * x.numel()
    while True:
        outputs = (lambda t: model(t).softmax(1)) if jacobian == "probabilities" else model
        if model(x).argmax() == target:
            return x
        rows = torch.autograd.functional.jacobian(outputs, x)[0].flatten(1)
        alpha, beta = rows[target], rows.sum(0) - rows[target]
        domain = (x.flatten() < 1) if theta > 0 else (x.flatten() > 0)
        sum_a, sum_b = (part[:, None] + part[None, :] for part in (alpha, beta))
        right = (sum_a > 0) & (sum_b < 0) if theta > 0 else (sum_a < 0) & (sum_b > 0)
        right &= domain[:, None] & domain[None, :] & ~torch.eye(len(alpha), dtype=torch.bool)
        score = torch.where(right, -sum_a * sum_b, 0)
        if score.max() <= 0:
            return None
        pair = list(divmod(int(score.argmax()), len(alpha)))
        ahead = x.clone()
        ahead.view(-1)[pair] = (ahead.view(-1)[pair] + theta).clamp(0, 1)
        if (ahead != start).sum() > limit:
            return None
        x = ahead


@pytest.mark.parametrize("theta", [1.0, 0.3, -1.0])
@pytest.mark.parametrize("jacobian", ["probabilities", "logits"])
def test_it_takes_the_path_of_the_definition(theta, jacobian):
    model, x = net(), torch.rand(6, 3, 4, 4, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape) < 0.2, x.round(), x)
    y, gamma = model(x).argmax(1), 0.25
    _, shares = noted(JSMA(theta=theta, gamma=gamma, jacobian=jacobian), model, x, y)
    reached = 0
    for target in range(4):
        found = JSMA(theta=theta, gamma=gamma, target=target, jacobian=jacobian)(model, x, y)
        for row in range(len(x)):
            expected = None if y[row] == target else plain(model, x[row : row + 1], target, theta, gamma, jacobian)
            if expected is None:
                assert shares[row, target].isnan()
                assert found[row].equal(x[row])
            else:
                reached += 1
                assert shares[row, target] == (expected != x[row]).double().mean().float()
                torch.testing.assert_close(found[row], expected[0])
    assert 3 <= reached < 18  # both outcomes were seen


# --- what holds for every model ---


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(2, 1, 1), (1, 1, 1), (3, 4, 4), (1, 3, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    box=st.sampled_from([(0.0, 1.0), (-6.0, 6.0)]),
    classes=st.integers(2, 6),
    theta=st.sampled_from([1.0, -1.0, 0.3, -7.0]),
    gamma=st.sampled_from([0.145, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_few_features_change_within_the_box_and_by_theta(shape, dtype, box, classes, theta, gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    x = box[0] + (box[1] - box[0]) * torch.rand(4, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
    model, y = net(shape, dtype, classes, seed), torch.randint(classes, (4,), generator=generator)
    found, shares = noted(JSMA(Threat(box=box), theta=theta, gamma=gamma), model, x, y)
    assert found.dtype == dtype
    assert found.min() >= box[0]
    assert found.max() <= box[1]
    changed = (found != x).flatten(1)
    assert (changed.double().mean(1) <= gamma).all()
    delta = (found - x)[found != x]
    assert (delta.sign() == np.sign(theta)).all()
    succeeded = ~shares.isnan().all(1)
    assert (model(found).argmax(1) != y)[succeeded].all()
    assert found[~succeeded].equal(x[~succeeded])
    assert shares.gather(1, y[:, None]).isnan().all()
    fewest = shares.nan_to_num(nan=2).amin(1)
    torch.testing.assert_close(fewest[succeeded], changed.float().mean(1)[succeeded])


def test_an_image_that_already_is_of_another_class_needs_no_change():
    model, x = net(), torch.rand(3, 3, 4, 4, dtype=torch.float64)
    predicted = model(x).argmax(1)
    found, shares = noted(JSMA(), model, x, (predicted + 1) % 4)
    assert found.equal(x)
    assert (shares.gather(1, predicted[:, None]) == 0).all()


def test_pairs_leave_when_they_are_done():
    model, x = net(), torch.rand(5, 3, 4, 4, dtype=torch.float64)
    counting = Counting(model)
    JSMA(gamma=1.0)(counting, x, model(x).argmax(1))
    assert counting.sizes[:2] == [5, 15]  # the classes are counted, then three targets each
    assert counting.sizes[1:] == sorted(counting.sizes[1:], reverse=True)
    assert counting.sizes[-1] < 8


@pytest.mark.parametrize("jacobian", ["probabilities", "logits"])
def test_an_image_depends_neither_on_its_batch_nor_on_the_pool(monkeypatch, jacobian):
    model, x = net(), torch.rand(7, 3, 4, 4, dtype=torch.float64)
    y, attack = model(x).argmax(1), JSMA(gamma=0.25, jacobian=jacobian)
    together, shares = noted(attack, model, x, y)
    monkeypatch.setattr(jsma, "POOL", 0)
    monkeypatch.setattr(jsma, "PAIRS", 0)
    for parts in ([0, 1, 2, 3, 4, 5, 6], [6], [2, 3]):
        found, some = noted(attack, model, x[parts], y[parts])
        torch.testing.assert_close(found, together[parts])
        torch.testing.assert_close(some, shares[parts], equal_nan=True)


def test_a_target_must_be_a_class_of_the_model():
    with pytest.raises(ValueError, match="4 classes, got 4"):
        JSMA(target=4)(net(), torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1]))


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_model_is_untouched(network, batch, batchnorm):
    x, y = batch
    with untouched(network):
        JSMA(batchnorm=batchnorm, gamma=0.05)(network, x, y)


# --- saturation, and ART ---


def test_a_network_trained_at_a_high_temperature_gives_its_probabilities_no_gradient():
    model, x, y = train(40.0)
    weak, shares = noted(JSMA(gamma=0.3), model, x, y)
    _, logits = noted(JSMA(gamma=0.3, jacobian="logits"), model, x, y)
    _, strong = noted(Strong(JSMA(gamma=0.3), 40.0), model, x, y)
    failed = shares.isnan().all(1)
    assert weak[failed].equal(x[failed])
    assert crafted(shares, y, 0.3).rate < 0.1
    assert crafted(logits, y, 0.3).rate > 0.4
    assert crafted(strong, y, 0.3).rate > 0.4


def test_it_reaches_at_least_as_many_classes_as_art(digits):
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    model, x, y = digits
    x = F.interpolate(x, size=(16, 16))  # more features, so that rounding gamma to pairs matters less
    model = nn.Sequential(nn.AvgPool2d(2), model)
    gamma = 0.2
    _, shares = noted(JSMA(gamma=gamma), model, x, y)
    classifier = classification.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.SaliencyMapMethod(classifier, theta=1.0, gamma=gamma, batch_size=128, verbose=False)
    reached = total = 0
    for target in range(10):
        some = y != target
        found = torch.tensor(attack.generate(x[some].numpy(), np.full(int(some.sum()), target)))
        reached += int((model(found).argmax(1) == target).sum())
        total += int(some.sum())
    assert total == 9 * len(x)
    assert 0.2 < reached / total <= crafted(shares, y, gamma).rate


# --- its summary ---


def test_crafted_counts_pairs_of_source_and_target():
    nan = torch.nan
    shares = torch.tensor([[nan, 0.01, nan], [nan, 0.02, 0.05], [0.03, nan, nan]])
    success, rate, robustness = crafted(shares, torch.tensor([0, 0, 1]), gamma=0.1)
    torch.testing.assert_close(
        success, torch.tensor([[nan, 1.0, 0.5], [1.0, nan, 0.0], [nan, nan, nan]], dtype=torch.float64), equal_nan=True
    )
    assert rate == pytest.approx(4 / 6)
    assert robustness == pytest.approx((0.01 + 0.02 + 0.05 + 0.03 + 2 * 0.1) / 6)


# --- its description ---


def test_the_name_says_what_differs():
    assert JSMA().name == "JSMA"
    attack = JSMA(theta=-0.5, gamma=0.3, target=2, jacobian="logits", unlimited=False)
    assert attack.name == "JSMA logits theta -0.5 gamma 0.3 to 2 limited"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"theta": 0.0}, "not 0"),
        ({"theta": float("nan")}, "finite"),
        ({"gamma": 0.0}, "above 0"),
        ({"gamma": 1.1}, "at most 1"),
        ({"target": -1}, "0 or more"),
        ({"jacobian": "losses"}, "probabilities, logits"),
    ],
)
def test_what_it_cannot_be_given(options, says):
    with pytest.raises(ValueError, match=says):
        JSMA(**options)
