"""Threat models, attacks and the suite that runs them, on any module that maps images to logits."""

from attacks.apgd import APGD
from attacks.base import Attack, MinimumNorm
from attacks.crafting import RowWise, ascend, crafting, narrow, tempered
from attacks.draws import Draws
from attacks.gradient import FGSM, MIFGSM, PGD, Noise
from attacks.records import Record, wilson
from attacks.suite import SuiteResult, run_suite
from attacks.threat import Radius, Threat
from attacks.wrappers import EOT, Strong, Transfer

__all__ = [
    "APGD",
    "EOT",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "Draws",
    "MinimumNorm",
    "Noise",
    "Radius",
    "Record",
    "RowWise",
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
