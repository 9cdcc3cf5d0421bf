"""Where a tokenizer's words begin, told by token ids alone: what whole-word masking keeps together.

Shards hold ids and no text. So every id is given the kind of its first and of its last character, and the tokenizer's own
pre-tokenizer is asked once for each two kinds whether it parts them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from recipe.errors import UserError

# A character of each kind. Two kinds have none: what always begins a word, and what never does.
_CHARACTERS = {"space": " ", "break": "\n", "letter": "a", "digit": "1", "other": "."}
_KINDS = (*_CHARACTERS, "begins", "continues")
_BEGINS, _CONTINUES = _KINDS.index("begins"), _KINDS.index("continues")
_METASPACE = "\u2581"  # SentencePiece's space


@dataclass(frozen=True)
class Words:
    """Of every id the kinds of its ends, and which of them are apart."""

    first: NDArray[np.uint8]  # (ids,)
    last: NDArray[np.uint8]  # (ids,)
    apart: NDArray[np.bool_]  # (kinds, kinds), by a token's last character and the next one's first

    def begins(self, input_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(T,) whether a word begins at each token of a stream (T,)."""
        if self._by_id is not None:
            return self._by_id[input_ids]
        begins = np.ones(len(input_ids), bool)
        kinds = self.last[input_ids[:-1]] * np.uint8(len(_KINDS)) + self.first[input_ids[1:]]
        begins[1:] = self.apart.ravel()[kinds]
        return begins

    @cached_property
    def _by_id(self) -> NDArray[np.bool_] | None:
        """(ids,) the same where the token before makes no difference, as in WordPiece: that is faster."""
        rows = self.apart[np.unique(self.last)]
        return rows[0][self.first] if (rows == rows[0]).all() else None


def words_of(folder: Path) -> Words:
    """Of the tokenizer that is saved in a folder.

    Raises:
        UserError: its ids do not tell where words begin, because it drops the spaces and marks no piece.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = json.loads(tokenizer.to_str())
    tokens = tokenizer.get_vocab()
    first = np.full(max(tokens.values()) + 1, _BEGINS, np.uint8)
    last = np.full_like(first, _BEGINS)
    for token, number in tokens.items():
        first[number], last[number] = _ends(token, parts)
    return Words(first, last, _apart(tokenizer.pre_tokenizer, parts, folder))


def _ends(token: str, parts: dict[str, Any]) -> tuple[int, int]:
    """The kinds of a token's first and last character."""
    model = parts["model"]
    if prefix := model.get("continuing_subword_prefix"):
        return (_CONTINUES if token.startswith(prefix) else _BEGINS), _BEGINS
    if suffix := model.get("end_of_word_suffix"):
        return _KINDS.index("letter"), (_BEGINS if token.endswith(suffix) else _KINDS.index("letter"))
    if model["type"] == "WordLevel":
        return _BEGINS, _BEGINS
    if not _is_byte_level(parts):
        text = token.replace(_METASPACE, " ")
        return _kind(text[:1]), _kind(text[-1:])
    data = bytes(_BYTES[c] for c in token) if set(token) <= _BYTES.keys() else token.encode()
    text = data.decode("utf-8", errors="replace")
    within = 0x80 <= data[0] < 0xC0 if data else False  # the token begins inside a character
    return (_CONTINUES if within else _kind(text[:1])), _kind(text[-1:])


def _kind(character: str) -> int:
    if character.isspace():
        return _KINDS.index("space" if character == " " else "break")
    if character.isalpha() or character == "\ufffd":  # the rest of this one is in another token
        return _KINDS.index("letter")
    return _KINDS.index("digit" if character.isnumeric() else "other")


def _apart(pre_tokenizer: PreTokenizer | None, parts: dict[str, Any], folder: Path) -> NDArray[np.bool_]:
    """Between which kinds a word ends."""
    model = parts["model"]
    apart = np.zeros((len(_KINDS),) * 2, bool)
    if not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model["type"] == "WordLevel"):
        if pre_tokenizer and pre_tokenizer.pre_tokenize_str("a a")[-1][0] == "a":
            raise UserError(
                f"data.masking=word: the tokenizer in {folder} drops spaces and marks no piece, so its ids do not tell where "
                "words begin; set data.masking=token or span"
            )
        for i, before in enumerate(_CHARACTERS.values()):
            for j, after in enumerate(_CHARACTERS.values()):
                apart[i, j] = _parts(pre_tokenizer, before, after) if pre_tokenizer else after == " "
    apart[_BEGINS, :] = apart[:, _BEGINS] = True
    apart[:, _CONTINUES] = False
    return apart


def _parts(pre_tokenizer: PreTokenizer, before: str, after: str) -> bool:
    """Whether a word ends between two characters; a letter follows, as a space belongs to what is behind it."""
    pieces = pre_tokenizer.pre_tokenize_str(f"{before}{after}a")
    return len(pieces) > 1 and any(1 in span for _, span in pieces)


def _is_byte_level(parts: dict[str, Any]) -> bool:
    return "ByteLevel" in json.dumps([parts["pre_tokenizer"], parts["decoder"]])


def _bytes_by_character() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary (Radford et al. 2019): printable ones for themselves, the
    others from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_by_character()
