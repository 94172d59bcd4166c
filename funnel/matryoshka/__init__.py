"""Matryoshka representation learning, for those who train a model.

One loss at every nested width, classification from any of them, and early exit at the narrowest that is sure.

Source: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv 2205.13147.
"""

from funnel.matryoshka.adaptive import AdaptiveClassifier, AdaptivePrediction, AdaptiveReport
from funnel.matryoshka.compare import TruncationComparison, compare_truncations
from funnel.matryoshka.nested import (
    MultiGranularityClassifier,
    MultiGranularityCrossEntropy,
    MultiGranularityLoss,
    prefix,
)

__all__ = [
    "AdaptiveClassifier",
    "AdaptivePrediction",
    "AdaptiveReport",
    "MultiGranularityClassifier",
    "MultiGranularityCrossEntropy",
    "MultiGranularityLoss",
    "TruncationComparison",
    "compare_truncations",
    "prefix",
]
