"""Other people's encoders, in Hugging Face's form: tiny random ones with tokenizers trained here, as nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM

from tests.tiny.models import write_tokenizer
from tests.tiny.tasks import TEXTS

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = 40
# model_type: its own settings, and the special tokens of its tokenizer (none: BERT's WordPiece).
BPE = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
FAMILIES = {
    "bert": ({}, None),
    "electra": ({"embedding_size": 16}, None),
    "albert": ({"embedding_size": 16}, None),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, None),
    "deberta-v2": ({"relative_attention": True, "position_biased_input": False}, None),
    "roberta": ({"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}, BPE),
    "mpnet": ({"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}, BPE),
    "modernbert": ({"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}, BPE),
}  # fmt: skip


def write_bpe(folder: Path, pair: bool) -> int:
    """A byte-level BPE tokenizer with RoBERTa's special tokens; `pair`: with its double separator too."""
    begin, pad, end, unknown, mask = BPE
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(BPE), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if pair:
        tokenizer.post_processor = processors.RobertaProcessing((end, 2), (begin, 0))
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B {end}", special_tokens=[(begin, 0), (end, 2)]
        )
    kind = transformers.RobertaTokenizerFast if pair else transformers.PreTrainedTokenizerFast
    kind(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, cls_token=begin, sep_token=end, pad_token=pad,
         unk_token=unknown, mask_token=mask).save_pretrained(folder)  # fmt: skip
    return tokenizer.get_vocab_size()


def write_family(folder: Path, kind: str) -> Path:
    """A folder as `save_pretrained` leaves it, of a masked-language model."""
    settings, special = FAMILIES[kind]
    vocabulary = write_bpe(folder, kind == "roberta") if special else write_tokenizer(folder)
    config = AutoConfig.for_model(
        kind, **{**TINY, "vocab_size": vocabulary, "max_position_embeddings": POSITIONS, **settings}
    )
    torch.manual_seed(3)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder
