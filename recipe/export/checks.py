"""What an exported folder must share with its subject, in the verifying process: numbers of both sides on the same inputs.

An allowed difference is relative to the largest value that is compared, but at least to 1. Shapes: S sequences, L padded length,
T real tokens, R rows of outputs, C numbers of a row.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from recipe.export.subject import Inputs, Subject, real_tokens
from recipe.finetune.batches import encodings

FLOAT32 = 1e-5
ROUNDED = 2.0  # bf16 may be so many times as far from float32 as the run's own bf16,
SPACING = (
    2.0**-7
)  # and always as far as two of its numbers near 1: a classifier has few numbers, which may all be lucky
LENGTHS = (48, 7, 33, 17, 64, 9)  # tokens of the sequences that are compared, where the model takes as many
CHARACTERS = 6 * max(LENGTHS)  # a text of more has more tokens than are compared
# Beside the documentation of Python's own language: what tokenizers stumble over.
HARD = (
    "Élan, naïve café; ÅNGSTRÖM",
    "零一二三 ひらがな 한국어",
    "a\u0301b\u200dc\ufe0f \U0001f600\U0001f469\u200d\U0001f4bb",
    "don't-stop_me.now\t2,718.28 \u00a0 x\r\ny",
    "\x00\x07control\x7f",
    "supercalifragilisticexpialidocious" * 4,
    " ",
    "#@!",
)


class Different(Exception):
    """The export is not what the run is: what differs, in one line."""


def texts() -> list[str]:
    """Paragraphs of English, and the hard ones."""
    paragraphs = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return [*dict.fromkeys(filter(None, paragraphs)), *HARD]


class Exported:
    """A draft and the subject that it was made of; `verified` and `facts` say what was compared so far."""

    def __init__(self, subject: Subject, folder: Path, scratch: Path) -> None:
        self.subject, self.folder, self.scratch = subject, folder, scratch
        self.verified: dict[str, dict[str, float]] = {}
        self.facts: dict[str, Any] = {}
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.trust = {"trust_remote_code": True} if "auto_map" in self.config else {}

    @cached_property
    def tokenizer(self) -> Any:
        return self.load_tokenizer(self.folder)

    @cached_property
    def texts(self) -> list[str]:
        """What the subject was not trained on, as far as it is there, and the embedded ones."""
        own = (" ".join(text.split()) for several in self.subject.held_out.texts for text in several)
        return [*dict.fromkeys([*own, *texts()])]

    def load_tokenizer(self, folder: Path) -> Any:
        return transformers.AutoTokenizer.from_pretrained(folder, **self.trust)  # 5.x looks at the model's code first

    def load(self, auto: str, folder: Path | None = None, **settings: Any) -> nn.Module:
        """The exported model by one of transformers' Auto classes.

        Raises:
            Different: a weight was not in the folder, or the code is not the folder's.
        """
        kind = getattr(transformers, auto)
        settings = {"output_loading_info": True, **self.trust, **settings}
        model, info = kind.from_pretrained(folder or self.folder, **settings)
        lost = info["missing_keys"]
        if auto != self.subject.auto:
            # Another head is new, and so is the pooler of transformers' BERT, which few heads have.
            encoder = f"{model.base_model_prefix}." if auto.endswith("Classification") else ""
            lost = [n for n in lost if n.startswith(encoder) and "pooler" not in n.split(".")]
        if lost or info["mismatched_keys"]:
            raise Different(f"{auto} finds no weights for `{[*lost, *info['mismatched_keys']][0]}`")
        if self.trust and not type(model).__module__.startswith("transformers_modules."):
            raise Different(f"{auto} takes its code from {type(model).__module__}, not from the folder")
        return model.eval()

    def compare(self, what: str, ours: Tensor, theirs: Tensor, allowed: float) -> None:
        """Note how far two tensors are apart; `allowed` for values of 1 and less."""
        if ours.shape != theirs.shape:
            raise Different(f"{what} is {tuple(theirs.shape)}, but {tuple(ours.shape)} in the run")
        ours, theirs = ours.detach().double(), theirs.detach().double()
        allowed *= max(1.0, float(ours.abs().max()))
        difference = float((ours - theirs).abs().max())
        if not difference <= allowed:  # NaN too
            raise Different(f"{what} differs by {difference:.1e}; {allowed:.1e} is allowed")
        before = self.verified.get(what, {"difference": 0.0, "allowed": allowed})
        self.verified[what] = max(
            before, {"difference": difference, "allowed": allowed}, key=lambda row: row["difference"]
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those that are compared, one of them beyond the windows that the encoder's layers may have."""
        sizes = self.subject.checkpoint.sizes
        return (*LENGTHS, sizes.window // 2 + max(LENGTHS)) if sizes and sizes.window else LENGTHS

    def cases(self) -> Iterator[tuple[str, Inputs]]:
        """Ragged pairs of texts: padded right and left, without token types, and without a mask, of one length; and one alone."""
        checkpoint, found = self.subject.checkpoint, []
        longest, tokenizer = self.subject.longest or max(self.lengths), checkpoint.tokenizer
        paragraphs = (text for text in self.texts if len(text) > CHARACTERS)
        for length in self.lengths:
            often = -(-length // max(LENGTHS))
            pair = [" ".join([next(paragraphs)] * often) for _ in range(2)]
            found.append(next(encodings(tokenizer, [tuple(pair)], min(length, longest))))
        typed = (self.config.get("type_vocab_size") or 0) > 1
        for side in ("right", "left"):
            yield f"padded on the {side}", padded(found, checkpoint.pad_id, side == "left", typed)
        yield "one alone", padded(found[:1], checkpoint.pad_id, False, typed)
        yield "without token types", padded(found, checkpoint.pad_id, False, False)
        shortest = min(len(one.ids) for one in found)
        plain = {"input_ids": torch.tensor([one.ids[:shortest] for one in found])}
        yield "without a mask", plain


def padded(found: Iterable[Any], pad_id: int, left: bool, typed: bool) -> Inputs:
    """Encodings as input_ids, attention_mask and, if `typed`, token_type_ids, (S, L) int64 each."""
    found = list(found)
    longest = max(len(one.ids) for one in found)

    def rows(values: Iterable[list[int]], filler: int) -> Tensor:
        filled = ([filler] * (longest - len(row)) for row in values)
        return torch.tensor([gap + row if left else row + gap for row, gap in zip(values, filled, strict=True)])

    inputs = {
        "input_ids": rows([one.ids for one in found], pad_id),
        "attention_mask": rows([[1] * len(one.ids) for one in found], 0),
    }
    return inputs | ({"token_type_ids": rows([one.type_ids for one in found], 0)} if typed else {})


def check_transformers(exported: Exported) -> None:
    """Ids, numbers and gradients of a folder for transformers, and that it can be saved again."""
    check_tokens(exported)
    cases = dict(exported.cases())
    default = exported.load(exported.subject.auto).config._attn_implementation  # sdpa, where its class has that
    for attention in dict.fromkeys((default, "eager")):
        check_numbers(exported, cases, attention)
    check_gradients(exported, cases["padded on the right"])
    check_bf16(exported, cases)
    check_saved_again(exported)


def check_tokens(exported: Exported) -> None:
    """The same ids of every text, single and in pairs, and the same tokens behind the ids of a dataset."""
    subject, theirs_of = exported.subject, exported.tokenizer
    special = [] if subject.plain_text else theirs_of.all_special_tokens
    plain = [text for text in exported.texts if not any(token in text for token in special)]
    if subject.plain_text:
        plain += [f"x {token} y" for token in theirs_of.all_special_tokens]
    pairs = list(zip(plain[::7], plain[3::7], strict=False))
    tokenizer, held_out = subject.checkpoint.tokenizer, subject.held_out
    for ids in held_out.ids:
        if [tokenizer.id_to_token(i) for i in ids] != theirs_of.convert_ids_to_tokens(ids):
            raise Different("the tokenizer has other tokens behind the ids of the run's dataset")
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    for batch in (plain, pairs):
        theirs = theirs_of(*([list(side) for side in zip(*batch, strict=True)] if batch is pairs else [batch]))
        for text, ours, ids in zip(batch, tokenizer.encode_batch(batch), theirs["input_ids"], strict=True):
            if ours.ids != ids:
                raise Different(f"the tokenizer makes other ids of {text!r:.80}")
    exported.facts["texts that the tokenizer encodes alike"] = len(plain) + len(pairs)
    own = len(held_out.texts)
    exported.facts["held-out texts of its own, compared"] = own or f"none: {held_out.absent}"


@torch.no_grad()
def check_numbers(exported: Exported, cases: Mapping[str, Inputs], attention: str) -> None:
    """Logits, where there is a head, and hidden states, float32."""
    subject = exported.subject
    whole, encoder = (exported.load(auto, attn_implementation=attention) for auto in (subject.auto, "AutoModel"))
    for name, inputs in cases.items():
        theirs = subject.rows(whole(**inputs), inputs)
        exported.compare(f"{subject.gives}, {name}, {attention}", subject.logits(inputs), theirs, FLOAT32)
        theirs = encoder(**inputs).last_hidden_state[real_tokens(inputs)]
        exported.compare(f"hidden states, {name}, {attention}", subject.hidden(inputs), theirs, FLOAT32)


def check_gradients(exported: Exported, inputs: Inputs) -> None:
    """Of the loss, by every parameter; a gradient is compared relative to the largest one."""
    subject = exported.subject
    logits = subject.logits(inputs)
    labels, of_rows = subject.labels(inputs, logits)
    model = exported.load(subject.auto)
    loss = subject.their_loss(model, inputs, labels)
    loss.backward()
    ours = subject.loss(logits, of_rows)
    ours.backward()
    exported.compare("loss", ours, loss, FLOAT32)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {subject.name(name): parameter.grad.to_dense() for name, parameter in subject.ours.named_parameters()}
    if found.keys() != theirs.keys():
        raise Different(f"`{sorted(found.keys() ^ theirs.keys())[0]}` is a parameter on one side only")
    largest = max(gradient.abs().max() for gradient in found.values())
    for name, gradient in found.items():
        exported.compare("gradients, relative to the largest", gradient / largest, theirs[name] / largest, FLOAT32)
    exported.facts["parameters whose gradients were compared"] = len(found)
    subject.ours.zero_grad()


@torch.no_grad()
def check_bf16(exported: Exported, cases: Mapping[str, Inputs]) -> None:
    """In bf16 the folder's model is about as far from float32 as the run's own model is in bf16."""
    subject = exported.subject
    model = exported.load(subject.auto, dtype=torch.bfloat16)
    rounded = copy.deepcopy(subject.ours).bfloat16()
    for name, inputs in cases.items():
        both = {
            subject.gives: (subject.logits, subject.rows(model(**inputs), inputs)),
            "hidden states": (subject.hidden, model.base_model(**inputs).last_hidden_state[real_tokens(inputs)]),
        }
        for what, (of, found) in both.items():
            exact, own = of(inputs), of(inputs, rounded).float()
            allowed = ROUNDED * float((own - exact).abs().max()) / max(1.0, float(exact.abs().max()))
            what = f"{what}, {name}, bf16 against float32"
            exported.compare(what, exact, found.float(), max(allowed, SPACING))


def check_saved_again(exported: Exported) -> None:
    """What `save_pretrained` makes of it loads again, and is the same."""
    again, auto = exported.scratch / "saved-again", exported.subject.auto
    model = exported.load(auto)
    model.save_pretrained(again)
    exported.tokenizer.save_pretrained(again)
    exported.load("AutoModel", again)
    loaded = exported.load(auto, again).state_dict()
    if any(not torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items()):
        raise Different("save_pretrained and from_pretrained change the weights")
    if exported.load_tokenizer(again)(HARD[0]) != exported.tokenizer(HARD[0]):
        raise Different("save_pretrained and from_pretrained change the tokenizer")
