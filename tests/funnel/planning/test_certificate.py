from __future__ import annotations

import json
import math

from funnel.planning.bounds import BETTING
from funnel.planning.certificate import Certificate


def certificate(**changes: object) -> Certificate:
    values: dict[str, object] = {
        "recall": 0.95,
        "k": 10,
        "delta": 0.05,
        "certified": True,
        "estimate": 0.97,
        "lower_bound": 0.96,
        "n_queries": 1000,
        "query_kind": "real queries",
        "date": "2026-01-02",
        "machine": "{}",
        "mean_recall": 0.97,
    }
    return Certificate(**{**values, **changes})  # type: ignore[arg-type]


def test_a_certificate_says_what_it_promises() -> None:
    assert str(certificate()) == "certified on 1,000 real queries: recall@10 ≥ 0.95 with confidence 0.95"
    assert str(certificate(certified=False, note="uncertified: for a reason")) == "uncertified: for a reason"
    assert str(certificate(note="exact: flat search")) == "exact: flat search"


def test_a_certificate_is_plain_values_in_json() -> None:
    record = certificate(queries_needed=3000).to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["queries_needed"] == 3000
    unmeasured = certificate(estimate=math.nan, mean_recall=math.nan).to_json()
    assert json.dumps(unmeasured, allow_nan=False)
    assert unmeasured["estimate"] is None


def test_the_evidence_names_everything_it_rests_on() -> None:
    assert certificate().bound == BETTING
    assert certificate().evidence == (
        "recall@10 0.9700 on 1,000 real queries, at least 0.9600 with confidence 0.95 (betting bound), "
        "measured 2026-01-02"
    )
