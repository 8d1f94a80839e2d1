"""Threat models, attacks and the suite that runs them, on any module that maps images to logits."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.base import Attack, MinimumNorm
from attacks.crafting import RowWise, ascend, crafting, narrow, tempered
from attacks.draws import Draws
from attacks.fab import FAB
from attacks.gradient import FGSM, MIFGSM, PGD, Noise
from attacks.records import Record, wilson
from attacks.results import SuiteResult
from attacks.square import Square
from attacks.suite import run_suite
from attacks.threat import Radius, Threat
from attacks.wrappers import EOT, Strong, Transfer

__all__ = [
    "APGD",
    "EOT",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Draws",
    "MinimumNorm",
    "Noise",
    "Radius",
    "Record",
    "RowWise",
    "Square",
    "Strong",
    "SuiteResult",
    "Threat",
    "Transfer",
    "ascend",
    "crafting",
    "narrow",
    "run_suite",
    "tempered",
    "wilson",
]
