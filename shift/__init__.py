"""How networks fare beyond their test set: corrupted images, other datasets; only ``callback`` needs Lightning."""

from shift.corrupted import Corrupted, corruption_accuracy
from shift.elsewhere import class_map, relabelled
from shift.generator import CORRUPTIONS, corrupt
from shift.judgement import Judgement, judgements
from shift.sources import CIFARC, CIFARCLike, Corruptions

__all__ = [
    "CIFARC",
    "CORRUPTIONS",
    "CIFARCLike",
    "Corrupted",
    "Corruptions",
    "Judgement",
    "class_map",
    "corrupt",
    "corruption_accuracy",
    "judgements",
    "relabelled",
]
