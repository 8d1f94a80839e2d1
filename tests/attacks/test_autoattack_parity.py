"""AutoAttack against its authors' code, on networks trained naturally, adversarially, and by defensive distillation.

Digits by a small convolutional network, MNIST-10k by a perceptron; 400 images each, float32.
"""

import os
import tarfile

import pytest
import torch
from attack_helpers import broken
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from attacks import APGD, PGD, AutoAttack, Threat, run_suite
from attacks.draws import OfficialDraws

COUNT = 400
KINDS = ("natural", "adversarial", "defensive")
# Radii that most images fall at: what stands costs ten thousand passes an image.
EPS = {
    ("digits", "natural"): 0.12,
    ("digits", "adversarial"): 0.2,
    ("digits", "defensive"): 0.12,
    ("mnist", "natural"): 0.06,
    ("mnist", "adversarial"): 0.15,
    ("mnist", "defensive"): 0.06,
}


def images(data, tmp_path):
    """Images, labels, and a fresh network for them."""
    if data == "digits":
        found = load_digits()
        x, y = torch.tensor(found.images / 16).float()[:, None], torch.tensor(found.target)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
        return x, y, lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 10))
    if "TEMPERED_DATA" not in os.environ:
        pytest.skip("needs TEMPERED_DATA")
    with tarfile.open(os.path.join(os.environ["TEMPERED_DATA"], "mnist10k.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.glob("mnist10k/*/*.png"), key=lambda path: path.name)[:4000]
    x = torch.stack([pil_to_tensor(Image.open(path).convert("L")) for path in files]).float() / 255
    y = torch.tensor([int(path.parent.name) for path in files])
    return x, y, lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def trained(make, x, y, eps=0.0, soft=None, temperature=1.0, epochs=20):
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    target = F.one_hot(y, 10).float() if soft is None else soft
    attack = PGD(Threat("linf", eps), steps=5) if eps else None
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(100):
            crafted = attack(model, x[part], y[part]) if attack else x[part]
            loss = F.cross_entropy(model.train()(crafted) / temperature, target[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=EPS, ids="-".join)
def case(request, tmp_path_factory):
    """A network, the images of the 400 that it has right, and the radius."""
    data, kind = request.param
    x, y, make = images(data, tmp_path_factory.mktemp(data))
    eps = EPS[request.param]
    if kind == "defensive":
        teacher = trained(make, x[COUNT:], y[COUNT:], temperature=40)
        with torch.no_grad():
            soft = (teacher(x[COUNT:]) / 40).softmax(1)
        model = trained(make, x[COUNT:], y[COUNT:], soft=soft, temperature=40)
    else:
        model = trained(make, x[COUNT:], y[COUNT:], eps=eps if kind == "adversarial" else 0.0)
    return model, x[:COUNT], y[:COUNT], eps, kind


@pytest.mark.slow
def test_apgd_breaks_the_same_images(case):
    official = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y, eps, _ = case
    right = ~broken(model, x, y)
    x, y = x[right], y[right]
    given = {"norm": "Linf", "eps": eps, "seed": 0, "device": "cpu"}
    pairs = [
        (official.APGDAttack(model, **given), APGD(Threat("linf", eps))),
        (official.APGDAttack_targeted(model, **given), APGD(Threat("linf", eps), loss="dlr", targets=9)),
    ]
    for theirs, ours in pairs:
        with torch.random.fork_rng():
            expected = broken(model, theirs.perturb(x, y), y)
        found = broken(model, ours.evaluating()(model, x, y, OfficialDraws(torch.arange(len(x)), 0)), y)
        assert found.equal(expected)


@pytest.mark.slow
def test_autoattack_leaves_as_many_standing(case):
    official = pytest.importorskip("pyautoattack")
    model, x, y, eps, kind = case
    theirs = official.AutoAttack(model, norm="Linf", eps=eps, seed=0)
    theirs.verbose = False
    with torch.random.fork_rng():
        adversarial, _ = theirs.run_standard_evaluation(x, y, batch_size=COUNT)
    expected = float((~broken(model, adversarial, y)).double().mean())
    result = run_suite(model, [(x, y, torch.arange(COUNT))], [AutoAttack()], Threat("linf", eps), rng="official")
    found = float(result.right("AutoAttack").mean())
    print(f"{kind}: {100 * found:.2f} beside {100 * expected:.2f}")
    assert abs(found - expected) <= 0.005 + 1e-9
    assert 0.03 < found < 0.95, "an attack that breaks all or nothing tests nothing"
