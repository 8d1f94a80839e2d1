"""Training regimes: one LightningModule each, on one base."""

from lightning_modules.adversarial_training import TRADES, AdversarialTraining
from lightning_modules.ard import ARD
from lightning_modules.base import Regime
from lightning_modules.distillation import DefensiveDistillation, Distillation, FickleTeacher
from lightning_modules.distiller import Distiller
from lightning_modules.fast_ard import FastARD
from lightning_modules.teacher import Teacher
from lightning_modules.teachers import FrozenTeacher, TeacherSource

__all__ = [
    "ARD",
    "TRADES",
    "AdversarialTraining",
    "DefensiveDistillation",
    "Distillation",
    "Distiller",
    "FastARD",
    "FickleTeacher",
    "FrozenTeacher",
    "Regime",
    "Teacher",
    "TeacherSource",
]
