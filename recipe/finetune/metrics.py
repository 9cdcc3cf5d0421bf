"""GLUE's metrics over a whole development set; a mean over batches would be another number for all but accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics


def _correlation(of: Callable, labels: np.ndarray, predictions: np.ndarray) -> float:
    """0 where one side is constant: the coefficient has no value there, and nothing was learnt."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(of(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predictions: metrics.f1_score(labels, predictions, zero_division=0.0),
    "matthews": metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: _correlation(stats.pearsonr, labels, predictions),
    "spearman": lambda labels, predictions: _correlation(stats.spearmanr, labels, predictions),
}


def measure(names: tuple[str, ...], labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Each metric, times 100.

    Args:
        names: keys of `METRICS`.
        labels: (N,) class ids, or numbers.
        logits: (N, C); of C = 1 the one column is the predicted number.
    """
    predictions = logits[:, 0].astype(np.float64) if logits.shape[1] == 1 else logits.argmax(axis=1)
    return {name: 100.0 * float(METRICS[name](labels, predictions)) for name in names}
