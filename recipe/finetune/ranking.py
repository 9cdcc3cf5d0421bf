"""How good a ranking is: nDCG, recall and reciprocal rank, as trec_eval defines them (github.com/usnistgov/trec_eval).

Grades of what was not judged are 0; a document is relevant from a grade above 0 on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

GAIN_AT, RECALL_AT = 10, 100
Grades = Mapping[str, float]  # of the documents that were judged for a query


def ndcg(ranked: Sequence[str], grades: Grades, at: int = GAIN_AT) -> float:
    """Gains are the grades themselves, discounted by log2(rank + 1), over those of the best ranking there could be."""
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    return _discounted([max(grades.get(name, 0), 0) for name in ranked[:at]]) / _discounted(best[:at])


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def recall(ranked: Sequence[str], grades: Grades, at: int = RECALL_AT) -> float:
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:at])) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], grades: Grades) -> float:
    """Of the first relevant document; 0 where none is ranked."""
    return next((1 / rank for rank, name in enumerate(ranked, 1) if grades.get(name, 0) > 0), 0.0)


METRICS = {f"ndcg@{GAIN_AT}": ndcg, f"recall@{RECALL_AT}": recall, "mrr": reciprocal_rank}


def measure(rankings: Mapping[str, Sequence[str]], judged: Mapping[str, Grades]) -> dict[str, float]:
    """The means over the queries that have a relevant document, times 100."""
    asked = [query for query, grades in judged.items() if any(grade > 0 for grade in grades.values())]
    return {
        name: 100 * statistics.fmean(metric(rankings[query], judged[query]) for query in asked)
        for name, metric in METRICS.items()
    }
