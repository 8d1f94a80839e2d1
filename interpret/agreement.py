"""How alike student and teacher decide: same answers, same probabilities, same doubts, same weak spots."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from attacks.base import Attack
from attacks.crafting import crafting
from attacks.draws import Draws
from attacks.records import Record, mean, share, wilson

BINS = 15  # of the calibration error and of its diagram
EDGES = np.linspace(0, 1, BINS + 1)

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence in bins of equal width; a bin holds its lower edge, the last one 1 too.

    Attributes:
        edges: of the bins, (BINS + 1,).
        count: images in each bin, (BINS,).
        confidence: their mean confidence; NaN in an empty bin.
        accuracy: the share of them that is classified correctly; NaN in an empty bin.
        low: lower ends of the accuracies' 95 % intervals (Wilson); NaN in an empty bin.
        high: upper ends.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What one network says of every image, at T = 1.

    Attributes:
        prediction: the class of the highest probability, (n,).
        correct: whether it is the label, bool (n,).
        confidence: its probability, float64 (n,).
        nll: negative log-likelihood of the label, in nats, float64 (n,).
    """

    prediction: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean distance of accuracy from confidence over the bins."""
        confidence, correct = torch.from_numpy(_inside(self.confidence)), torch.from_numpy(self.correct)
        return float(binary_calibration_error(confidence, correct.long(), n_bins=BINS))

    def reliability(self) -> Reliability:
        """The bins of the calibration error, for a diagram."""
        place = _place(self.confidence)
        count = np.bincount(place, minlength=BINS)
        right = np.bincount(place, self.correct, BINS)
        filled = np.where(count > 0, count, np.nan)
        ends = [wilson(int(k), int(n)) if n else (np.nan, np.nan) for k, n in zip(right, count, strict=True)]
        confidence = np.bincount(place, self.confidence, BINS) / filled
        return Reliability(EDGES, count, confidence, right / filled, *np.array(ends).T)

    def records(self, model: str, seconds: float) -> list[Record]:
        """ECE and NLL with 95 % intervals.

        The calibration error is the mean over images of ``±(confidence - correct)``, with the sign of the image's
        bin; the interval is Student's of that mean, which leaves out the error's upward bias in small samples.
        """
        bins = self.reliability()
        gaps = np.sign(bins.confidence - bins.accuracy)[_place(self.confidence)] * (self.confidence - self.correct)
        ece = mean("ECE", gaps, "probability", seconds)
        ece = replace(ece, value=self.ece, low=min(ece.low, self.ece), high=max(ece.high, self.ece))  # but for rounding
        return [replace(record, model=model) for record in (ece, mean("NLL", self.nll, "nats", seconds))]


def _inside(confidence: np.ndarray) -> np.ndarray:
    """Confidences below 1: torchmetrics has a bin of its own for exactly 1, where hardened networks have most."""
    return np.minimum(confidence, np.nextafter(1.0, 0.0))


def _place(confidence: np.ndarray) -> np.ndarray:
    """The bin of every confidence."""
    return np.searchsorted(EDGES, _inside(confidence), side="right") - 1


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

    def answers(self, role: str) -> Answers:
        prediction = self[f"{role} prediction"]
        return Answers(prediction, prediction == self["label"], self[f"{role} confidence"], self[f"{role} nll"])


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
    spent = [0.0, 0.0, 0.0]
    with crafting(student), crafting(teacher), torch.no_grad():
        for x, y, index in batches:
            begun = time.perf_counter()
            logits = {"student": student(x).double(), "teacher": teacher(x).double()}
            _require(logits["student"], logits["teacher"], y)
            for role, z in logits.items():
                confidence, prediction = z.softmax(1).max(1)
                columns.add(**{f"{role} prediction": prediction, f"{role} confidence": confidence})
                columns.add(**{f"{role} nll": F.cross_entropy(z, y, reduction="none")})
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
    answers = (columns.answers("student"), columns.answers("teacher"))
    return Agreement(columns["index"], columns["label"], *answers, columns["kl"], temperature, spent[0], attacked)


def _require(student: Tensor, teacher: Tensor, y: Tensor) -> None:
    """Raises ValueError where two networks' logits (B, classes) and labels (B,) cannot be compared."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"The student tells {student.shape[1]} classes apart, the teacher {teacher.shape[1]}: "
            "agreement needs two networks of the same classes."
        )
    for role, z in (("student", student), ("teacher", teacher)):
        if not bool(z.isfinite().all()):
            raise ValueError(f"The {role}'s logits are not finite: no probability can be told from them.")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < student.shape[1]:
        raise ValueError(
            f"Labels go from {int(y.min())} to {int(y.max())}, the networks have {student.shape[1]} classes."
        )
