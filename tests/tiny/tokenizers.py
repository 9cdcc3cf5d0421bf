"""Tokenizers of other kinds than BERT's, trained in the test, each saved in another way that people save one."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny.tasks import TEXTS
from tests.tiny.texts import make_text

TRAINED_ON = [*TEXTS, *make_text(60, 2), "it's 12 o'clock; (why?) naïve 東京"]
RARE = 66_000  # ids before the first of a large vocabulary that occurs in any text


def byte_level(folder: Path) -> None:
    """As the tokenizers library alone saves it: no roles, nothing around a text, no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def unigram(folder: Path) -> None:
    """As transformers saves it, with bos and eos and neither cls nor sep; padding is not id 0."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    fast.save_pretrained(folder)


def other_word_piece(folder: Path) -> None:
    """WordPiece whose special tokens nobody would guess, among the last ids, with a pair's own form."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="{huh}"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TRAINED_ON, trainers.WordPieceTrainer(vocab_size=130, special_tokens=["{huh}"], show_progress=False)
    )
    tokenizer.add_special_tokens(["{go}", "{end}", "{blank}", "{gap}"])
    go, end = (tokenizer.token_to_id(token) for token in ("{go}", "{end}"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="{go} $A {end}", pair="{go} $A {end} {end} $B:1 {end}:1", special_tokens=[("{go}", go), ("{end}", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="{go}", sep_token="{end}", pad_token="{blank}", mask_token="{gap}",
        unk_token="{huh}",
    )  # fmt: skip
    fast.save_pretrained(folder)


def large(folder: Path) -> None:
    """More than 65,536 ids, of which a text uses only those that need more than 16 bits."""
    byte_level(folder)
    small = Tokenizer.from_file(str(folder / "tokenizer.json"))
    used = sorted(small.get_vocab(), key=small.get_vocab().get)
    vocabulary = [f"\u0120rare{i}" for i in range(RARE)] + used
    parts = json.loads(small.to_str())
    parts["model"]["vocab"] = {token: number for number, token in enumerate(vocabulary)}
    for added in parts["added_tokens"]:
        added["id"] += RARE
    (folder / "tokenizer.json").write_text(json.dumps(parts), "utf-8")


TOKENIZERS = {"byte-level": byte_level, "unigram": unigram, "word-piece": other_word_piece, "large": large}


def write_other_tokenizer(folder: Path, kind: str) -> Path:
    """A folder with a tokenizer of that kind."""
    folder.mkdir(parents=True, exist_ok=True)
    TOKENIZERS[kind](folder)
    return folder
