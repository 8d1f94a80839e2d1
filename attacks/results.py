"""What became of every image under a suite's attacks."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from attacks.records import Record, mean, share

CLEAN = "clean"
WORST = "worst case"
WITHOUT, ONLY = "without", "only"  # how the figures of a part of the images end: ``clean without 3``, ``clean only 3``
THREATS = b"threats"  # where a file of outcomes says what each attack was allowed
COLUMNS = ("prediction", "rank", "linf", "l2", "forwards", "backwards", "attacked")  # one value per image


@dataclass
class Outcome:
    """What one attack did to every image.

    An image that was not attacked, because it was wrong when clean or broken by an earlier part of the same attack,
    keeps its earlier prediction and costs nothing.

    Attributes:
        prediction: predicted class, (n,).
        rank: how many classes the model prefers to the true one, (n,); 0 where it is right.
        linf: the largest change of any value, (n,).
        l2: the Euclidean length of the change, (n,).
        forwards: forward passes spent on every image, (n,); what judges it is not counted.
        backwards: backward passes spent on every image, (n,).
        attacked: which images were attacked, bool (n,).
        seconds: wall-clock time.
        threat: the threat model as text; empty where any change of class counts.
        notes: what the attack measured by the way, by name: (n,) or (n, k).
        images: the first k images' examples, (k, C, H, W), while the suite runs.
    """

    prediction: np.ndarray
    rank: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    attacked: np.ndarray
    seconds: float = 0.0
    threat: str = ""
    notes: dict[str, np.ndarray] = field(default_factory=dict)
    images: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Outcome":
        """The outcome of some of the images."""
        changed: dict[str, Any] = {name: getattr(self, name)[rows] for name in COLUMNS}
        changed["notes"] = {name: values[rows] for name, values in self.notes.items()}
        return replace(self, **changed)

    def reopened(self, threat: str) -> "Outcome":
        """A copy for another attack to fill: it attacks what stands, and has spent and noted nothing yet."""
        n = len(self.rank)
        return Outcome(
            self.prediction.copy(),
            self.rank.copy(),
            self.linf.copy(),
            self.l2.copy(),
            forwards=np.zeros(n),
            backwards=np.zeros(n),
            attacked=self.rank == 0,
            threat=threat,
            images=None if self.images is None else self.images.copy(),
        )

    def fill(self, where: np.ndarray, done: dict[str, np.ndarray]) -> None:
        """Puts what became of a batch into its place.

        Args:
            where: positions of the batch's images.
            done: the columns' values; ``seconds``; ``note/NAME`` for notes; ``x_adv`` for images that are kept.
        """
        for name in ("prediction", "rank", "linf", "l2", "forwards", "backwards"):
            getattr(self, name)[where] = done[name]
        for name, values in done.items():
            if name.startswith("note/"):
                empty = np.full((len(self.rank), *values.shape[1:]), np.nan)
                self.notes.setdefault(name.removeprefix("note/"), empty)[where] = values
        self.seconds += float(done["seconds"])
        if self.images is not None:
            self.images[where[where < len(self.images)]] = done["x_adv"]

    @classmethod
    def join(cls, parts: Sequence["Outcome"]) -> "Outcome":
        """The outcomes of several processes' images, one after another; time is that of the slowest."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        # A process whose images were all broken before has noted nothing.
        noted = {name: values for part in parts for name, values in part.notes.items()}
        notes = {
            name: np.concatenate(
                [part.notes.get(name, np.full((len(part.rank), *like.shape[1:]), np.nan)) for part in parts]
            )
            for name, like in noted.items()
        }
        return replace(parts[0], **arrays, seconds=max(part.seconds for part in parts), notes=notes)


@dataclass
class SuiteResult:
    """What became of every image.

    Attributes:
        index: index of each image in its test set, (n,).
        label: true classes, (n,).
        outcomes: for ``clean`` and each attack's name, in the order in which they ran.
        radii: for each attack's name, the scale of its changes in figures; None where only the l2 length is limited.
        shown: index of the few images that are kept as examples, (k,).
        examples: those images, for ``clean`` and each attack's name: (k, C, H, W).
        top: with k above 1, top-k accuracies are reported too.
    """

    index: np.ndarray
    label: np.ndarray
    outcomes: dict[str, Outcome]
    radii: dict[str, float | None]
    shown: np.ndarray
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    top: int = 1

    def __getitem__(self, rows: np.ndarray) -> "SuiteResult":
        """The result of some of the images, as if they had been all: what each cost, but the time of all.

        Args:
            rows: their positions, int (k,), or which they are, bool (n,).
        """
        index = self.index[rows]
        kept = np.isin(self.shown, index)
        return replace(
            self,
            index=index,
            label=self.label[rows],
            outcomes={name: outcome[rows] for name, outcome in self.outcomes.items()},
            shown=self.shown[kept],
            examples={name: images[kept] for name, images in self.examples.items()},
        )

    @property
    def attacks(self) -> list[str]:
        """The attacks' names, in their order."""
        return [name for name in self.outcomes if name != CLEAN]

    @property
    def limited(self) -> list[str]:
        """The names of those that were held to a threat model."""
        return [name for name in self.attacks if self.outcomes[name].threat]

    def right(self, name: str, top: int = 1) -> np.ndarray:
        """Which images are classified correctly when clean, under an attack, or under all of them: bool (n,).

        The worst case is over all attacks that a threat model limits; ``top`` k asks for the k likeliest classes.
        """
        if name == WORST:
            return np.logical_and.reduce([self.right(attack, top) for attack in (CLEAN, *self.limited)])
        return self.outcomes[name].rank < top

    def broken_by(self) -> np.ndarray:
        """Which attack broke each image first: names (n,), ``clean`` where it was wrong before, empty where it stands.

        Attacks that no threat model limits come last, so that they do not take the place of one that does.
        """
        found = np.full(len(self.index), "", dtype=object)
        unlimited = [name for name in self.attacks if name not in self.limited]
        for name in (CLEAN, *self.limited, *unlimited):
            found[(found == "") & ~self.right(name)] = name
        return found

    def records(self) -> Iterator[Record]:
        """Clean accuracy, robust accuracy under each attack, and the worst case: robust against every one of them.

        For an attack without limit, the mean length of the changes that it found, too.
        """
        n = len(self.index)
        for name, outcome in self.outcomes.items():
            attacked = max(int(outcome.attacked.sum()), 1)
            record = share(name, int(self.right(name).sum()), n, outcome.seconds, outcome.threat)
            yield replace(
                record,
                forwards=round(float(outcome.forwards.sum()) / attacked, 3),
                backwards=round(float(outcome.backwards.sum()) / attacked, 3),
            )
            if self.top > 1:
                right = int(self.right(name, self.top).sum())
                yield share(f"{name} top-{self.top}", right, n, outcome.seconds, outcome.threat)
            if name != CLEAN and not outcome.threat:
                found = outcome.attacked & ~self.right(name)
                if found.any():
                    yield mean(f"{name} mean l2", outcome.l2[found], "l2", outcome.seconds)
                    yield mean(f"{name} mean linf", outcome.linf[found], "linf", outcome.seconds)
        if self.limited:
            threats = ", ".join(dict.fromkeys(self.outcomes[name].threat for name in self.limited))
            # The parts of an attack are rows of their own; the attack's has their time.
            seconds = sum(self.outcomes[name].seconds for name in (CLEAN, *self.radii))
            yield share(WORST, int(self.right(WORST).sum()), n, seconds, threats)

    def left_out(self, label: int, name: str) -> Iterator[Record]:
        """Accuracy, clean, under each attack and under all, on the images without a class and on those of it alone.

        They took no time beyond that of the whole, and a part without images has no figures.

        Args:
            label: the class.
            name: what it is called.
        """
        wanted = {CLEAN, *self.radii, WORST}  # an attack as a whole
        for which, rows in ((WITHOUT, self.label != label), (ONLY, self.label == label)):
            for record in self[rows].records() if rows.any() else ():
                if record.metric in wanted:
                    metric = f"{record.metric} {which} {name}"
                    yield replace(record, metric=metric, seconds=0.0, forwards=0.0, backwards=0.0)

    def write(self, path: Path) -> None:
        """Writes one row per image to a Parquet file, so that any two runs can be compared image by image."""
        columns: dict[str, object] = {"index": self.index, "label": self.label}
        columns["broken_by"] = self.broken_by().astype(str)
        for name, outcome in self.outcomes.items():
            shown = ("prediction", "rank") if name == CLEAN else COLUMNS
            columns |= {f"{column}/{name}": getattr(outcome, column) for column in shown}
            for note, values in outcome.notes.items():
                columns[f"{note}/{name}"] = values if values.ndim == 1 else pa.array(list(values))
        path.parent.mkdir(parents=True, exist_ok=True)
        threats = json.dumps({name: outcome.threat for name, outcome in self.outcomes.items()})
        parquet.write_table(pa.table(columns, metadata={THREATS: threats.encode()}), path)

    def write_images(self, path: Path) -> None:
        """Writes the images that were kept: their ``index``, ``clean`` and an array (k, C, H, W) for each attack."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, index=self.shown, **self.examples)  # type: ignore[arg-type]

    @classmethod
    def merge(cls, parts: Sequence["SuiteResult"]) -> "SuiteResult":
        """The result over shards of one test set, in the order of the index, each image once."""
        joined = replace(
            parts[0],
            index=np.concatenate([part.index for part in parts]),
            label=np.concatenate([part.label for part in parts]),
            outcomes={name: Outcome.join([part.outcomes[name] for part in parts]) for name in parts[0].outcomes},
            shown=np.concatenate([part.shown for part in parts]),
            examples={name: np.concatenate([part.examples[name] for part in parts]) for name in parts[0].examples},
        )
        return joined[np.unique(joined.index, return_index=True)[1]]
