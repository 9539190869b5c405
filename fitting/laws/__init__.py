"""Scaling laws: those of the field, with their published constants, and the user's own."""

from fitting.law.curves import Array
from fitting.law.terms import (
    COEFFICIENT,
    EXPONENT,
    FORMAT_EXPONENT,
    LOSSLESS,
    PENALTY_COEFFICIENT,
    POSITIVE,
    Bent,
    Columns,
    FitError,
    Law,
    Parameter,
    Term,
)
from fitting.laws.catalogue import LAWS, get
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    OPTIMIZERS_2025,
    QAT_2025,
    QAT_SWITCH_2025,
    QUARTET_2025,
    SUN_2025,
)
from fitting.laws.synthetic import make_table

__all__ = [
    "BESIROGLU_2024",
    "COEFFICIENT",
    "EXPONENT",
    "FORMAT_EXPONENT",
    "KUMAR_2024",
    "KUMAR_2024_PTQ",
    "LAWS",
    "LOSSLESS",
    "OPTIMIZERS_2025",
    "PENALTY_COEFFICIENT",
    "POSITIVE",
    "QAT_2025",
    "QAT_SWITCH_2025",
    "QUARTET_2025",
    "SUN_2025",
    "Array",
    "Bent",
    "Columns",
    "FitError",
    "Law",
    "Parameter",
    "Term",
    "get",
    "make_table",
]
