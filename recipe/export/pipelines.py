"""What transformers' own pipelines say of texts by an exported folder, and whether the subject says the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers

from recipe.config import ExportConfig
from recipe.export.checks import FLOAT32, LENGTHS, Different, Exported, Inputs, check_transformers
from recipe.export.held_out import spread
from recipe.export.subject import FEATURES
from recipe.export.transformers_form import AUTO
from recipe.finetune.examples import WORD_BREAK, Examples

WORDS = 5  # that fill-mask names, and of a text that has a mask instead of one of them
AROUND = 12  # words of such a text
ANSWERED = 32  # texts that a classifier answers
LONGEST = 4000  # characters of one


def verify(exported: Exported, config: ExportConfig) -> None:
    """All that a folder for transformers promises."""
    check_transformers(exported)
    USES[exported.subject.use](exported)


def pipeline(exported: Exported, **settings: Any) -> Callable[..., Any]:
    return transformers.pipeline(
        exported.subject.use,
        str(exported.folder),
        tokenizer=exported.tokenizer,
        device="cpu",
        **exported.trust,
        **settings,
    )


def check_encoder(exported: Exported) -> None:
    """Of a pretrained encoder: new heads train on it, and `fill-mask` names the words that it finds likeliest."""
    check_new_heads(exported, dict(exported.cases())["padded on the left"])
    check_fill_mask(exported)


def check_features(exported: Exported) -> None:
    """Of one without a head that answers texts: new heads train on it, and `feature-extraction` gives its hidden states."""
    check_new_heads(exported, dict(exported.cases())["padded on the left"])
    tokenizer, subject = exported.tokenizer, exported.subject
    extract = pipeline(exported)
    longest = subject.longest or max(LENGTHS)
    for text in spread([text for text in exported.texts if len(tokenizer(text)["input_ids"]) <= longest], ANSWERED):
        inputs = dict(tokenizer(text, return_tensors="pt"))
        with torch.no_grad():
            ours = subject.hidden(inputs)
        exported.compare("hidden states of feature-extraction", ours, torch.tensor(extract(text)[0]), FLOAT32)
    exported.facts["not in the folder"] = subject.left_out


def check_new_heads(exported: Exported, inputs: Inputs) -> None:
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
    trained = ("AutoModel", exported.subject.auto)
    exported.facts["classes that load it"] = ", ".join(
        [*dict.fromkeys(trained), *(auto for auto in AUTO if auto.endswith("Classification"))]
    )


@torch.no_grad()
def check_fill_mask(exported: Exported) -> None:
    """By their logits, as two words may be equally likely."""
    tokenizer, subject = exported.tokenizer, exported.subject
    mask_id = subject.checkpoint.mask_id
    if mask_id is None:
        return
    fill = pipeline(exported, top_k=WORDS)
    sentences = (text.split()[:AROUND] for text in exported.texts if len(text.split()) >= AROUND)
    masked = (" ".join([*words[:WORDS], tokenizer.mask_token, *words[WORDS + 1 :]]) for words in sentences)
    longest = subject.longest or max(LENGTHS)
    fitting = (text for text in masked if len(tokenizer(text)["input_ids"]) <= longest)
    for text in itertools.islice(fitting, len(LENGTHS)):
        inputs = dict(tokenizer(text, return_tensors="pt"))
        (place,) = (inputs["input_ids"][0] == mask_id).nonzero()[:, 0]
        logits = subject.logits(inputs)[place]
        named = torch.tensor([answer["token"] for answer in fill(text)])
        exported.compare("logits of the words of fill-mask", logits.topk(WORDS).values, logits[named], FLOAT32)


def check_texts(exported: Exported) -> None:
    """A classifier's, or a number: every label's probability, as `recipe.predict` has it."""
    classify = pipeline(exported, top_k=None, truncation=True)
    texts = _examples(exported)
    for text, answer in zip(texts, exported.subject.answers(texts), strict=True):
        said = classify(dict(zip(("text", "text_pair"), text, strict=False)))
        if "probabilities" not in answer:
            ours, theirs = [answer["prediction"]], [one["score"] for one in said]
        else:
            by_label = {one["label"]: one["score"] for one in said}
            if by_label.keys() != answer["probabilities"].keys():
                raise Different(f"the pipeline's labels are {', '.join(sorted(by_label))}")
            ours, theirs = zip(*((p, by_label[label]) for label, p in answer["probabilities"].items()), strict=True)
        what = "probabilities" if "probabilities" in answer else "numbers"
        exported.compare(f"{what} of the pipeline", torch.tensor(ours), torch.tensor(theirs), FLOAT32)
    _say(exported, texts)


def check_words(exported: Exported) -> None:
    """The label and probability of each word, which the first token of it has."""
    tag = pipeline(exported, aggregation_strategy="none", ignore_labels=[])
    texts = [text for text in _examples(exported) if _fits(exported, text)]
    for text, answer in zip(texts, exported.subject.answers(texts), strict=True):
        words = text[0].split(WORD_BREAK)
        said = dict(_first_tokens(words, tag(" ".join(words))))
        for place, token in said.items():
            label, probability = answer["prediction"][place], answer["probability"][place]
            if token["entity"] != label and abs(float(token["score"]) - probability) > FLOAT32:
                raise Different(f"the pipeline says {token['entity']} of {words[place]!r:.40}, not {label}")
        if not said:
            continue
        ours = torch.tensor([answer["probability"][place] for place in said])
        theirs = torch.tensor([float(token["score"]) for token in said.values()])
        exported.compare("probabilities of the pipeline", ours, theirs, FLOAT32)
    _say(exported, texts)


def _first_tokens(words: list[str], tokens: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each word that has tokens, its place and the first of them; a token may begin with the space before."""
    start, rest = 0, iter(tokens)
    token = next(rest, None)
    for place, word in enumerate(words):
        end = start + len(word)
        while token and token["end"] <= start:
            token = next(rest, None)
        if token and token["end"] <= end:
            yield place, token
        start = end + 1


def _examples(exported: Exported) -> list[tuple[str, ...]]:
    """The task's own held-out texts, and the embedded ones in its form, some of each."""
    kind, count = exported.subject.kind, len(exported.subject.task["text"])
    if kind.word_per_line:
        embedded = [(WORD_BREAK.join(text.split()),) for text in exported.texts]
    else:
        embedded = list(zip(*(exported.texts[i::count] for i in range(count)), strict=False))
    short = [text for text in embedded if 0 < sum(map(len, text)) <= LONGEST and all(one.strip() for one in text)]
    return [*spread(exported.subject.held_out.texts, ANSWERED), *spread(short, ANSWERED)]


def _fits(exported: Exported, text: tuple[str, ...]) -> bool:
    """Whether it is one window: a pipeline reads several in its own way."""
    subject = exported.subject
    example = Examples([text], [subject.kind.unlabelled])
    return len(subject.kind.encode(subject.checkpoint.tokenizer, example, subject.longest)) == 1


def _say(exported: Exported, texts: list[tuple[str, ...]]) -> None:
    exported.facts["texts that the pipeline answers alike"] = len(texts)


USES = {
    "fill-mask": check_encoder,
    FEATURES: check_features,
    "text-classification": check_texts,
    "token-classification": check_words,
}
