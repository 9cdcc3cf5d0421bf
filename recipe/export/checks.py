"""What an exported folder must share with the run, in the verifying process: numbers of both sides on the same inputs.

An allowed difference is relative to the largest value that is compared, but at least to 1. Shapes: S sequences, L padded length,
T real tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from recipe.config import ExportConfig
from recipe.export.transformers_form import AUTO, row_of
from recipe.finetune.batches import encodings
from recipe.model.encoder import Backends
from recipe.training.checkpoint import Checkpoint

FLOAT32 = 1e-5
ROUNDED = 2.0  # bf16 may be so many times as far from float32 as the run's own bf16
LENGTHS = (48, 7, 33, 17, 64, 9)  # tokens of the sequences that are compared, where the model takes as many
CHARACTERS = 6 * max(LENGTHS)  # a text of more has more tokens than are compared
LABELLED = 3  # every so many-th real token has a label
WORDS = 5  # of fill-mask
ATTENTIONS = ("sdpa", "eager")
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

Inputs = dict[str, Tensor]


class Different(Exception):
    """The export is not what the run is: what differs, in one line."""


def texts() -> list[str]:
    """Paragraphs of English, and the hard ones."""
    paragraphs = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return [*dict.fromkeys(filter(None, paragraphs)), *HARD]


class Exported:
    """A draft and the run that it was made of; `verified` and `facts` say what was compared so far."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, scratch: Path) -> None:
        self.checkpoint, self.folder, self.scratch = checkpoint, folder, scratch
        self.verified: dict[str, dict[str, float]] = {}
        self.facts: dict[str, Any] = {}
        self.row = row_of(checkpoint)
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.trust = {"trust_remote_code": True} if "auto_map" in self.config else {}

    @cached_property
    def ours(self) -> nn.Module:
        """The run's own masked-language model."""
        return self.checkpoint.masked_lm(Backends()).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return self.load_tokenizer(self.folder)

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
        # A classifier's head is new, and so is the pooler of transformers' BERT, which no masked-language model has.
        encoder = f"{model.base_model_prefix}." if auto.endswith("Classification") else ""
        lost = [n for n in info["missing_keys"] if n.startswith(encoder) and "pooler" not in n.split(".")]
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

    def of_run(self, inputs: Inputs, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and last hidden states (T, D) of the real tokens, by the run's own model, or another one like it."""
        model, real = model or self.ours, _real(inputs)
        if self.row is None:
            model = model.model
            return model(**inputs).logits[real], model.base_model(**inputs).last_hidden_state[real]
        lengths = real.sum(dim=1)
        batch = {
            "input_ids": inputs["input_ids"][real],
            "cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int(),
            "max_seqlen": int(lengths.max()),
            "masked_indices": torch.arange(int(lengths.sum())),
        }
        if "token_type_ids" in inputs:
            batch["token_type_ids"] = inputs["token_type_ids"][real]
        return model.masked_logits(batch), model.encoder(batch)

    def name(self, parameter: str) -> str:
        """What the folder calls a parameter of the run."""
        return self.row.name(parameter) if self.row else parameter.removeprefix("model.")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those that are compared, one of them beyond the windows that the encoder's layers may have."""
        window = self.checkpoint.sizes and self.checkpoint.sizes.window
        return (*LENGTHS, window // 2 + max(LENGTHS)) if window else LENGTHS

    def cases(self) -> Iterator[tuple[str, Inputs]]:
        """Ragged pairs of texts: padded right and left, without token types, and without a mask, of one length."""
        longest, tokenizer, found = self.checkpoint.max_length or max(self.lengths), self.checkpoint.tokenizer, []
        paragraphs = (text for text in texts() if len(text) > CHARACTERS)
        for length in self.lengths:
            often = -(-length // max(LENGTHS))
            pair = [" ".join([next(paragraphs)] * often) for _ in range(2)]
            found.append(next(encodings(tokenizer, [tuple(pair)], min(length, longest))))
        typed = (self.config.get("type_vocab_size") or 0) > 1
        for side in ("right", "left"):
            yield f"padded on the {side}", padded(found, self.checkpoint.pad_id, side == "left", typed)
        yield "without token types", padded(found, self.checkpoint.pad_id, False, False)
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


def _real(inputs: Mapping[str, Tensor]) -> Tensor:
    """(S, L) bool."""
    return (
        inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"]).bool()
    )


def check_transformers(exported: Exported, config: ExportConfig) -> None:
    """All that a folder for transformers promises."""
    check_tokens(exported)
    cases = dict(exported.cases())
    for attention in ATTENTIONS:
        check_numbers(exported, cases, attention)
    check_gradients(exported, cases["padded on the right"])
    check_bf16(exported, cases)
    check_heads(exported, cases["padded on the left"])
    check_saved_again(exported)
    check_fill_mask(exported)


def check_tokens(exported: Exported) -> None:
    """The same ids of every text, single and in pairs."""
    special = exported.tokenizer.all_special_tokens
    plain = [text for text in texts() if not any(token in text for token in special)]
    pairs = list(zip(plain[::7], plain[3::7], strict=False))
    tokenizer = exported.checkpoint.tokenizer
    tokenizer.no_truncation()
    for batch in (plain, pairs):
        theirs = exported.tokenizer(*([list(side) for side in zip(*batch, strict=True)] if batch is pairs else [batch]))
        for text, ours, ids in zip(batch, tokenizer.encode_batch(batch), theirs["input_ids"], strict=True):
            if ours.ids != ids:
                raise Different(f"the tokenizer makes other ids of {text!r:.80}")
    exported.facts["texts that the tokenizer encodes alike"] = len(plain) + len(pairs)


@torch.no_grad()
def check_numbers(exported: Exported, cases: Mapping[str, Inputs], attention: str) -> None:
    """Logits and hidden states, float32."""
    heads, encoder = (exported.load(a, attn_implementation=attention) for a in ("AutoModelForMaskedLM", "AutoModel"))
    for name, inputs in cases.items():
        real = _real(inputs)
        logits, hidden = exported.of_run(inputs)
        exported.compare(f"logits, {name}, {attention}", logits, heads(**inputs).logits[real], FLOAT32)
        theirs = encoder(**inputs).last_hidden_state[real]
        exported.compare(f"hidden states, {name}, {attention}", hidden, theirs, FLOAT32)


def check_gradients(exported: Exported, inputs: Inputs) -> None:
    """Of the loss, by every parameter; a gradient is compared relative to the largest one."""
    real = _real(inputs)
    labels = torch.full_like(inputs["input_ids"], -100)
    places = real.flatten().nonzero()[::LABELLED, 0]
    labels.view(-1)[places] = inputs["input_ids"].flatten()[places].roll(1)
    model = exported.load("AutoModelForMaskedLM")
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    ours = F.cross_entropy(exported.of_run(inputs)[0], labels[real])
    ours.backward()
    exported.compare("loss", ours, loss, FLOAT32)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {exported.name(name): parameter.grad.to_dense() for name, parameter in exported.ours.named_parameters()}
    if found.keys() != theirs.keys():
        raise Different(f"`{sorted(found.keys() ^ theirs.keys())[0]}` is a parameter on one side only")
    largest = max(gradient.abs().max() for gradient in found.values())
    for name, gradient in found.items():
        exported.compare("gradients, relative to the largest", gradient / largest, theirs[name] / largest, FLOAT32)
    exported.facts["parameters whose gradients were compared"] = len(found)
    exported.ours.zero_grad()


@torch.no_grad()
def check_bf16(exported: Exported, cases: Mapping[str, Inputs]) -> None:
    """In bf16 the folder's model is about as far from float32 as the run's own model is in bf16."""
    model = exported.load("AutoModelForMaskedLM", dtype=torch.bfloat16)
    rounded = copy.deepcopy(exported.ours).bfloat16()
    for name, inputs in cases.items():
        theirs = model(**inputs).logits, model.base_model(**inputs).last_hidden_state
        both = zip(
            ("logits", "hidden states"), exported.of_run(inputs), exported.of_run(inputs, rounded), theirs, strict=True
        )
        for what, exact, own, found in both:
            allowed = ROUNDED * float((own.float() - exact).abs().max()) / max(1.0, float(exact.abs().max()))
            exported.compare(f"{what}, {name}, bf16 against float32", exact, found[_real(inputs)].float(), allowed)


def check_heads(exported: Exported, inputs: Inputs) -> None:
    """The other Auto classes put a new head on the same encoder, and train."""
    encoder = exported.load("AutoModel").state_dict()
    for auto in AUTO:
        if not auto.endswith("Classification"):
            continue
        model = exported.load(auto, num_labels=3)
        for name, tensor in model.base_model.state_dict().items():
            if not name.startswith("pooler.") and not torch.equal(tensor, encoder[name]):
                raise Different(f"{auto} has other weights at `{name}` than AutoModel")
        shape = model(**inputs).logits.shape[:-1]
        loss = model.train()(**inputs, labels=torch.ones(shape, dtype=torch.int64)).loss
        loss.backward()
        if not all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
            raise Different(f"{auto} has a gradient that is no number")
    exported.facts["classes that load it"] = ", ".join(auto for auto in AUTO if auto != "AutoConfig")


def check_saved_again(exported: Exported) -> None:
    """What `save_pretrained` makes of it loads again, and is the same."""
    again = exported.scratch / "saved-again"
    model = exported.load("AutoModelForMaskedLM")
    model.save_pretrained(again)
    exported.tokenizer.save_pretrained(again)
    exported.load("AutoModel", again)
    loaded = exported.load("AutoModelForMaskedLM", again).state_dict()
    if any(not torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items()):
        raise Different("save_pretrained and from_pretrained change the weights")
    if exported.load_tokenizer(again)(HARD[0]) != exported.tokenizer(HARD[0]):
        raise Different("save_pretrained and from_pretrained change the tokenizer")


@torch.no_grad()
def check_fill_mask(exported: Exported) -> None:
    """`pipeline("fill-mask")` names the words that the run finds likeliest."""
    tokenizer = exported.tokenizer
    if exported.checkpoint.mask_id is None:
        return
    pipeline = transformers.pipeline(
        "fill-mask", str(exported.folder), tokenizer=tokenizer, top_k=WORDS, **exported.trust
    )
    sentences = (text.split()[:12] for text in texts() if len(text.split()) >= 12)
    masked = (" ".join([*words[:5], tokenizer.mask_token, *words[6:]]) for words in sentences)
    longest = exported.checkpoint.max_length or max(LENGTHS)
    fitting = (text for text in masked if len(tokenizer(text)["input_ids"]) <= longest)
    for text in itertools.islice(fitting, len(LENGTHS)):
        inputs = dict(tokenizer(text, return_tensors="pt"))
        (place,) = (inputs["input_ids"][0] == exported.checkpoint.mask_id).nonzero()[:, 0]
        logits = exported.of_run(inputs)[0][place]
        named = torch.tensor([answer["token"] for answer in pipeline(text)])
        # By their logits, as two words may be equally likely.
        exported.compare("logits of the words of fill-mask", logits.topk(WORDS).values, logits[named], FLOAT32)


def pooled(hidden_TD: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """(S, D): the mean of each sequence's hidden states, or (cls) its first one, made of length 1."""
    parts = hidden_TD.split(lengths.tolist())
    vectors = {"mean": lambda part: part.mean(dim=0), "cls": lambda part: part[0]}[pooling]
    return F.normalize(torch.stack([vectors(part) for part in parts]), dim=1)
