"""What every regime with a teacher shares."""

from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules import Batch
from lightning_modules.answers_cache import AnswersCache, obstacle, open_cache
from lightning_modules.base import Regime
from lightning_modules.losses import KLReduction, check_temperature, check_weight, distillation
from lightning_modules.teachers import FrozenTeacher, TeacherSource

Tempering = Literal[1, "t"]


class Distiller(Regime):
    """A regime that owns a frozen teacher, outside its own state.

    The student's checkpoint holds the teacher's hash, not the teacher; a fit that resumes with another one is refused.

    Args:
        teacher: where the teacher comes from.
        alpha: a in [0, 1], the weight of the teacher's word against the label's.
        temperature: t, of teacher and student in the KL term.
        ce_temperature: 1, or t as the papers' equations print it: the student's temperature in the cross-entropy.
        kl_reduction: ``batchmean`` as in the equations, or ``mean`` as in the code released with ARD, which also
            divides by the number of classes.
        cache: keep on disk, for this student and all others, what the teacher says of clean images: what is asked for
            (True), or before training everything that may be (``ahead``). Answers are rounded to fp16, which changes
            results a little. See :mod:`lightning_modules.answers_cache`.
    """

    has_teacher = True

    def __init__(
        self,
        teacher: TeacherSource,
        alpha: float = 1.0,
        temperature: float = 4.0,
        ce_temperature: Tempering = 1,
        kl_reduction: KLReduction = "batchmean",
        cache: bool | Literal["ahead"] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_weight("alpha", alpha)
        check_temperature("temperature", temperature)
        self.source = teacher
        self.alpha = alpha
        self.temperature = self.trained_at = temperature
        self.ce_temperature = self.tempering(ce_temperature)
        if kl_reduction not in ("batchmean", "mean"):
            raise ValueError(f"kl_reduction must be batchmean or mean, got {kl_reduction!r}.")
        self.kl_reduction: KLReduction = kl_reduction
        if cache not in (False, True, "ahead"):
            raise ValueError(f"cache must be true, false or ahead, got {cache!r}.")
        self.cache = cache
        self.answers: AnswersCache | None = None
        self._teacher: FrozenTeacher | None = None
        self._taught_by: str | None = None  # the hash of the teacher that a loaded checkpoint was trained with

    def tempering(self, choice: Tempering) -> float:
        """The number that the choice between 1 and t stands for; ValueError for any other."""
        if choice not in (1, "t"):
            raise ValueError(f"The student's temperature in a term is 1 or t, got {choice!r}.")
        return self.temperature if choice == "t" else 1.0

    @property
    def teacher(self) -> FrozenTeacher:
        """The frozen teacher, loaded when first asked for."""
        if self._teacher is None:
            self._teacher = self.source.load(self.facts, self.folding)
            if self._taught_by not in (None, self._teacher.sha256):
                rank_zero_warn(
                    f"The student was taught by another teacher (SHA-256 {self._taught_by:.12}) than the one from "
                    f"{self._teacher.origin} ({self._teacher.sha256:.12})."
                )
        return self._teacher

    @property
    def hears_labels(self) -> bool:
        # By the cross-entropy, or because an attack moves away from them.
        return self.alpha < 1 or self.threat is not None

    @property
    def hears_of_clean_images(self) -> bool:
        """Whether the teacher is ever asked about clean images."""
        return self.alpha > 0

    def taught(self, batch: Batch, x: Tensor | None = None) -> Tensor:
        """What the student hears of its teacher: z_T, (B, classes), without a graph, with the noise on it.

        Args:
            batch: the batch.
            x: what the teacher is shown; by default the batch's images without noise.
        """
        if x is None and self.answers is not None:
            logits = self.answers(batch)
        else:
            logits = self.teacher(batch.clean if x is None else x)
        for noise, moment in self.moments(batch):
            logits = noise.on_answer(logits, self.temperature, moment)
        return logits

    def mixed(
        self,
        teacher: Tensor | None,
        student: Tensor | None,
        clean: Tensor | None,
        y: Tensor,
        scale: float | None = None,
    ) -> Tensor:
        """:func:`~lightning_modules.losses.distillation` with the regime's weights and temperatures."""
        ce_t, reduction = self.ce_temperature, self.kl_reduction
        return distillation(teacher, student, clean, y, self.alpha, self.temperature, ce_t, reduction, scale)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A teacher that is missing or does not fit ends the run here, not after an epoch.
        if stage == "fit":
            for noise in self.noise:
                noise.on_teacher(self.teacher)
            _ = self.teacher

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.cache is not False:
            self._open_cache()
        if self.compiled and self.answers is None:  # a cache asks in numbers of all sizes
            self.teacher.compile()

    def _open_cache(self) -> None:
        """Opens the cache and, where that was asked for, fills it; a warning where there can be none."""
        self.answers = None
        trainer: Any = self.trainer
        data: Any = getattr(trainer, "datamodule", None)
        reason = obstacle(data, self.noise)
        if not self.hears_of_clean_images:
            reason = f"{type(self).__name__} asks it about no clean images"
        if reason is not None:
            rank_zero_warn(f"The teacher's answers are not cached: {reason}.")
            return
        with trainer.precision_plugin.train_step_context():  # as in a step
            self.answers = open_cache(self.teacher, data, trainer.precision, self.device)
            if self.cache == "ahead" and not trainer.fast_dev_run:
                self.answers.fill(self.device, trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.answers is not None:
            self.answers.refresh(self.device)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self.answers = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher"] = {"sha256": self.teacher.sha256, "origin": self.teacher.origin}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._taught_by = checkpoint.get("teacher", {}).get("sha256", "none")
        if self._trainer is not None and self.trainer.state.fn == "fit" and self._taught_by != self.teacher.sha256:
            raise ValueError(
                f"This fit began with another teacher (SHA-256 {self._taught_by:.12}, now {self.teacher.sha256:.12} "
                f"from {self.teacher.origin}): resume with the teacher that it began with, or start a new fit."
            )
