"""Adaptors: maps R^d → R^d after which short prefixes keep the neighbours of the whole vector."""

from funnel.adaptors.base import Adaptor, FloatArray, adaptor_class, adaptor_kinds, make_adaptor, register
from funnel.adaptors.identity import Identity
from funnel.adaptors.orthogonal import OrthogonalAdaptor
from funnel.adaptors.pca import PCA, SecondMoment
from funnel.adaptors.widths import checked_widths, default_widths

__all__ = [
    "PCA",
    "Adaptor",
    "FloatArray",
    "Identity",
    "OrthogonalAdaptor",
    "SecondMoment",
    "adaptor_class",
    "adaptor_kinds",
    "checked_widths",
    "default_widths",
    "make_adaptor",
    "register",
]
