"""Results as a benchmark gives them, with numbers made up."""

from typing import Any

from funnel.reports.tables import FunnelResult, Results


def point(target: float, recall: float, batch: float, single: float, **fields: Any) -> FunnelResult:
    made: Any = {
        "target": target,
        "plan": f"hnsw@128 for {target}",
        "recall": recall,
        "recall_error": 0.002,
        "recall_low": recall - 0.007,
        "predicted_recall": recall - 0.001,
        "certified": True,
        "us_single": 4120 / single,
        "us_batch": 1104 / batch,
        "predicted_us_single": 4000 / single,
        "predicted_us_batch": 1100 / batch,
        "speedup_single": single,
        "speedup_batch": batch,
        "bytes": 34567,
        **fields,
    }
    result: FunnelResult = made
    return result


def sample_results() -> Results:
    return {
        "title": "Funnel against flat search",
        "created": "2026-01-02T03:04:05+00:00",
        "index": {
            "rows": 200_000,
            "dim": 384,
            "coarse": "hnsw",
            "adaptor": "pca",
            "ladder": [64, 128, 384],
            "held_mb": 214.5,
            "touched_mb": 12.5,
            "encoder": "all-MiniLM-L6-v2",
            "certificate": "certified on 3,000 real queries",
        },
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "threads": 2,
            "device": "cpu",
            "torch": "2.13.0",
            "faiss": "1.15.1",
            "numpy": "2.4.6",
            "python": "3.11.7",
        },
        "k": 10,
        "n_queries": 2000,
        "flat": {"us_single": 4120.0, "us_batch": 1104.0, "bytes": 307_200_000},
        "funnel": [
            point(0.80, 0.834, 34.0, 19.0),
            point(0.90, 0.918, 24.6, 14.2),
            point(0.95, 0.9571, 15.3, 9.4),
            point(0.99, 0.9921, 4.9, 3.6),
        ],
    }
