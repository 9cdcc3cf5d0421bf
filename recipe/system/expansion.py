"""How much may come of a file that is compressed: one rule for all that are read, as a stranger's may expand without bound."""

from __future__ import annotations

MOST_EXPANSION, FREE_EXPANSION = 250, 1 << 26  # times the bytes of a file, which no text reaches, and bytes beside them


def most(packed: int) -> int:
    """Bytes that so many compressed ones may become."""
    return MOST_EXPANSION * packed + FREE_EXPANSION
