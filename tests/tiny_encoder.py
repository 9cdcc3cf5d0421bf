"""Encoders and tasks that are small enough to be fine-tuned in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from recipe import records
from recipe.config import Tokenizer
from recipe.convert import save_encoder
from recipe.cost.prices import Price
from recipe.data import tokenizer
from recipe.finetune.kinds import CLASSIFICATION
from recipe.finetune.kinds.kind import Kind
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends, Encoder
from recipe.model.heads import FineTuned, MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM

COLOURS = ["red", "green", "blue", "black", "white"]
ANIMALS = ["horse", "tiger", "snake", "whale", "mouse"]
FILLERS = ["the", "a", "near", "with", "under", "very", "old", "new", "and", "or", "of", "in", "house", "tree", "road"]


def sentence(word: str, chance: random.Random) -> str:
    """`word` somewhere among words that say nothing."""
    words = chance.choices(FILLERS, k=chance.randint(3, 9))
    words.insert(chance.randrange(len(words) + 1), word)
    return " ".join(words)


def write_tokenizer(folder: Path) -> int:
    """A vocabulary of the words above; returns its size."""
    texts = [" ".join(COLOURS + ANIMALS + FILLERS)] * 3
    trained = tokenizer.train(texts, Tokenizer(vocab_size=300))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(trained, folder)
    return len(trained)


def with_head(
    sizes: EncoderConfig, outputs: int, kind: Kind = CLASSIFICATION, backends: Backends | None = None
) -> FineTuned:
    """A new encoder with a new head."""
    head = kind.head(sizes.hidden_size, outputs, sizes.hidden_dropout_prob)
    return FineTuned(Encoder(sizes, backends), head, kind.keep, sizes.initializer_range)


def write_encoder(folder: Path, model: str = "mosaic_bert", positions: int = 64) -> EncoderConfig:
    """An encoder folder with random weights, as a pretraining run leaves it."""
    vocabulary = padded_vocab_size(write_tokenizer(folder))
    sizes = EncoderConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                          intermediate_size=64)  # fmt: skip
    torch.manual_seed(3)
    if model == "hf_bert":
        HFBertForMaskedLM(sizes, positions).bert.save_pretrained(folder)
    else:
        save_encoder(MosaicBertForMaskedLM(sizes), sizes, folder)
    return sizes


def write_run(folder: Path, model: str = "mosaic_bert", batches: int = 7) -> Path:
    """A finished pretraining run's folder."""
    write_encoder(folder / "encoder", model)
    record = records.new_record(kind="pretrain", name=folder.name, model=model, config={},
                                device=records.device("cpu", "test", 1, Price(1.0, "test")),
                                backends={}, parameters=1)  # fmt: skip
    records.write_record(folder, {**record, "status": "finished", "batches": batches})
    return folder


def write_tsv(file: Path, rows: list[tuple]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), "utf-8")


def write_sst2(data: Path, train: int = 320, dev: int = 80) -> None:
    """A colour is 0, an animal 1; the rows sorted by label, as no training should read them."""
    chance = random.Random(5)
    for split, count in (("train", train), ("dev", dev)):
        halves = [(sentence(chance.choice(kind), chance), label) for label, kind in enumerate((COLOURS, ANIMALS))
                  for _ in range(count // 2)]  # fmt: skip
        write_tsv(data / "SST-2" / f"{split}.tsv", [("sentence", "label"), *halves])


def write_stsb(data: Path, train: int = 96, dev: int = 40) -> None:
    """5 for two colours, 0 for a colour and an animal."""
    chance = random.Random(6)
    for split, count in (("train", train), ("dev", dev)):
        rows = []
        for number in range(count):
            other, score = ((COLOURS, "5.000"), (ANIMALS, "0.0"))[number % 2]
            pair = [sentence(chance.choice(kind), chance) for kind in (COLOURS, other)]
            rows.append((number, "genre", *pair, score))
        write_tsv(data / "STS-B" / f"{split}.tsv", [("index", "genre", "sentence1", "sentence2", "score"), *rows])


def write_inference(data: Path, task: str, train: int = 240, dev: int = 16) -> None:
    """MNLI or RTE: two sentences about colours entail each other, others do not."""
    chance = random.Random(7)
    column, labels = {
        "MNLI": ("gold_label", ("entailment", "neutral", "contradiction")),
        "RTE": ("label", ("entailment", "not_entailment")),
    }[task]
    for split in ("train", "dev_matched", "dev_mismatched") if task == "MNLI" else ("train", "dev"):
        rows = []
        for number in range(train if split == "train" else dev):
            label = number % len(labels)
            second = chance.choice((COLOURS, ANIMALS, FILLERS)[label])
            rows.append((number, sentence("red", chance), sentence(second, chance), labels[label]))
        write_tsv(data / task / f"{split}.tsv", [("index", "sentence1", "sentence2", column), *rows])


def write_pairs(
    file: Path,
    paradigms: dict[str, int],
    terms: list[str] = (),
    field: str = "syntax",
    rows: list[tuple[str, str]] = (),
) -> None:
    """Minimal pairs in BLiMP's form, so many of each paradigm; `rows` instead of random sentences."""
    chance = random.Random(8)
    lines = []
    for place, (name, count) in enumerate(paradigms.items()):
        for number in range(count):
            good, bad = rows[number] if rows else [sentence(chance.choice(COLOURS), chance) for _ in range(2)]
            term = terms[place] if terms else "term"
            lines.append({"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term, "UID": name,
                          "pairID": str(number)})  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
