"""What no learning at all scores: the same answer to every example."""

from __future__ import annotations

import statistics

from recipe.finetune.tasks import TaskData


def constant_score(data: TaskData) -> float:
    """The mean of a task's metrics for the constant answer of its kind, the training set's most common label or mean number."""
    values: list[float] = []
    for dev in data.dev.values():
        answers = data.kind.constant(data.train.labels, dev.labels)
        values += data.kind.measure(data.task.metrics, dev.labels, answers, data.labels).values()
    return statistics.fmean(values)
