"""Runs the attack suite at the end of ``test``, on the tested network and on its teacher."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
import torch
from rich import get_console

from attacks.base import Attack
from attacks.curves import Curve, draw
from attacks.diagnostics import Finding, diagnose, report
from attacks.evaluator import Evaluator, Judged, gather
from attacks.features import matrices, reached
from attacks.figures import COUNT, example_grid, success_matrix
from attacks.jsma import JSMA
from attacks.records import Record, write_records
from attacks.results import SuiteResult
from attacks.state import State
from attacks.suite import Precision, Rng, resolve, run_suite
from attacks.tables import accuracies, costs
from attacks.threat import Threat

UNFINISHED = ".unfinished"  # beside the runs of one name, so that the same command finds what it was stopped at
COLUMNS = ("metric", "threat", "value", "low", "high", "n", "seconds", "forwards", "backwards")


class AttackSuite(Evaluator):
    """Attacks the network after ``test``, and its teacher beside it.

    Figures go to the logger, to ``results.jsonl`` and ``results.csv`` in the run's folder and to a table; what became
    of each image goes to ``outcomes/*.parquet``, a few pictures to ``figures/``. Under DDP every process attacks its
    own share of the images, each image once. The evaluation is in float32, whatever the training's precision. Where
    training left out a class, every accuracy is told without that class and on it alone, too.

    Args:
        attacks: the attacks, each alone against the network; those that state no threat model get this one.
        threat: norm and radius.
        images: how many test images, drawn by the seed; None for all.
        teacher: attack the student's teacher too.
        seed: what the choice of images and, with an image's index, its random draws follow from.
        rng: ``official`` draws as the authors' AutoAttack does, to compare with published figures image by image.
        precision: ``bf16`` searches in bfloat16; successes are confirmed in float32 all the same.
        votes: passes that judge an image; more than 1 for models that draw at random.
        top: with k above 1, top-k accuracies too; attacks then make all their steps on every image.
        keep_images: write every adversarial image to ``outcomes/*.npz``.
        curves: attacks to repeat at several radii or numbers of steps, drawn to ``figures/``.
        diagnose: ask after the suite whether the model is really robust, and say why or why not.
    """

    def __init__(
        self,
        attacks: list[Attack],
        threat: Threat,
        images: int | None = None,
        teacher: bool = True,
        seed: int = 0,
        rng: Rng = "image",
        precision: Precision = "32",
        votes: int = 1,
        top: int = 1,
        keep_images: bool = False,
        curves: list[Curve] | None = None,
        diagnose: bool = False,
    ) -> None:
        if images is not None and images < 1:
            raise ValueError(f"images must be at least 1, got {images}.")
        super().__init__(images, seed)
        self.attacks = attacks
        self.threat = threat
        self.teacher = teacher
        self.settings: dict[str, Any] = {"seed": seed, "rng": rng, "precision": precision, "votes": votes}
        self.top = top
        self.keep_images = keep_images
        self.curves = curves or []
        names = [curve.name for curve in self.curves]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"There are two curves of {', '.join(twice)}; each needs a name, and a figure, of its own."
            )
        self.diagnose = diagnose
        self.states: list[State] = []
        self.findings: dict[str, list[Finding]] = {}

    @torch.inference_mode(False)  # what is made under it, such as a teacher first asked for, has no gradient
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._evaluate(trainer, pl_module, self.network(pl_module))
        teacher = self.teacher_of(pl_module) if self.teacher else None
        # The teacher is the same for every checkpoint of the student, so it is attacked once.
        if teacher is not None and (teacher.role, teacher.checkpoint) not in self.results:
            self._evaluate(trainer, pl_module, teacher)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.silent:
            get_console().print(accuracies(self.results, f"Accuracy, % [95 % interval] at {self.threat}"))
            get_console().print(costs(self.results))
            for name, findings in self.findings.items():
                get_console().print(report(findings, f"Is the robustness of {name} real?"))
        for state in self.states:
            state.finish()

    def _evaluate(self, trainer: pl.Trainer, pl_module: Any, judged: Judged) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        batches = self.batches(trainer, pl_module)
        threat = self.threat.within(data.facts.box)
        network, temperature = judged.network, judged.trained_at
        console = self.console(trainer)

        def run(attacks: list[Attack], title: str, top: int = 1, examples: int = 0) -> SuiteResult:
            self.states.append(State(self.folder(trainer).parent / UNFINISHED))
            result = run_suite(
                network,
                batches,
                attacks,
                threat,
                temperature,
                top=top,
                examples=examples,
                state=self.states[-1],
                title=title,
                console=console,
                **self.settings,
            )
            return SuiteResult.merge(gather(result, trainer.world_size))

        result = run(self.attacks, judged.role, self.top, len(batches.chosen) if self.keep_images else COUNT)
        named = resolve(self.attacks, threat, temperature)
        gammas = {name: jsma.gamma for name, jsma in named.items() if isinstance(jsma, JSMA) and jsma.target is None}
        own = pl_module.records() if judged.role != "teacher" else []
        parts = result.left_out(*data.omitted) if data.omitted else []
        records = self.say(trainer, pl_module, judged, [*result.records(), *reached(result, gammas), *own, *parts])
        if trainer.is_global_zero:
            self._keep(trainer, result, records, judged.name)
        for curve in self.curves:
            points = [run([attack], f"{judged.role} {curve.name}") for attack in curve.attacks(threat)]
            # Of an attack in parts the whole; a strong attack on a network trained at T = 1 is none.
            found = [record for point in points for record in point.records() if record.metric in point.radii]
            if trainer.is_global_zero and found:
                self._draw(trainer, curve, found, records[0], judged.name)
        if self.diagnose and not self.silent and trainer.is_global_zero:
            findings = diagnose(network, batches, threat, temperature, self.settings["seed"], result, console=console)
            self.findings[judged.name] = findings
            path = self.folder(trainer) / f"diagnostics-{judged.name}.json"
            path.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")

    def _draw(self, trainer: pl.Trainer, curve: Curve, found: Iterable[Record], clean: Record, name: str) -> None:
        """Writes and draws a curve's points."""
        points = [replace(record, model=clean.model, checkpoint=clean.checkpoint) for record in found]
        named = zip(points, curve.values, strict=True)
        write_records(self.folder(trainer), [replace(r, metric=f"{curve.name}: {value}") for r, value in named])
        path = self.folder(trainer) / "figures" / f"{curve.name} {name}.png".replace(" ", "-")
        self.show(trainer, path.stem, draw(curve, clean, points, path))

    def _keep(self, trainer: pl.Trainer, result: SuiteResult, records: list[Record], name: str) -> None:
        """Writes what became of the images into the run's folder and sends table and pictures to W&B."""
        folder, facts = self.folder(trainer), trainer.datamodule.facts  # type: ignore[attr-defined]
        result.write(folder / "outcomes" / f"{name}.parquet")
        if self.keep_images:
            result.write_images(folder / "outcomes" / f"{name}.npz")
        picture = example_grid(result, facts, folder / "figures" / f"examples-{name}.png")
        self.show(trainer, f"examples/{name}", picture)
        for attack, success in matrices(result).items():
            path = folder / "figures" / f"{attack} {name}.png".replace(" ", "-")
            self.show(trainer, path.stem, success_matrix(success, facts, attack, path))
        self.tabulate(trainer, f"robustness/{name}", records, COLUMNS)
