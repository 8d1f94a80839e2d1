"""What the attack benchmark runs: its rows, and how ours and every peer is called at equal settings."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from attacks import APGD, MIFGSM, PGD, Attack, AutoAttack, Radius, Threat, run_suite
from attacks.deepfool import DeepFool
from attacks.jsma import JSMA

OURS = "tempered"
# Of every peer: the package, and what is imported before any clock runs.
PACKAGES = {
    "torchattacks": ("torchattacks", "torchattacks"),
    "foolbox": ("foolbox", "foolbox"),
    "ART": ("adversarial-robustness-toolbox", "art.attacks.evasion"),
    "pyautoattack": ("pyautoattack", "pyautoattack"),
}
PGD_STEP = 1 / 4  # of the radius: Madry's 2/255 at 8/255
GAMMA = 1 / 7  # near the 14.5 % of the paper; 112 of 784 features, an even number, which nobody needs to round


class Counted(nn.Module):
    """A model that counts the images of its forward and backward passes.

    Attributes:
        forwards: images that went forward.
        backwards: images whose logits were differentiated.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@dataclass(frozen=True)
class Task:
    """What every opponent of a row is given.

    Attributes:
        model: maps images to logits; it counts its passes.
        x: images that the model classifies correctly.
        y: their labels.
        threat: the radius.
        seed: of this round; every round has its own.
    """

    model: Counted
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int

    @property
    def eps(self) -> float:
        return float(self.threat.eps)

    @property
    def target(self) -> Tensor:
        """The next class, which is the only one that torchattacks' JSMA leads to."""
        return (self.y + 1) % 10


Run = Callable[[Task], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        run: crafts a task's images.
        goal: the ratio of process seconds that we promise; None promises nothing.
    """

    run: Run
    goal: float | None = None


@dataclass(frozen=True)
class Row:
    """An attack at one setting, and who runs it.

    Attributes:
        setting: what all opponents are set to.
        judged: success is to leave the class within the ``ball``, at any distance (``norm``), or to reach the
            ``target`` class.
        ours: our attack, given the task.
        peers: the others, by name.
        images: how many, in the full and in the quick benchmark.
        rounds: how many, in the full and in the quick benchmark.
    """

    setting: str
    judged: Literal["ball", "norm", "target"]
    ours: Callable[[Task], Attack]
    peers: dict[str, Peer]
    images: tuple[int, int]
    rounds: tuple[int, int]


def importable(say: Console) -> set[str]:
    """The peers that are installed, imported; says how to install the others."""
    found = set()
    for name, (package, module) in PACKAGES.items():
        try:
            import_module(module)
            found.add(name)
        except ImportError as missing:
            how = f"--no-deps {package}" if name == "torchattacks" else '-e ".[peers]"'
            say.print(f"{name} is left out ({missing}): pip install {how}")
    return found


def ours(task: Task, attack: Attack) -> Tensor:
    """Our suite with one attack, all that it does included: preparing the network and confirming every success."""
    n = len(task.x)
    batch = (task.x, task.y, torch.arange(n, device=task.x.device))
    result = run_suite(task.model.model, [batch], [attack], task.threat, seed=task.seed, examples=n)
    (name,) = result.examples.keys() - {"clean"}
    outcome = result.outcomes[name]
    task.model.forwards += float(outcome.forwards.sum())
    task.model.backwards += float(outcome.backwards.sum())
    return torch.from_numpy(result.examples[name]).to(task.x.device)


def torchattacks(name: str, **options: Any) -> Run:
    """An attack of torchattacks; those that have a radius are given it, and a step in units of it."""

    def run(task: Task) -> Tensor:
        import torchattacks

        scaled = {key: value * task.eps for key, value in options.items() if key in ("eps", "alpha")}
        return getattr(torchattacks, name)(task.model, **options | scaled)(task.x, task.y)

    return run


def foolbox(name: str, **options: Any) -> Run:
    """An attack of foolbox; ``abs_stepsize`` is in units of the radius, ``epsilons=None`` asks for the smallest."""

    def run(task: Task) -> Tensor:
        import foolbox

        given = dict(options)
        epsilon = given.pop("epsilons", task.eps)
        if "abs_stepsize" in given:
            given["abs_stepsize"] *= task.eps
        model = foolbox.PyTorchModel(task.model, bounds=(0, 1), device=task.x.device)
        _, x_adv, _ = getattr(foolbox.attacks, name)(**given)(model, task.x, task.y, epsilons=epsilon)
        return x_adv

    return run


def art(name: str, targeted: bool = False, **options: Any) -> Run:
    """An attack of the Adversarial Robustness Toolbox; ``eps`` and ``eps_step`` are in units of the radius."""

    def run(task: Task) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            task.model,
            nn.CrossEntropyLoss(),
            input_shape=tuple(task.x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="gpu" if task.x.is_cuda else "cpu",
        )
        scaled = {key: value * task.eps for key, value in options.items() if key in ("eps", "eps_step")}
        attack = getattr(evasion, name)(classifier, batch_size=len(task.x), verbose=False, **options | scaled)
        labels = task.target if targeted else task.y
        x_adv = attack.generate(x=task.x.cpu().numpy(), y=np.eye(10, dtype=np.float32)[labels.cpu().numpy()])
        return torch.from_numpy(x_adv).to(task.x.device)

    return run


def official_apgd(task: Task) -> Tensor:
    """APGD of the authors' AutoAttack."""
    from pyautoattack.autopgd_base import APGDAttack

    options = {"n_iter": 100, "norm": "Linf", "eps": task.eps, "seed": task.seed, "device": task.x.device}
    return APGDAttack(task.model, **options).perturb(task.x, task.y)


def official_autoattack(task: Task) -> Tensor:
    """The authors' AutoAttack, standard version."""
    from pyautoattack import AutoAttack as Official

    attack = Official(task.model, norm="Linf", eps=task.eps, seed=task.seed, device=task.x.device)
    return attack.run_standard_evaluation(task.x, task.y, batch_size=len(task.x))[0]


def pgd_peers(steps: int, goals: tuple[float, float, float]) -> dict[str, Peer]:
    """The same fixed-step PGD of torchattacks, foolbox and ART."""
    step = {"eps": 1.0, "alpha": PGD_STEP}
    art_options: dict[str, Any] = {"eps": 1.0, "eps_step": PGD_STEP, "max_iter": steps, "num_random_init": 1}
    return {
        "torchattacks": Peer(torchattacks("PGD", steps=steps, **step), goals[0]),
        "foolbox": Peer(foolbox("LinfPGD", steps=steps, abs_stepsize=PGD_STEP), goals[1]),
        "ART": Peer(art("ProjectedGradientDescentPyTorch", **art_options), goals[2]),
    }


def pgd(steps: int) -> Callable[[Task], Attack]:
    return lambda task: PGD(steps=steps, step_size=Radius(PGD_STEP * task.eps))


# torchattacks has an AutoAttack too, but its APGD makes 10 steps, not the standard's 100: it is no opponent.
ROWS = {
    "PGD-20": Row("linf, random start, step eps/4", "ball", pgd(20), pgd_peers(20, (1.5, 2.0, 2.0)), (32, 16), (5, 2)),
    "PGD-1000": Row(
        "linf, random start, step eps/4", "ball", pgd(1000), pgd_peers(1000, (8.0, 8.0, 8.0)), (12, 4), (1, 1)
    ),
    "APGD-CE": Row(
        "linf, 100 steps, 1 start",
        "ball",
        lambda task: APGD(steps=100),
        {
            "torchattacks": Peer(torchattacks("APGD", eps=1.0, steps=100, n_restarts=1, loss="ce"), 1.5),
            "ART": Peer(
                art("AutoProjectedGradientDescent", eps=1.0, eps_step=2.0, max_iter=100, nb_random_init=1), 2.0
            ),
            "pyautoattack": Peer(official_apgd),
        },
        (16, 12),
        (3, 1),
    ),
    "MI-FGSM-20": Row(
        "linf, decay 1, step eps/20",
        "ball",
        lambda task: MIFGSM(steps=20),
        {"torchattacks": Peer(torchattacks("MIFGSM", eps=1.0, alpha=1 / 20, steps=20, decay=1.0))},
        (32, 16),
        (3, 1),
    ),
    "DeepFool": Row(
        "l2, 50 steps, overshoot 0.02, 10 classes",
        "norm",
        lambda task: DeepFool(steps=50, unlimited=True),
        {
            "torchattacks": Peer(torchattacks("DeepFool", steps=50, overshoot=0.02), 6.0),
            "foolbox": Peer(foolbox("L2DeepFoolAttack", steps=50, overshoot=0.02, epsilons=None), 2.0),
        },
        (24, 12),
        (3, 1),
    ),
    "JSMA": Row(
        "theta 1, gamma 1/7, to the next class, on logits",
        "target",
        lambda task: JSMA(theta=1.0, gamma=GAMMA, target=int(task.target[0]), jacobian="logits"),
        {
            "torchattacks": Peer(torchattacks("JSMA", theta=1.0, gamma=GAMMA), 20.0),
            "ART": Peer(art("SaliencyMapMethod", targeted=True, theta=1.0, gamma=GAMMA)),
        },
        (24, 12),
        (3, 1),
    ),
    "AutoAttack": Row(
        "linf, standard",
        "ball",
        lambda task: AutoAttack(),
        {"pyautoattack": Peer(official_autoattack, 1.5)},
        (16, 6),
        (1, 1),
    ),
}
