"""Entities in IOB2 tags, and their F1 by seqeval's definition, which is that of CoNLL-2000's `conlleval`.

An entity is a type with a first and a last word. Predictions may be no IOB2: as in seqeval's default mode, an `I-` that continues
nothing of its own type begins an entity too. One is right where type, beginning and end are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

OUTSIDE = "O"


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, last word) of each."""
    return set(_entities(tags))


def _entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    kind, start = "", 0  # of the entity that goes on; no type: none does
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, found = tag.partition("-")
        if kind and (prefix != "I" or found != kind):
            yield kind, start, place - 1
            kind = ""
        if tag != OUTSIDE and not kind:
            kind, start = found, place


def not_iob2(tags: Sequence[str]) -> tuple[int, str] | None:
    """The place of the first tag that IOB2 does not allow there, and why."""
    before = OUTSIDE
    for place, tag in enumerate(tags):
        prefix, dash, kind = tag.partition("-")
        if tag != OUTSIDE and (prefix not in ("B", "I") or not dash or not kind):
            return place, f"tag `{tag}` is no IOB2 tag, which are O, B-TYPE and I-TYPE"
        if prefix == "I" and before not in (f"B-{kind}", f"I-{kind}"):
            return place, f"tag `{tag}` behind `{before}` is no IOB2: an entity begins with `B-{kind}`"
        before = tag
    return None


def f1_by_type(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[float, dict[str, float]]:
    """F1 of all entities (micro), and of each type, in 0..1; 0 where there is none to find and none was found."""
    right, found, true = Counter(), Counter(), Counter()
    for one, other in zip(gold, predicted, strict=True):
        wanted, said = entities(one), entities(other)
        true.update(kind for kind, *_ in wanted)
        found.update(kind for kind, *_ in said)
        right.update(kind for kind, *_ in wanted & said)

    def f1(hits: int, said: int, there: int) -> float:
        return 2 * hits / (said + there) if said + there else 0.0

    kinds = sorted(true | found)
    overall = f1(right.total(), found.total(), true.total())
    return overall, {kind: f1(right[kind], found[kind], true[kind]) for kind in kinds}
