"""Training regimes: one LightningModule each, on one base; and the noise that any of them can have."""

from lightning_modules.adaad import AdaAD
from lightning_modules.adversarial_training import TRADES, AdversarialTraining
from lightning_modules.akd import AKD
from lightning_modules.ard import ARD
from lightning_modules.base import Regime
from lightning_modules.distillation import DefensiveDistillation, Distillation, ReversedKD
from lightning_modules.distiller import Distiller
from lightning_modules.fast_ard import FastARD
from lightning_modules.iad import IAD
from lightning_modules.noise import FickleTeacher, InputNoise, LabelCorruption, Noise, SignalDependentNoise, Swap
from lightning_modules.replay import FreeAdversarialTraining
from lightning_modules.rslad import RSLAD
from lightning_modules.self_distillation import SelfDistillation
from lightning_modules.single_step import FGSMRS, NFGSM
from lightning_modules.teacher import Teacher
from lightning_modules.teacher_free import TfKDReg, TfKDSelf
from lightning_modules.teachers import FrozenTeacher, TeacherSource

__all__ = [
    "AKD",
    "ARD",
    "FGSMRS",
    "IAD",
    "NFGSM",
    "RSLAD",
    "TRADES",
    "AdaAD",
    "AdversarialTraining",
    "DefensiveDistillation",
    "Distillation",
    "Distiller",
    "FastARD",
    "FickleTeacher",
    "FreeAdversarialTraining",
    "FrozenTeacher",
    "InputNoise",
    "LabelCorruption",
    "Noise",
    "Regime",
    "ReversedKD",
    "SelfDistillation",
    "SignalDependentNoise",
    "Swap",
    "Teacher",
    "TeacherSource",
    "TfKDReg",
    "TfKDSelf",
]
