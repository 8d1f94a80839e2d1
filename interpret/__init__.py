"""Does a student look where its teacher looks? For any modules that map images to logits, without Lightning."""

from interpret.adherence import adherence
from interpret.agreement import Agreement, agreement
from interpret.attributions import (
    Explained,
    GradCAM,
    GuidedGradCAM,
    IntegratedGradients,
    Maps,
    Method,
    Saliency,
    SmoothGrad,
    attribute,
    explain,
)
from interpret.calibration import Answers, answers
from interpret.decision import decision_map, hardness, hardness_table
from interpret.measures import MEASURES, bootstrap
from interpret.scores import Adherence
from interpret.sensitivity import amplitudes, heat_map

__all__ = [
    "MEASURES",
    "Adherence",
    "Agreement",
    "Answers",
    "Explained",
    "GradCAM",
    "GuidedGradCAM",
    "IntegratedGradients",
    "Maps",
    "Method",
    "Saliency",
    "SmoothGrad",
    "adherence",
    "agreement",
    "amplitudes",
    "answers",
    "attribute",
    "bootstrap",
    "decision_map",
    "explain",
    "hardness",
    "hardness_table",
    "heat_map",
]
