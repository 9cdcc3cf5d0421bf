"""Tokenizers: WordPiece trained here or from a vocabulary file, or any fast one by name; saved as a folder that transformers
loads.

Special tokens go by their role, whatever they are called: what begins a text, what ends it, padding, the mask, the unknown.
Training is deterministic, which `tokenizers` alone is not: see `train`.
"""

from __future__ import annotations

import hashlib
import json
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
from recipe.data.shards import Vocabulary
from recipe.errors import UserError, one_line
from recipe.system.files import read_json
from recipe.system.panics import probe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Of a saved one; WordPiece alone has a vocab.txt.
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
ROLES = ("pad", "unk", "cls", "sep", "mask")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of a tokenizer made here, by role
_INSTEAD = {"cls": "bos_token", "sep": "eos_token"}  # what may stand for a role that has no token of its own
_OTHERS = {
    "pad": "<pad>",
    "unk": "<unk>",
    "cls": "<s>",
    "sep": "</s>",
    "mask": "<mask>",
}  # usual names beside SPECIAL's


def check(settings: Settings) -> None:
    """Raise a `UserError` for settings that contradict each other or cannot give a vocabulary."""
    if settings.vocab_file and settings.name:
        raise UserError(
            "`tokenizer.vocab_file` and `tokenizer.name` are both set; give one of them, or none to train one"
        )


def load(settings: Settings) -> PreTrainedTokenizerFast | None:
    """The existing tokenizer that the settings name, or None where one is to be trained.

    Raises:
        UserError: no such file or name, not a fast tokenizer, a special token missing.
    """
    check(settings)
    if settings.vocab_file:
        return _wrap(
            _word_piece(_read_vocabulary(settings.vocab_file, settings.lowercase), settings.lowercase), settings
        )
    if settings.name:
        return _load_named(settings.name)
    return None


def train(texts: Sequence[str], settings: Settings) -> PreTrainedTokenizerFast:
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


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write those of `FILES` that it has."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the library tells what the system said, a full disk for example, in words
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        raise
    for name in {path.name for path in folder.iterdir()} - set(FILES):  # what others than ours may bring along
        (folder / name).unlink()


def describe(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Vocabulary:
    """What `dataset.json` says of it, saved in `folder`."""
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    file = "vocab.txt" if (folder / "vocab.txt").is_file() else "tokenizer.json"
    normalizer = tokenizer.backend_tokenizer.normalizer
    return Vocabulary(
        size=max(tokenizer.get_vocab().values()) + 1,
        lowercase=bool(normalizer) and normalizer.normalize_str("A").strip("\u2581 ") == "a",
        sha256=hashlib.sha256((folder / file).read_bytes()).hexdigest(),
        file=file,
        other_special_ids=sorted({*tokenizer.all_special_ids} - {*ids.values()}),
        **ids,
    )


def files(vocabulary: Vocabulary) -> list[str]:
    """Those of `FILES` that belong to a dataset."""
    return [name for name in FILES if name != "vocab.txt" or name == vocabulary.file]


def special_ids(folder: Path, saved: Tokenizer) -> dict[str, int | None]:
    """`pad_id`, `mask_id` and the other roles' of the tokenizer that is saved in a folder."""
    names = dict(zip(ROLES, SPECIAL, strict=True))
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        found = read_json(file) if file.is_file() else {}
        for role in ROLES:
            token = found.get(f"{role}_token")
            names[role] = (token["content"] if isinstance(token, dict) else token) or names[role]
    return {f"{role}_id": saved.token_to_id(name) for role, name in names.items()}


def differences(one: Tokenizer, other: Tokenizer) -> list[str]:
    """What of two tokenizers gives a text other ids, in words; nothing where they are alike."""
    first, second = (json.loads(tokenizer.to_str()) for tokenizer in (one, other))
    found = [name for name in ("normalizer", "pre_tokenizer") if first[name] != second[name]]
    if one.get_vocab() != other.get_vocab():
        return ["vocabulary", *found]
    return found + (["model"] if first["model"] != second["model"] else [])


def digest(tokenizer: PreTrainedTokenizerFast) -> str:
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
    probe(tokenizer)
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


def _wrap(tokenizer: Tokenizer, settings: Settings) -> PreTrainedTokenizerFast:
    from transformers import BertTokenizerFast

    names = {f"{role}_token": token for role, token in zip(ROLES, SPECIAL, strict=True)}
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


def _load_named(name: str) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and the network's own errors
        file = Path(name) / "tokenizer.json"
        if not file.is_file() or (Path(name) / "tokenizer_config.json").is_file():
            raise UserError(
                f"`tokenizer.name: {name}` cannot be loaded: {one_line(error)}; give a hub name or a folder"
            ) from None
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))  # as the tokenizers library itself saves one
        except Exception as error:
            raise UserError(f"`tokenizer.name: {name}`: {file} is not a tokenizer ({one_line(error)})") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"`tokenizer.name: {name}` is a {type(tokenizer).__name__}, which has no fast form; give one with a tokenizer.json"
        )
    try:
        probe(tokenizer.backend_tokenizer)
    except ValueError as error:
        raise UserError(f"`tokenizer.name: {name}`: {error}; save it again, or give another") from None
    _set_roles(tokenizer, name)
    _frame(tokenizer, name)
    return tokenizer


def _set_roles(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Give each role a token of the vocabulary: the tokenizer's own, or one of a usual name."""
    vocabulary, given = tokenizer.get_vocab(), tokenizer.special_tokens_map
    missing = []
    for role, usual in zip(ROLES, SPECIAL, strict=True):
        names = (given.get(f"{role}_token"), given.get(_INSTEAD.get(role)), usual, _OTHERS[role])
        token = next((one for one in names if one in vocabulary), None)
        if token is None and role != "unk":  # a byte-level vocabulary knows every text
            missing.append(f"{role}_token")
        elif token != given.get(f"{role}_token"):
            setattr(tokenizer, f"{role}_token", token)
    if missing:
        raise UserError(
            f"`tokenizer.name: {name}`: has no {' and no '.join(missing)}; add it with its add_special_tokens, or take a "
            "masked-language model's tokenizer"
        )


def _frame(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """See to it that a text is put between `cls` and `sep`: training does so, and so must whoever uses the encoder."""
    backend, ids = tokenizer.backend_tokenizer, (tokenizer.cls_token_id, tokenizer.sep_token_id)
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    try:
        inner, framed = (plain.encode("a", add_special_tokens=special).ids for special in (False, True))
    except Exception as error:  # the library raises that, as of a vocabulary without its token for unknown words
        raise UserError(f"`tokenizer.name: {name}`: {one_line(error)}; save it again, or give another") from None
    if framed == [ids[0], *inner, ids[1]]:
        return
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    print(f"`tokenizer.name: {name}`: does not put a text between {cls} and {sep}; the saved one does", flush=True)
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=list(dict(zip((cls, sep), ids, strict=True)).items()),
    )


def _check_vocabulary(vocabulary: dict[str, int], where: str) -> None:
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise UserError(f"{where}: the vocabulary lacks {' '.join(missing)}; add a line for each")
