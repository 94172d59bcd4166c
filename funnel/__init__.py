"""Adaptive funnel retrieval: say what you need of a search, and the engine picks how."""

from typing import TYPE_CHECKING

from indexes.lazy import loaded_on_first_use

if TYPE_CHECKING:
    from funnel.adaptors import Adaptor
    from funnel.budget import Budget
    from funnel.building.export import Exported
    from funnel.building.info import Info
    from funnel.building.queries import QrelsSource
    from funnel.building.update import Changes
    from funnel.data.corpus import CorpusSource
    from funnel.data.queries import QueriesSource
    from funnel.encoding.encoders import Encoder, EncoderSource
    from funnel.engine.generation import Opened
    from funnel.engine.hybrid import Lexical
    from funnel.engine.searcher import Searcher
    from funnel.engine.segments import Segment
    from funnel.errors import (
        BudgetError,
        DamagedIndexError,
        DriftWarning,
        EncoderError,
        FormatVersionError,
        FunnelError,
        InputError,
        MissingPackageError,
        NoSpaceError,
        NotAnIndexError,
        StorageError,
    )
    from funnel.index import FunnelIndex
    from funnel.monitoring import Health
    from funnel.plan import FLAT, Plan, Stage
    from funnel.planning.planner import Choice
    from funnel.request import Request, SearchOptions
    from funnel.results import Answers, Explanation, Hit, Hits, Ranks, Served
    from funnel.storage import Manifest
    from indexes.errors import CoarseIndexError, MissingBackendError

__all__ = [
    "FLAT",
    "Adaptor",
    "Answers",
    "Budget",
    "BudgetError",
    "Changes",
    "Choice",
    "CoarseIndexError",
    "CorpusSource",
    "DamagedIndexError",
    "DriftWarning",
    "Encoder",
    "EncoderError",
    "EncoderSource",
    "Explanation",
    "Exported",
    "FormatVersionError",
    "FunnelError",
    "FunnelIndex",
    "Health",
    "Hit",
    "Hits",
    "Info",
    "InputError",
    "Lexical",
    "Manifest",
    "MissingBackendError",
    "MissingPackageError",
    "NoSpaceError",
    "NotAnIndexError",
    "Opened",
    "Plan",
    "QrelsSource",
    "QueriesSource",
    "Ranks",
    "Request",
    "SearchOptions",
    "Searcher",
    "Segment",
    "Served",
    "Stage",
    "StorageError",
    "__version__",
]

__version__ = "0.1.0"

# Where each name is, loaded on its first use (PEP 562): torch and FAISS take seconds to import.
_HOMES = {
    "Adaptor": "funnel.adaptors",
    "Answers": "funnel.results",
    "Request": "funnel.request",
    "Budget": "funnel.budget",
    "BudgetError": "funnel.errors",
    "Changes": "funnel.building.update",
    "Choice": "funnel.planning.planner",
    "CoarseIndexError": "indexes.errors",
    "CorpusSource": "funnel.data.corpus",
    "DamagedIndexError": "funnel.errors",
    "DriftWarning": "funnel.errors",
    "Encoder": "funnel.encoding.encoders",
    "EncoderError": "funnel.errors",
    "EncoderSource": "funnel.encoding.encoders",
    "Explanation": "funnel.results",
    "Exported": "funnel.building.export",
    "FLAT": "funnel.plan",
    "FormatVersionError": "funnel.errors",
    "FunnelError": "funnel.errors",
    "FunnelIndex": "funnel.index",
    "Health": "funnel.monitoring",
    "Hit": "funnel.results",
    "Hits": "funnel.results",
    "Info": "funnel.building.info",
    "InputError": "funnel.errors",
    "Lexical": "funnel.engine.hybrid",
    "Manifest": "funnel.storage",
    "MissingBackendError": "indexes.errors",
    "MissingPackageError": "funnel.errors",
    "NoSpaceError": "funnel.errors",
    "NotAnIndexError": "funnel.errors",
    "Opened": "funnel.engine.generation",
    "Plan": "funnel.plan",
    "QrelsSource": "funnel.building.queries",
    "QueriesSource": "funnel.data.queries",
    "Ranks": "funnel.results",
    "SearchOptions": "funnel.request",
    "Searcher": "funnel.engine.searcher",
    "Segment": "funnel.engine.segments",
    "Served": "funnel.results",
    "Stage": "funnel.plan",
    "StorageError": "funnel.errors",
}

__getattr__, __dir__ = loaded_on_first_use(globals(), _HOMES)
