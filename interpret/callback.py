"""Says at the end of ``test`` whether a student looks where its teacher looks, and how sensitive both are."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytorch_lightning as pl
import torch
from pyarrow import parquet
from rich.console import RenderableType
from rich.progress import track
from torch import nn

from attacks.base import Attack
from attacks.callback import AttackSuite
from attacks.evaluator import Batches, Evaluator, Judged
from attacks.gradient import FGSM, PGD
from attacks.records import Record
from attacks.suite import resolve
from attacks.tables import accuracies
from attacks.threat import Threat
from attacks.wrappers import Strong
from interpret import sensitivity
from interpret.adherence import Compat, Target, adherence, published
from interpret.agreement import Agreement, agreement
from interpret.attributions import Method, probe, suited
from interpret.calibration import Answers, answers
from interpret.charts import layer_heat_maps, reliability_diagrams, sensitivity_histogram, violins
from interpret.decision import hardness_table
from interpret.gallery import attack_picture, map_pictures
from interpret.plane import decision_maps
from interpret.scores import PAIR, RESERVED, Adherence
from networks.checkpoint import load_network

PART = 100  # images at a time at most, so that progress shows
DERIVED = 100  # images whose full Jacobian is taken
SHOWN = (FGSM(), PGD(steps=20), Strong(PGD(steps=20)))  # weak and strong; at T = 1 the strong one is the same
COLUMNS = ("metric", "value", "low", "high", "n", "unit", "threat", "seconds")


class Interpretation(Evaluator):
    """Compares where the tested network and its teacher look, what they decide, and how sensitive they are.

    After a fit the best weights alone are looked at. Figures go where those of the attack suite go, with tables and
    pictures of their own; what was found on each image goes to ``outcomes/``. A network without a teacher is told its
    calibration and sensitivity. Of points in the plane the decisions are drawn instead of maps.
    One process does all of it while others wait, since neighbouring images are compared.

    Args:
        methods: attribution methods; by default saliency, Integrated Gradients and, where both networks convolve,
            Grad-CAM.
        attack: whose examples student and teacher are compared on; its threat model is the suite's where it states
            none. By default PGD-20 on the margin, which no temperature saturates.
        images: how many test images, drawn by the seed; None for all, 0 for no interpretation.
        target: explain the class that the teacher predicts, or the true one.
        compat: ``zou2023`` computes adherence as the code published with paper 001 does.
        controls: checkpoints of students that were trained without the teacher, by name: what they score is chance.
        models: checkpoints of further networks, by name, under which one image is shown.
        seed: of the draw of images, the untrained student, the attack and the bootstrap.
    """

    def __init__(
        self,
        methods: list[Method] | None = None,
        attack: Attack | None = None,
        images: int | None = 200,
        target: Target = "teacher",
        compat: Compat | None = None,
        controls: dict[str, str] | None = None,
        models: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(images, seed)
        if methods is not None and not methods:
            raise ValueError("interpret.methods is empty: name at least one method, or set interpret.images to 0.")
        self.methods = methods
        self.attack = attack or PGD(steps=20, loss="margin")
        self.target = target
        self.compat = compat
        self.checkpoints = {"controls": controls or {}, "models": models or {}}
        names = [name for given in self.checkpoints.values() for name in given]
        if taken := sorted({name for name in names if name in RESERVED or names.count(name) > 1}):
            raise ValueError(f"'{taken[0]}' in interpret.controls or .models names another network too: rename it.")
        self.loaded: dict[str, dict[str, nn.Module]] = {}
        self.tables: list[RenderableType] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # What is missing, or cannot be explained, ends the run here: not after a fit, nor after hours of attacks.
        if stage not in ("fit", "test") or self.images == 0 or self.loaded or not trainer.is_global_zero:
            return
        facts = pl_module.facts
        for kind, given in self.checkpoints.items():
            self.loaded[kind] = {}
            for name, path in given.items():
                loaded = load_network(path)
                if loaded.facts is not None:
                    facts.require(loaded.facts, f"interpret.{kind}.{name}")
                self.loaded[kind][name] = loaded.network.requires_grad_(False)
        if facts.size > 1:
            self._threat(trainer)
            if pl_module.has_teacher:
                self._try(pl_module)

    @torch.inference_mode(False)  # what is made under it, such as a teacher that is first asked for, has no gradient
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.images == 0 or self.silent or not trainer.is_global_zero:
            return
        size = min(PART, trainer.datamodule.eval_batch_size)  # type: ignore[attr-defined]
        batches = self.batches(trainer, pl_module, shared=False, size=size)
        tested, teacher = self.network(pl_module), self.teacher_of(pl_module)
        both = {judged.role: judged for judged in (tested, teacher) if judged is not None}
        found: dict[str, list[Record]] = {role: [] for role in both}

        def say(part: Mapping[str, Sequence[Record]]) -> None:
            # At once, so that what fails later takes nothing with it.
            for role, records in part.items():
                found[role] += self.say(trainer, pl_module, both[role], records)

        say(self._answers(trainer, tested, teacher, batches))
        say(self._sensitivity(trainer, both, batches.first(DERIVED)))
        if pl_module.facts.size == 1:
            self._decisions(trainer, pl_module, both, batches)
        else:
            self._attacked(trainer, pl_module, tested, batches)
            if teacher is not None:
                say({"student": self._adherence(trainer, pl_module, tested, teacher, batches)})
        for role, records in found.items():
            self.tabulate(trainer, f"interpretation/{both[role].name}", records, COLUMNS)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.print(*self.tables)
        self.tables = []

    def _try(self, pl_module: Any) -> None:
        """Explains one grey image, which refuses what no image could be explained by."""
        facts, student, teacher = pl_module.facts, pl_module.network, self.teacher_of(pl_module)
        assert teacher is not None
        methods = self._methods(student, teacher.network)
        x = torch.full((1, *facts.shape), sum(facts.box) / 2, device=pl_module.device)
        others = {f"interpret.{kind}.{name}": net for kind, nets in self.loaded.items() for name, net in nets.items()}
        for name, network in {"the student": student, "the teacher": teacher.network, **others}.items():
            try:
                probe(network.to(x.device), x, methods)
            except ValueError as error:
                raise ValueError(
                    f"Of {name}: {error} Change interpret, or leave it out with --interpret.images 0."
                ) from error

    def _methods(self, student: nn.Module, teacher: nn.Module) -> Sequence[Method]:
        """Whose maps are compared and drawn."""
        methods = suited([student, teacher]) if self.methods is None else self.methods
        return methods if self.compat is None else published(methods)

    def _answers(
        self, trainer: pl.Trainer, tested: Judged, teacher: Judged | None, batches: Batches
    ) -> Mapping[str, Sequence[Record]]:
        """Calibration and, where there is a teacher, agreement with it."""
        if teacher is None:
            said = {tested.role: answers(tested.network, self._tracked(trainer, batches, "calibration"))}
            found = {tested.role: said[tested.role].records(tested.role, 0.0)}
        else:
            alike = self._agreement(trainer, tested, teacher, batches)
            said = {"student": alike.student, "teacher": alike.teacher}
            found = {role: [r for r in alike.records() if r.model == role] for role in said}
        shown = {(role, tested.checkpoint if role == tested.role else ""): found[role] for role in found}
        self.tables.append(accuracies(shown, "Agreement and calibration [95 % interval]"))
        self._draw(trainer, reliability_diagrams, said, "reliability.png")
        return found

    def _attacked(self, trainer: pl.Trainer, pl_module: Any, tested: Judged, batches: Batches) -> None:
        """What a weak and a strong attack make of one image."""
        x, y, index = batches[0]
        attacks = resolve(SHOWN, self._threat(trainer), tested.trained_at)
        path = self._figure(trainer, "attacks.png")
        picture = attack_picture(tested.network, x, y, index, attacks, self.seed, pl_module.facts, path)
        self.show(trainer, "attacks", picture)

    def _agreement(self, trainer: pl.Trainer, student: Judged, teacher: Judged, batches: Batches) -> Agreement:
        attack = self.attack.under(self._threat(trainer)).at(student.trained_at)
        tracked = self._tracked(trainer, batches, "agreement")
        found = agreement(student.network, teacher.network, tracked, attack=attack, seed=self.seed)
        images = {"index": found.index, "label": found.label, "KL to teacher": found.kl}
        for role, said in (("student", found.student), ("teacher", found.teacher)):
            images |= {f"{role}/{field.name}": getattr(said, field.name) for field in fields(Answers)}
        if (under := found.attacked) is not None:
            images |= {"student/adversarial": under.student, "teacher/adversarial": under.teacher}
            images |= {"teacher/broken": under.broke, "transferred": under.transferred}
        self._keep(trainer, f"agreement-{student.name}", images)
        return found

    def _adherence(
        self, trainer: pl.Trainer, pl_module: Any, student: Judged, teacher: Judged, batches: Batches
    ) -> list[Record]:
        """Where both look, with the controls; the pictures of it."""
        methods = self._methods(student.network, teacher.network)
        controls, models = (
            {name: network.to(pl_module.device) for name, network in self.loaded[kind].items()}
            for kind in ("controls", "models")
        )
        untrained = pl_module.untrained(self.seed)
        found = adherence(
            student.network,
            teacher.network,
            self._tracked(trainer, batches, "adherence"),
            methods,
            untrained=untrained,
            controls=controls,
            target=self.target,
            compat=self.compat,
            seed=self.seed,
        )
        self.tables.append(found.table())
        values = {"/".join((*key, name)): column for key, each in found.values.items() for name, column in each.items()}
        self._keep(trainer, f"adherence-{student.name}", {"index": found.index, "target": found.target, **values})
        self._violins(trainer, found)
        others = {"untrained": untrained, **controls, **models}
        x = batches[0][0]
        target = torch.from_numpy(found.target[: len(x)]).to(x.device)
        first = (
            {}
            if self.compat
            else {row.method: found.values[row.method, row.measure][PAIR] for row in reversed(found.rows)}
        )
        pictures = map_pictures(
            student.network, teacher.network, others, x, target, methods, first, pl_module.facts, self._figure(trainer)
        )
        for picture in pictures:
            self.show(trainer, picture.stem, picture)
        return list(found.records())

    def _violins(self, trainer: pl.Trainer, found: Adherence) -> None:
        """The paper's measure, method by method, beside its controls."""
        measure = found.rows[0].measure
        rows = [row for row in found.rows if row.measure == measure]
        values = {row.method: found.values[row.method, measure][PAIR] for row in rows}
        floors = {row.method: {name: level.value for name, level in row.controls.items()} for row in rows}
        path = violins(values, floors, self._figure(trainer, "adherence.png"), f"adherence ({measure})")
        self.show(trainer, "adherence", path)

    def _sensitivity(
        self, trainer: pl.Trainer, both: Mapping[str, Judged], batches: Batches
    ) -> Mapping[str, Sequence[Record]]:
        amplitudes, records, heat = {}, {}, {}
        for role, judged in both.items():
            begun = time.perf_counter()
            title = f"{role} (T = {judged.trained_at:g})"
            tracked = self._tracked(trainer, batches, f"{role} sensitivity")
            amplitudes[title] = sensitivity.amplitudes(judged.network, tracked)
            records[role] = sensitivity.records(amplitudes[title], time.perf_counter() - begun)
            heat[title] = sensitivity.heat_map(judged.network, batches)
        self.tables.append(sensitivity.table(amplitudes))
        self._draw(trainer, sensitivity_histogram, amplitudes, "sensitivity.png")
        self._draw(trainer, layer_heat_maps, heat, "layers.png")
        return records

    def _decisions(self, trainer: pl.Trainer, pl_module: Any, both: Mapping[str, Judged], batches: Batches) -> None:
        """What is decided in the plane, and how hard."""
        rows = {role: {f"T = {judged.trained_at:g}": judged.network} for role, judged in both.items()}
        points, labels, _ = zip(*batches, strict=True)
        x, y = torch.cat(points), torch.cat(labels)
        facts = pl_module.facts
        self.tables.append(hardness_table(rows, x))
        path = self._figure(trainer, "decisions.png")
        self.show(
            trainer, "decisions", decision_maps(rows, facts.box, path, points=x, labels=y.cpu(), names=facts.names)
        )

    def _threat(self, trainer: pl.Trainer) -> Threat:
        """The suite's threat model; without a suite that of the attack."""
        suites = (callback for callback in trainer.callbacks if isinstance(callback, AttackSuite))  # type: ignore[attr-defined]
        threat = next((suite.threat for suite in suites), None) or self.attack.threat
        return threat.within(trainer.datamodule.facts.box)  # type: ignore[attr-defined]

    def _tracked(self, trainer: pl.Trainer, batches: Batches, title: str) -> Iterable[Any]:
        console = self.console(trainer)
        return track(batches, title, console=console, disable=console is None)

    def _figure(self, trainer: pl.Trainer, name: str = "") -> Path:
        return self.folder(trainer) / "figures" / "interpretation" / name

    def _draw(self, trainer: pl.Trainer, chart: Any, values: Mapping[str, Any], name: str) -> None:
        path = chart(values, self._figure(trainer, name))
        self.show(trainer, path.stem, path)

    def _keep(self, trainer: pl.Trainer, name: str, columns: Mapping[str, Any]) -> None:
        """What was found on each image."""
        path = self.folder(trainer) / "outcomes" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(dict(columns)), path)
