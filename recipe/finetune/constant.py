"""What no learning at all scores: the same answer to every example."""

from __future__ import annotations

import statistics

import numpy as np

from recipe.finetune.metrics import measure
from recipe.finetune.tasks import TaskData


def constant_score(data: TaskData) -> float:
    """The mean of a task's metrics for always giving the training set's most common label; of numbers, their mean."""
    answer = np.zeros(data.outputs, np.float32)
    if data.labels:
        answer[np.bincount(data.train.labels).argmax()] = 1.0
    else:
        answer[0] = np.mean(data.train.labels)
    measured = [
        measure(data.task.metrics, np.array(dev.labels), np.tile(answer, (len(dev), 1))) for dev in data.dev.values()
    ]
    return statistics.fmean(value for metrics in measured for value in metrics.values())
