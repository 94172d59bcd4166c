"""Adaptive funnel retrieval: say what you need of a search, and the engine picks how."""

from typing import TYPE_CHECKING

from indexes.lazy import loaded_on_first_use

if TYPE_CHECKING:
    from funnel.adaptors import Adaptor
    from funnel.asking import Asked, SearchOptions
    from funnel.building.asked import QrelsSource
    from funnel.building.update import Changes
    from funnel.data.corpus import CorpusSource
    from funnel.data.encoding import Encoder, EncoderSource
    from funnel.data.queries import QueriesSource
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
    from funnel.explanation import Explanation
    from funnel.exporting import Exported
    from funnel.hits import Answers, Hit, Hits, Ranks, Served
    from funnel.hybrid import Lexical
    from funnel.index import FunnelIndex
    from funnel.info import Info
    from funnel.monitoring import Health
    from funnel.opening import Opened
    from funnel.plan import FLAT, Plan, Stage
    from funnel.planning.budget import Budget
    from funnel.planning.planner import Choice
    from funnel.searcher import Searcher
    from funnel.segments import Segment
    from funnel.storage import Manifest
    from indexes.errors import CoarseIndexError, MissingBackendError

__all__ = [
    "FLAT",
    "Adaptor",
    "Answers",
    "Asked",
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
    "Answers": "funnel.hits",
    "Asked": "funnel.asking",
    "Budget": "funnel.planning.budget",
    "BudgetError": "funnel.errors",
    "Changes": "funnel.building.update",
    "Choice": "funnel.planning.planner",
    "CoarseIndexError": "indexes.errors",
    "CorpusSource": "funnel.data.corpus",
    "DamagedIndexError": "funnel.errors",
    "DriftWarning": "funnel.errors",
    "Encoder": "funnel.data.encoding",
    "EncoderError": "funnel.errors",
    "EncoderSource": "funnel.data.encoding",
    "Explanation": "funnel.explanation",
    "Exported": "funnel.exporting",
    "FLAT": "funnel.plan",
    "FormatVersionError": "funnel.errors",
    "FunnelError": "funnel.errors",
    "FunnelIndex": "funnel.index",
    "Health": "funnel.monitoring",
    "Hit": "funnel.hits",
    "Hits": "funnel.hits",
    "Info": "funnel.info",
    "InputError": "funnel.errors",
    "Lexical": "funnel.hybrid",
    "Manifest": "funnel.storage",
    "MissingBackendError": "indexes.errors",
    "MissingPackageError": "funnel.errors",
    "NoSpaceError": "funnel.errors",
    "NotAnIndexError": "funnel.errors",
    "Opened": "funnel.opening",
    "Plan": "funnel.plan",
    "QrelsSource": "funnel.building.asked",
    "QueriesSource": "funnel.data.queries",
    "Ranks": "funnel.hits",
    "SearchOptions": "funnel.asking",
    "Searcher": "funnel.searcher",
    "Segment": "funnel.segments",
    "Served": "funnel.hits",
    "Stage": "funnel.plan",
    "StorageError": "funnel.errors",
}

__getattr__, __dir__ = loaded_on_first_use(globals(), _HOMES)
