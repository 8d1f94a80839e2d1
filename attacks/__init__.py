"""Threat models, attacks and the suite that runs them, on any module that maps images to logits."""

from attacks.base import Attack, Strong
from attacks.crafting import crafting, tempered
from attacks.draws import Draws
from attacks.gradient import FGSM, PGD
from attacks.records import Record, wilson
from attacks.suite import SuiteResult, run_suite
from attacks.threat import Radius, Threat

__all__ = [
    "FGSM",
    "PGD",
    "Attack",
    "Draws",
    "Radius",
    "Record",
    "Strong",
    "SuiteResult",
    "Threat",
    "crafting",
    "run_suite",
    "tempered",
    "wilson",
]
