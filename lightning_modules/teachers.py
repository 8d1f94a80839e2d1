"""Where a teacher comes from, and what keeps it from changing."""

import copy
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.prepare import prepared
from networks import Facts
from networks.checkpoint import load_network, weights_hash


@dataclass
class TeacherSource:
    """Names a teacher, in one of three ways. A checkpoint wins over the config that would train it.

    Attributes:
        checkpoint: a checkpoint of a run, which says all of itself, or a plain state dict, which needs ``network``.
        config: the config that trains it, a path from the working directory. It is trained on the student's data, and
            only where ``train_teacher: true`` allows it.
        override: what that config says otherwise for this student, as a config of its own behind it and behind what
            the teacher has from its student, e.g. ``{data: {init_args: {omit: null}}}``. A later one replaces it whole.
        module: any module that maps images to logits, e.g. ``{class_path: robustbench.utils.load_model, init_args:
            {…}}``.
        network: the architecture of a plain state dict, e.g. ``{class_path: networks.WideResNet, init_args: {…}}``.
    """

    checkpoint: str | None = None
    config: str | None = None
    override: dict | None = None  # of Any, the command line would build the classes that it names
    module: nn.Module | None = None
    network: Callable[[Facts], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.override and self.config is None:
            raise ValueError(
                f"teacher.override says what teacher.config does otherwise, got {json.dumps(self.override)} and no "
                "config: name the config that trains the teacher, or leave the override out."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherSource":
        return self  # Lightning copies what a module was given; a teacher may be large

    def load(self, facts: Facts, folding: bool = False) -> "FrozenTeacher":
        """The teacher, checked against the student's data.

        Args:
            facts: the facts of that data.
            folding: see :class:`FrozenTeacher`.

        Raises:
            FileNotFoundError: for a missing checkpoint.
            ValueError: where no teacher is named, or its classes or image shape do not fit.
        """
        if self.checkpoint is not None:
            loaded = load_network(self.checkpoint, self.network, facts)
            if loaded.facts is not None:
                facts.require(loaded.facts, "The teacher")
            teacher = FrozenTeacher(loaded.network, loaded.sha256, self.checkpoint, loaded.trained_at, folding)
        elif self.module is not None:
            name = type(self.module).__name__
            teacher = FrozenTeacher(self.module, weights_hash(self.module), name, 1.0, folding)
        elif self.config is not None:
            words = ["python", "main.py", "fit", "--config", self.config, *as_words(self.override)]
            raise FileNotFoundError(
                f"The teacher that {self.config} trains does not exist yet. Train it with: {shlex.join(words)}, "
                "then name its checkpoint with --model.teacher.checkpoint, or set --train_teacher true."
            )
        else:
            raise ValueError("No teacher: give the model teacher.checkpoint, teacher.config or teacher.module.")
        teacher.probe(facts)
        return teacher


def as_words(config: dict[str, Any] | None) -> list[str]:
    """A config as the command line takes it in place of a file; nothing where there is none."""
    return ["--config", json.dumps(config)] if config else []


class FrozenTeacher:
    """A network that answers and never changes: eval mode, no gradients to its weights, no moving averages.

    It is not a module, so that a student that holds one does not save it, train it, move its modes, or hand it to DDP.

    Args:
        module: the network.
        sha256: the hash of its file, or of its weights where it was given as a module.
        origin: where it came from, for messages.
        trained_at: temperature of its training.
        folding: answer by a copy whose batch-norms are folded into its convolutions (:mod:`attacks.prepare`), where it
            can be made: the same function but for rounding, faster.
    """

    def __init__(self, module: nn.Module, sha256: str, origin: str, trained_at: float, folding: bool = False) -> None:
        self.module = module.eval().requires_grad_(False)
        self.folding = folding
        self.compiled = False
        self._answering: nn.Module | None = None
        self._device: torch.device | None = None
        self.sha256 = sha256
        self.origin = origin
        self.trained_at = trained_at

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self  # weight averaging copies the student and all that it holds

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B, C, H, W), on the images' device, without a graph."""
        return self.answering(x)(x)

    def answering(self, x: Tensor) -> nn.Module:
        """What answers in training: the folded copy, compiled where that was asked for, or the network itself.

        Args:
            x: images to compare the copy on when it is made; it is on their device.
        """
        network = self.on(x.device)
        if self._answering is None:
            self._answering = prepared(network, x[:2]) if self.folding else network
            if self.compiled:
                # One that shares all its parts: the network itself is judged by those who compile nothing.
                self._answering = copy.copy(self._answering)
                self._answering.compile(dynamic=False)
        return self._answering

    def compile(self) -> None:
        """Lets torch compile what answers."""
        self.compiled, self._answering = True, None

    def on(self, device: torch.device) -> nn.Module:
        """The network itself, moved to a device."""
        if self._device != device:
            self.module.to(device)
            if self._answering is not None:
                self._answering.to(device)
            self._device = device
        return self.module

    def keep_dropout_active(self) -> None:
        """Lets dropout draw at every forward (Fickle Teacher); everything else stays in eval mode.

        Raises:
            ValueError: where the network has no dropout to keep active.
        """
        active = [m for m in self.module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        if not active:
            raise ValueError(
                f"The teacher from {self.origin} has no dropout, so it cannot be fickle: "
                "train it with a network whose dropout is above 0."
            )
        for module in active:
            module.train()
        self.folding, self._answering = False, None  # a copy would answer without dropout

    @torch.no_grad()
    def probe(self, facts: Facts) -> None:
        """One forward of two grey images, to refuse a teacher that does not fit before training starts."""
        try:
            grey = torch.full((2, *facts.shape), sum(facts.box) / 2)
            logits = self.on(grey.device)(grey)
        except RuntimeError as error:
            raise ValueError(
                f"The teacher from {self.origin} does not accept images of shape {facts.shape}: {error}"
            ) from error
        if logits.shape != (2, facts.classes):
            raise ValueError(
                f"The teacher from {self.origin} returns {tuple(logits.shape[1:])} values per image, "
                f"the student's data has {facts.classes} classes."
            )
