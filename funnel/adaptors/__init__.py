"""Adaptors: maps R^d → R^d after which short prefixes keep the neighbours of the whole vector."""

from funnel.adaptors.base import (
    Adaptor,
    FloatArray,
    adaptor_class,
    adaptor_kinds,
    chunks_of,
    default_widths,
    make_adaptor,
    register,
)
from funnel.adaptors.mlp import MLP, Attention, DeepMLP
from funnel.adaptors.recipes import RECIPES, TRAINED_KINDS, Phase, Recipe
from funnel.adaptors.rotation import PCA, Identity, OrthogonalAdaptor, Rotation, SecondMoment
from funnel.adaptors.sampling import Judged, Qrels, TrainingQueries, rows_to_train_on
from funnel.adaptors.selection import AdaptorChoice, choose_adaptor
from funnel.adaptors.training import Trained, TrainingLog, fit_adaptor

__all__ = [
    "MLP",
    "PCA",
    "RECIPES",
    "TRAINED_KINDS",
    "Adaptor",
    "AdaptorChoice",
    "Attention",
    "DeepMLP",
    "FloatArray",
    "Identity",
    "Judged",
    "OrthogonalAdaptor",
    "Phase",
    "Qrels",
    "Recipe",
    "Rotation",
    "SecondMoment",
    "Trained",
    "TrainingLog",
    "TrainingQueries",
    "adaptor_class",
    "adaptor_kinds",
    "choose_adaptor",
    "chunks_of",
    "default_widths",
    "fit_adaptor",
    "make_adaptor",
    "register",
    "rows_to_train_on",
]
