"""Labelled texts, as a task's files have them and before they are tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

WORD_BREAK = "\n"  # between the words of a text that was split beforehand


@dataclass(frozen=True)
class Examples:
    """`sentences[i]` holds one text or two; `labels[i]` is what the task's kind reads: an id, a number, or more."""

    sentences: list[tuple[str, ...]]
    labels: list

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, indices: Iterable[int]) -> Examples:
        """Those at `indices`, in their order."""
        chosen = list(indices)
        return Examples([self.sentences[i] for i in chosen], [self.labels[i] for i in chosen])
