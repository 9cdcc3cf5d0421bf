"""A part of a task's training set to choose settings by, so that the development set is left for the scores that are reported.

It depends on the texts alone: their order in the file, the checkpoint and the run's seed do not move an example across.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from recipe.finetune.examples import Examples

SHARE, MOST = 0.1, 2000  # of the training set, and examples
SALT = "tuning split 1"  # another one would be another split


def tuning_split(train: Examples) -> tuple[Examples, Examples]:
    """(what is left to train on, the tuning set): a tenth of `train`, at most 2,000 examples, maybe none of very few."""
    kept, taken = split_places(train, SHARE, MOST, SALT)
    return train.only(kept), train.only(taken)


def split_places(train: Examples, share: float, most: int, salt: str) -> tuple[list[int], list[int]]:
    """Where in `train` the examples of its two parts stand, the second a share of it and at most so many; `salt` seeds chance.

    Stratified: the groups, sorted by label or score, are taken at equal distances. A group is all examples that a text connects,
    case and white space aside, so no text is on both sides.
    """
    groups = sorted(_connected(train), key=lambda group: _place(train, group, salt))
    share = min(len(train) * share, most) / max(len(train), 1)
    taken: list[int] = []
    seen = 0
    for group in groups:
        seen += len(group)
        if len(taken) + len(group) <= int(seen * share + 1e-9):
            taken += group
    return sorted(set(range(len(train))) - set(taken)), sorted(taken)


def _texts(train: Examples, index: int) -> list[str]:
    return [" ".join(text.split()).casefold() for text in train.sentences[index]]


def _place(train: Examples, group: list[int], salt: str) -> tuple[float, bytes]:
    """By mean label; among equals, where chance, which the texts seed, puts it."""
    words = "\0".join(sorted(text for index in group for text in _texts(train, index)))
    return float(np.mean(np.hstack([train.labels[i] for i in group]))), hashlib.sha256(
        f"{salt}\0{words}".encode()
    ).digest()


def _connected(train: Examples) -> list[list[int]]:
    """The examples in groups, those together that share a text with one another, directly or through others."""
    numbers: dict[str, int] = {}  # of the texts
    edges = [(i, numbers.setdefault(text, len(numbers))) for i in range(len(train)) for text in _texts(train, i)]
    rows, columns = np.array(edges).T
    nodes = len(train) + len(numbers)  # first the examples, then the texts
    graph = coo_array((np.ones(len(edges)), (rows, len(train) + columns)), shape=(nodes, nodes))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(connected_components(graph, directed=False)[1][: len(train)]):
        groups[group].append(index)
    return list(groups.values())
