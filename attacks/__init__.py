"""Threat models, attacks and the suite that runs them, on any module that maps images to logits."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.base import Attack, MinimumNorm
from attacks.carlini import CWL2
from attacks.crafting import RowWise, ascend, crafting, narrow, tempered
from attacks.curves import Curve
from attacks.deepfool import DeepFool
from attacks.diagnostics import Finding, diagnose
from attacks.draws import Draws
from attacks.fab import FAB
from attacks.gradient import FGSM, MIFGSM, PGD, Noise
from attacks.jsma import JSMA
from attacks.records import Record, wilson
from attacks.results import SuiteResult
from attacks.square import Square
from attacks.suite import run_suite
from attacks.threat import Radius, Threat
from attacks.wrappers import EOT, Strong, Transfer

__all__ = [
    "APGD",
    "CWL2",
    "EOT",
    "FAB",
    "FGSM",
    "JSMA",
    "MIFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Curve",
    "DeepFool",
    "Draws",
    "Finding",
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
    "diagnose",
    "narrow",
    "run_suite",
    "tempered",
    "wilson",
]
