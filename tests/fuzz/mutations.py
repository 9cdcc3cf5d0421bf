"""Damaged copies of a valid file: its bytes, or the values of its JSON, as hypothesis draws them. It keeps all that it draws, so
what it draws is how a copy is made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st

# What stands where something else belongs: other types, numbers beyond any use, paths, names that are commands somewhere.
LEAVES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x",
    "0", "NaN", "\0", "a\nb", "../../x", "/etc/passwd", "=1+1", "<b>", "\ud800", "\u2028", "é" * 300, [], {}, [[]], [None],
    {"": 0}, {"format": 2},
)  # fmt: skip
PIECES = (b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\t", b'"', b"'", b"{", b"[" * 3000, b"}", b",", b":",
          b"1e999", b"9" * 5000, b"-1", b"NaN", b"null", b"\\ud800", b"\x80\x81", b"&a [*a]", b"!!python/name:os.system ",
          b"${oc.env:HOME}", b"=", b"\x1b[31m")  # fmt: skip


Made = Callable[[], bytes]
Damage = Callable[[bytes], st.SearchStrategy[Made]]


def damaged(content: bytes) -> st.SearchStrategy[Made]:
    """Its bytes with up to four faults: flipped, cut off, removed, repeated or exchanged for others."""
    places = st.integers(0, max(len(content) - 1, 0))
    faults = st.one_of(
        st.tuples(st.just("flip"), places, st.integers(1, 255)),
        st.tuples(st.just("cut"), places, st.just(0)),
        st.tuples(st.just("insert"), places, st.sampled_from(PIECES)),
        st.tuples(st.just("replace"), places, st.sampled_from(PIECES)),
        st.tuples(st.just("remove"), places, st.integers(1, 64)),
        st.tuples(st.just("repeat"), places, st.integers(1, 64)),
    )
    return st.lists(faults, max_size=4).map(lambda chosen: partial(_with_faults, content, chosen))


def _with_faults(content: bytes, faults: list[tuple[str, int, Any]]) -> bytes:
    made = bytearray(content)
    for kind, place, what in faults:
        place = min(place, len(made))
        if kind == "flip" and place < len(made):
            made[place] ^= what
        elif kind == "cut":
            del made[place:]
        elif kind in ("insert", "replace"):
            made[place : place + (len(what) if kind == "replace" else 0)] = what
        elif kind == "remove":
            del made[place : place + what]
        elif kind == "repeat":
            made[place:place] = made[place : place + what]
    return bytes(made)


def damaged_json(content: bytes) -> st.SearchStrategy[Made]:
    """A JSON file with up to three of its values exchanged, removed, doubled or nested, or with damaged bytes."""
    tree = json.loads(content)
    paths = list(_paths(tree))
    faults = st.tuples(
        st.sampled_from(paths), st.sampled_from(["set", "remove", "nest", "double"]), st.sampled_from(LEAVES)
    )
    values = st.lists(faults, min_size=1, max_size=3).map(lambda chosen: partial(_with_values, content, chosen))
    return st.one_of(values, values, damaged(content))


def _paths(tree: Any, above: tuple = ()) -> Any:
    """Of every value, the keys that lead to it; of long lists those of the first items."""
    yield above
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _paths(value, (*above, key))


def _with_values(content: bytes, faults: list[tuple[tuple, str, Any]]) -> bytes:
    holder = [json.loads(content)]
    doubled = []
    for path, kind, leaf in faults:
        place, (*above, last) = holder, (0, *path)
        try:
            for key in above:
                place = place[key]
            if kind == "set":
                place[last] = copy.deepcopy(leaf)  # another fault may change what is in it
            elif kind == "remove":
                del place[last]
            elif kind == "nest":
                for _ in range(150):
                    place[last] = [place[last]]
            elif isinstance(last, str):
                doubled.append((last, leaf))
        except (LookupError, TypeError):
            continue  # what another fault has taken away
    text = json.dumps(holder[0] if holder else None)
    for key, leaf in doubled:  # the same key again, which a dictionary cannot hold
        text = text.replace(f"{json.dumps(key)}: ", f"{json.dumps(key)}: {json.dumps(leaf)}, {json.dumps(key)}: ", 1)
    return text.encode()
