"""What the papers claim of the regimes, on scikit-learn's digits: ``python -m studies.claims``.

Every arm of a comparison has the same student, optimiser, schedule and number of updates; only what the claim is about
differs. Figures are those of the last weights, so that no choice of a checkpoint favours an arm. With ``--mnist
FOLDER`` (one folder of images per digit) the omitted digit is tried on MNIST too, by the configs of paper 003.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from studies.arms import STEPS, Arm, config, pgd, threat, wrn
from studies.runs import existing, fit, last, parser_of, read, show, side_by_side, spread
from studies.stats import MARGIN, over_seeds, verdict

EPS = 0.1
ATTACK = {"class_path": "attacks.PGD", "init_args": {"steps": 20, "restarts": 5}}
SUITE = {"threat": {"norm": "linf", "eps": EPS}, "attacks": [ATTACK], "teacher": False}
PGD = "PGD"  # as the table calls it
MNIST_KD, MNIST_LABELS = "MNIST: KD without 2", "MNIST: labels without 2"


def noise(kind: str, **options: Any) -> list[dict[str, Any]]:
    return [{"class_path": f"lightning_modules.{kind}", "init_args": options}]


def arms() -> dict[str, Arm]:
    """All arms by name, teachers before their students."""
    free = {"threat": threat(), "replays": 4}
    hinton = {"alpha": 0.9, "temperature": 4.0}
    soft = {"alpha": 1.0, "temperature": 5.0}
    found = {
        "natural teacher": Arm("Teacher", network=wrn(2)),
        "robust teacher": Arm("AdversarialTraining", {"attack": pgd()}, wrn(2)),
        "plain": Arm("Teacher"),
        "KD from the robust teacher": Arm("Distillation", soft, teacher="robust teacher"),
        "KD from the natural teacher": Arm("Distillation", soft, teacher="natural teacher"),
        "free adversarial training": Arm("FreeAdversarialTraining", free),
        "Fast-ARD": Arm("FastARD", {**soft, **free}, teacher="robust teacher"),
        "label smoothing": Arm("Teacher", {"smoothing": 0.1}),
        "Tf-KD reg": Arm("TfKDReg", {"compat": "yuan2020"}),
        "Tf-KD self": Arm("TfKDSelf", teacher="plain"),
        "plain WRN": Arm("Teacher", network=wrn()),
        "self-distillation": Arm("SelfDistillation", network=wrn()),
        "KD": Arm("Distillation", hinton, teacher="natural teacher"),
        "labels without 3": Arm("Teacher", omit=3),
        "KD without 3": Arm("Distillation", {"alpha": 1.0, "temperature": 10.0}, teacher="natural teacher", omit=3),
    }
    for sigma in (0.1, 0.2, 0.4):
        disturbed = {"noise": noise("InputNoise", sigma=sigma)}
        found[f"noise {sigma} alone"] = Arm("Teacher", disturbed)
        found[f"soft randomization {sigma}"] = Arm("Distillation", {**hinton, **disturbed}, teacher="natural teacher")
    for p in (0.05, 0.25):
        corrupted = {"noise": noise("LabelCorruption", p=p)}
        found[f"corrupted teacher {p}"] = Arm("Teacher", corrupted, wrn(2))
        found[f"KD corrupted T {p}"] = Arm("Distillation", hinton, teacher=f"corrupted teacher {p}")
        found[f"KD corrupted TS {p}"] = Arm("Distillation", {**hinton, **corrupted}, teacher=f"corrupted teacher {p}")
        found[f"KD corrupted S {p}"] = Arm("Distillation", {**hinton, **corrupted}, teacher="natural teacher")
    return found


@dataclass(frozen=True)
class Claim:
    """That a figure of one arm is higher than, lower than, or at least about as high as that of another."""

    letter: str
    one: str
    claimed: str
    other: str
    metric: str = PGD

    def verdict(self, differences: Sequence[float]) -> str:
        """Whether the 95 % interval of the mean difference (Student's t over the seeds) lies on the claimed side."""
        return verdict(over_seeds(differences), self.claimed, MARGIN)


def claims(mnist: bool) -> list[Claim]:
    """The claims, in their order."""
    found = [
        Claim("a", "KD from the robust teacher", "higher", "KD from the natural teacher"),
        Claim("b", "free adversarial training", "higher", "plain"),
        Claim("b", "Fast-ARD", "higher", "plain"),
        *(Claim("c", f"soft randomization {s}", "higher", f"noise {s} alone") for s in (0.1, 0.2, 0.4)),
        *(Claim("d", name, "no lower", "plain", "clean") for name in ("label smoothing", "Tf-KD reg", "Tf-KD self")),
        Claim("d", "self-distillation", "no lower", "plain WRN", "clean"),
    ]
    for p in (0.05, 0.25):
        found += [
            Claim("e", f"corrupted teacher {p}", "higher", "natural teacher"),
            Claim("e", f"KD corrupted T {p}", "higher", "KD"),
            Claim("e", f"KD corrupted TS {p}", "higher", "KD"),
            Claim("e", f"KD corrupted S {p}", "no higher", "KD"),
            Claim("e", f"corrupted teacher {p}", "lower", "natural teacher", "confidence"),
        ]
    found.append(Claim("f", "KD without 3", "higher", "labels without 3", "clean only 3"))
    return [*found, Claim("f", MNIST_KD, "higher", MNIST_LABELS, "clean only 2")] if mnist else found


def train(seed: int, runs: Path, mnist: Path | None) -> dict[str, dict[str, float]]:
    """Trains all arms with one seed; their figures in per cent, by arm and metric."""

    def trained(words: Sequence[str], name: str) -> Path:
        return fit(words, f"{name} seed {seed}".replace(":", ""), runs).folder

    figures: dict[str, dict[str, float]] = {}
    weights: dict[str, Path] = {}
    for name, arm in arms().items():
        text = yaml.safe_dump(config(arm, seed, weights.get(arm.teacher or ""), SUITE))
        folder = trained(["--config", text], name)
        weights[name] = last(folder)
        figures[name] = {**per_cent(folder), "confidence": confidence(weights[name])}
    if mnist is not None:
        data = ["--data", "configs/data/mnist_folder.yaml", "--data.root", str(mnist)]
        common = [*data, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        common += ["--seed_everything", str(seed), "--suite.attacks", "[]", "--suite.teacher", "false"]
        config_of = {name: ["--config", f"configs/{name}.yaml"] for name in ("teacher_mnist_mlp", "kd_mnist_omitted")}
        teacher = trained([*config_of["teacher_mnist_mlp"], *common], "MNIST: teacher")
        for name, words in {
            MNIST_KD: [*config_of["kd_mnist_omitted"], *common, "--model.teacher", f"{{checkpoint: {last(teacher)}}}"],
            MNIST_LABELS: [*config_of["teacher_mnist_mlp"], *common, "--model.network.widths", "[400]"],
        }.items():
            figures[name] = per_cent(trained([*words, "--data.omit", "2"], name))
    return figures


def per_cent(folder: Path) -> dict[str, float]:
    """A run's figures in per cent."""
    return {PGD if metric == "PGD-20 x5" else metric: 100 * value for metric, value in read(folder).items()}


def confidence(checkpoint: Path) -> float:
    """Mean largest probability on the test images, in per cent."""
    import torch

    from datamodules import Digits
    from networks.checkpoint import load_network

    with torch.no_grad():
        logits = load_network(checkpoint).network(Digits().batch("test").x)
    return 100 * float(logits.softmax(1).amax(1).mean())


def rows(figures: Sequence[dict[str, dict[str, float]]]) -> list[list[str]]:
    """One row for each claim; differences are taken seed by seed."""
    found = []
    for claim in claims(MNIST_KD in figures[0]):
        one, other = ([run[name][claim.metric] for run in figures] for name in (claim.one, claim.other))
        differences = [a - b for a, b in zip(one, other, strict=True)]
        cells = [claim.letter, f"{claim.one}: {spread(one)}", f"{claim.other}: {spread(other)}", claim.metric]
        found.append([*cells, spread(differences), claim.claimed, claim.verdict(differences)])
    return found


HEAD = ("", "of", "against", "figure, %", "difference", "claimed", "verdict")


def run(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("claims", __doc__, seeds=3)
    parser.add_argument("--mnist", type=existing, help="folder with a folder of MNIST's images for every digit")
    options = parser.parse_args(arguments)
    title = f"Training {len(arms())} networks with each of {options.seeds} seeds"
    tasks = [(seed, options.runs, options.mnist) for seed in range(options.seeds)]
    figures = side_by_side(train, tasks, options.jobs, title)
    title = f"Claims on Digits, {options.seeds} seeds, {STEPS} updates; PGD-20 with 5 starts at linf {EPS}"
    table = Table(*HEAD, title=title)
    for cells in rows(figures):
        table.add_row(*cells)
    show(table, options.runs / "claims.md")


if __name__ == "__main__":
    run()
