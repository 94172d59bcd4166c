"""Adaptive funnel retrieval: say what you need of a search, and the engine picks how."""

from funnel.errors import BudgetError, FunnelError
from funnel.hits import Hit
from funnel.index import FunnelIndex
from funnel.plan import FLAT, Plan, Stage
from funnel.planning.budget import Budget

__all__ = ["FLAT", "Budget", "BudgetError", "FunnelError", "FunnelIndex", "Hit", "Plan", "Stage", "__version__"]

__version__ = "0.1.0"
