"""How alike student and teacher decide: same answers, same probabilities, same doubts, same weak spots."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.base import Attack
from attacks.crafting import crafting
from attacks.draws import Draws
from attacks.records import Record, mean, share
from interpret.calibration import Answers, checked

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Attacked:
    """What both networks say of examples crafted on one of them.

    Attributes:
        attack: the attack's name.
        threat: its threat model as text; empty where any change of class counts.
        student: classes that the student predicts on the student's examples, (n,).
        teacher: classes that the teacher predicts on them, (n,).
        broke: images that both classify correctly and whose example, crafted on the teacher, breaks the teacher, (n,).
        transferred: those of them whose example breaks the student too, bool (n,).
        seconds: wall-clock time of the student's examples and of the teacher's.
    """

    attack: str
    threat: str
    student: np.ndarray
    teacher: np.ndarray
    broke: np.ndarray
    transferred: np.ndarray
    seconds: tuple[float, float]

    def records(self) -> Iterator[Record]:
        """Agreement on the student's examples, and how many of the teacher's transfer (nothing where it has none)."""
        same = self.student == self.teacher
        yield share(f"agreement under {self.attack}", int(same.sum()), len(same), self.seconds[0], self.threat)
        if n := int(self.broke.sum()):
            name = f"transfer of {self.attack} from the teacher"
            yield share(name, int(self.transferred.sum()), n, self.seconds[1], self.threat)


@dataclass(frozen=True)
class Agreement:
    """How alike student and teacher decide on every image.

    Attributes:
        index: the images' positions in their dataset, (n,).
        label: their labels, (n,).
        student: what the student says.
        teacher: what the teacher says.
        kl: ``KL(teacher ‖ student)`` in nats, float64 (n,).
        temperature: at which the divergence compares them.
        seconds: wall-clock time, without the attack's.
        attacked: what they say of adversarial images; None where no attack was asked for.
    """

    index: np.ndarray
    label: np.ndarray
    student: Answers
    teacher: Answers
    kl: np.ndarray
    temperature: float
    seconds: float
    attacked: Attacked | None = None

    def records(self) -> list[Record]:
        """Every figure with its sample size and its 95 % interval: of Wilson for shares, of Student for means."""
        same = self.student.prediction == self.teacher.prediction
        kl = "KL to teacher" + (f" at T={self.temperature:g}" if self.temperature != 1 else "")
        pair = [share("agreement", int(same.sum()), len(same), self.seconds), mean(kl, self.kl, "nats", self.seconds)]
        if self.attacked is not None:
            pair += self.attacked.records()
        pair = [replace(record, model="student") for record in pair]
        return [*pair, *self.student.records("student", self.seconds), *self.teacher.records("teacher", self.seconds)]


@dataclass
class _Columns:
    """Per-image values, batch by batch."""

    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.cpu())

    def __getitem__(self, name: str) -> np.ndarray:
        return torch.cat(self.parts[name]).numpy()


def agreement(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    *,
    temperature: float = 1.0,
    attack: Attack | None = None,
    seed: int = 0,
) -> Agreement:
    """Compares the decisions of a student and its teacher, image by image; neither is changed.

    Args:
        student: maps images (B, C, H, W) to logits (B, classes).
        teacher: likewise, for the same classes.
        batches: (images in the box, labels (B,), indices (B,)), on the networks' device.
        temperature: divides both networks' logits in ``KL(teacher ‖ student)``; predictions, NLL and calibration are
            those of the networks as used, at T = 1.
        attack: with a threat model, and with a temperature where it is a strong one. Its examples make all their
            steps, since those that stop at the boundary of one network say little of another.
        seed: what its random draws follow from, with an image's index; never from the batch.

    Raises:
        ValueError: for no images, other classes than the teacher's, labels that there is no class for, or logits that
            are not finite.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
    columns = _Columns()
    said: dict[str, list[Answers]] = {"student": [], "teacher": []}
    spent = [0.0, 0.0, 0.0]
    with crafting(student), crafting(teacher), torch.no_grad():
        for x, y, index in batches:
            begun = time.perf_counter()
            logits = {"student": student(x).double(), "teacher": teacher(x).double()}
            _same_classes(logits["student"], logits["teacher"])
            for role, z in logits.items():
                said[role].append(Answers.of(checked(z, y, role), y))
            p_student, p_teacher = (z.div(temperature).log_softmax(1) for z in logits.values())
            kl = F.kl_div(p_student, p_teacher, reduction="none", log_target=True).sum(1)
            # Rounding may leave a divergence of equals below 0.
            columns.add(index=index, label=y, kl=kl.clamp_min(0))
            spent[0] += time.perf_counter() - begun
            if attack is None:
                continue
            begun = time.perf_counter()
            x_adv = attack(student, x, y, Draws(index, seed))
            columns.add(adversarial_student=student(x_adv).argmax(1), adversarial_teacher=teacher(x_adv).argmax(1))
            spent[1] += time.perf_counter() - begun
            begun = time.perf_counter()
            x_adv = attack(teacher, x, y, Draws(index, seed))
            both = (logits["student"].argmax(1) == y) & (logits["teacher"].argmax(1) == y)
            broke = both & (teacher(x_adv).argmax(1) != y) & attack.allows(x_adv, x)
            columns.add(broke=broke, transferred=broke & (student(x_adv).argmax(1) != y))
            spent[2] += time.perf_counter() - begun
    if not columns.parts:
        raise ValueError("Agreement was asked for on no images: give at least one batch.")
    attacked = None
    if attack is not None:
        attacked = Attacked(
            attack.name,
            str(attack.threat) if attack.limited else "",
            columns["adversarial_student"],
            columns["adversarial_teacher"],
            columns["broke"],
            columns["transferred"],
            (spent[1], spent[2]),
        )
    both_said = (Answers.joined(said["student"]), Answers.joined(said["teacher"]))
    return Agreement(columns["index"], columns["label"], *both_said, columns["kl"], temperature, spent[0], attacked)


def _same_classes(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError where two networks' logits (B, classes) are of different classes."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"The student tells {student.shape[1]} classes apart, the teacher {teacher.shape[1]}: "
            "agreement needs two networks of the same classes."
        )
