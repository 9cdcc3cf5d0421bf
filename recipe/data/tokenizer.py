"""WordPiece tokenizers: trained here, from a vocabulary file, or by name; saved as a folder that transformers loads.

Training is deterministic, which `tokenizers` alone is not: see `train`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from recipe.config import Tokenizer as Settings
from recipe.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")  # of a saved one
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_VOCABULARY = 65_536  # token ids are stored as uint16


def check(settings: Settings) -> None:
    """Raise a `UserError` for settings that contradict each other or cannot give a vocabulary."""
    if settings.vocab_file and settings.name:
        raise UserError(
            "`tokenizer.vocab_file` and `tokenizer.name` are both set; give one of them, or none to train one"
        )


def load(settings: Settings) -> BertTokenizerFast | None:
    """The existing tokenizer that the settings name, or None where one is to be trained.

    Raises:
        UserError: no such file or name, not WordPiece, a special token missing, more than 65,536 entries.
    """
    check(settings)
    if settings.vocab_file:
        return _wrap(
            _word_piece(_read_vocabulary(settings.vocab_file, settings.lowercase), settings.lowercase), settings
        )
    if settings.name:
        return _load_named(settings.name)
    return None


def train(texts: Sequence[str], settings: Settings) -> BertTokenizerFast:
    """Train a WordPiece vocabulary of at most `vocab_size` entries; equal texts give equal vocabularies.

    The library numbers continuation characters (`##a`) in the order of a randomly seeded hash map, and breaks ties
    between merges by these numbers. Naming the alphabet and its continuations beforehand, sorted, removes the chance.
    """
    draft = _word_piece({}, settings.lowercase)
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(draft.normalizer.normalize_str(text))
    alphabet = _alphabet(seen, settings.vocab_size // 8)
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL, *alphabet, *(f"##{c}" for c in alphabet if _joins(c))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer, length=len(texts))
    # built afresh, because the trainer leaves every entry named above marked as a special token
    return _wrap(_word_piece(draft.get_vocab(with_added_tokens=False), settings.lowercase), settings)


def save(tokenizer: BertTokenizerFast, folder: Path) -> None:
    """Write `FILES`."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the library tells what the system said, a full disk for example, in words
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        raise
    for name in {path.name for path in folder.iterdir()} - set(FILES):  # what others than ours may bring along
        (folder / name).unlink()


def digest(tokenizer: BertTokenizerFast) -> str:
    """SHA-256 of its vocab.txt, in hexadecimal."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        return hashlib.sha256((Path(folder) / "vocab.txt").read_bytes()).hexdigest()


def encoder(folder: Path) -> Tokenizer:
    """The saved tokenizer for raw text: nothing is cut or padded, and a literal `[MASK]` in the text is plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _word_piece(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    """BERT's own pipeline around a vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if vocabulary:
        ids = {token: vocabulary[token] for token in ("[CLS]", "[SEP]")}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
        )
    return tokenizer


def _wrap(tokenizer: Tokenizer, settings: Settings) -> BertTokenizerFast:
    from transformers import BertTokenizerFast

    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=settings.lowercase, **names)


def _alphabet(seen: Counter[str], limit: int) -> list[str]:
    """Sorted: the characters that make up at least a millionth of the text, at most `limit` of them."""
    least = sum(seen.values()) / 1e6
    ranked = sorted((-count, c) for c, count in seen.items() if count >= least and not c.isspace())
    return sorted(c for _, c in ranked[:limit])


def _joins(character: str) -> bool:
    """Whether BERT's pre-tokenizer can leave this character behind another one in a word."""
    ascii_symbol = character.isascii() and not character.isalnum()
    ideograph = unicodedata.name(character, "").startswith("CJK ")
    return not (ascii_symbol or ideograph or unicodedata.category(character).startswith("P"))


def _read_vocabulary(path: str, lowercase: bool) -> dict[str, int]:
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`tokenizer.vocab_file`: {path} cannot be read as UTF-8 text: {error}") from None
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if token in vocabulary:
            raise UserError(
                f"{path}:{number}: `{token}` stands already in line {vocabulary[token] + 1}; one entry a line"
            )
        vocabulary[token] = number - 1
    _check_vocabulary(vocabulary, path)
    if lowercase:
        cased = next((t for t in tokens if t not in SPECIAL and any("A" <= c <= "Z" for c in t)), None)
        if cased:
            raise UserError(
                f"{path}: holds capitals (`{cased}`), which lowercased text never reaches; tokenizer.lowercase=false"
            )
    return vocabulary


def _load_named(name: str) -> BertTokenizerFast:
    from transformers import AutoTokenizer, BertTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and the network's own errors
        raise UserError(
            f"`tokenizer.name: {name}` cannot be loaded: {one_line(error)}; give a hub name or a folder"
        ) from None
    if not isinstance(tokenizer, BertTokenizerFast) or not isinstance(
        tokenizer.backend_tokenizer.model, models.WordPiece
    ):
        raise UserError(f"`tokenizer.name: {name}` is a {type(tokenizer).__name__}; only BERT's WordPiece is supported")
    _check_vocabulary(tokenizer.get_vocab(), name)
    return tokenizer


def _check_vocabulary(vocabulary: dict[str, int], where: str) -> None:
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise UserError(f"{where}: the vocabulary lacks {' '.join(missing)}; add a line for each")
    if len(vocabulary) > MAX_VOCABULARY:
        raise UserError(
            f"{where}: {len(vocabulary):,} entries; at most {MAX_VOCABULARY:,}, because ids are stored as uint16"
        )
