"""The file that ships with an exported MosaicBERT, against this project's own model: numbers, gradients, padding, settings."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kernels.reference import attention
from recipe.convert import to_mosaicml_name
from recipe.export import modeling_mosaic_bert as shipped
from recipe.model.heads import MosaicBertForMaskedLM
from tests.model.test_parity import GOLDEN
from tests.tiny.models import odd_sizes

LENGTHS = (9, 1, 4)  # tokens, padded to LONGEST
LONGEST = 11
EXACT = dict(rtol=0, atol=1e-8)  # both in float64, save the slopes


def both(heads: int = 3, **settings) -> tuple[MosaicBertForMaskedLM, nn.Module]:
    """This project's model and the exported one with its weights, float64."""
    torch.manual_seed(heads)
    ours = MosaicBertForMaskedLM(odd_sizes(num_attention_heads=heads)).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias is 0, no norm the identity
    config = shipped.MosaicBertConfig(**vars(ours.config), **settings)
    theirs = shipped.MosaicBertForMaskedLM(config).double().eval()
    weights = {to_mosaicml_name(name): tensor for name, tensor in ours.state_dict().items()}
    missing, unknown = theirs.load_state_dict(weights, strict=False)
    assert (missing, unknown) == (["cls.predictions.decoder.weight"], [])
    return ours, theirs


def inputs(side: str = "right") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.int64)
    for row, length in zip(mask, LENGTHS, strict=True):
        where = {"right": slice(0, length), "left": slice(LONGEST - length, None)}.get(side)
        places = torch.arange(LONGEST)[where] if where else torch.randperm(LONGEST, generator=generator)[:length]
        row[places] = 1
    return {
        "input_ids": torch.randint(320, mask.shape, generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(2, mask.shape, generator=generator),
    }


def labels_of(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return (
        given["input_ids"].roll(1, 1).masked_fill((given["attention_mask"] == 0) | (given["input_ids"] % 3 > 0), -100)
    )


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_numbers_and_gradients_of_ragged_batches(kind, side):
    ours, theirs = both(attn_implementation=kind)
    given = inputs(side)
    labels = labels_of(given)
    expected = ours.padded(**given, labels=labels)
    found = theirs(**given, labels=labels, output_hidden_states=True)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], expected.logits[real], **EXACT)
    torch.testing.assert_close(found.hidden_states[-1], expected.last_hidden_state, **EXACT)
    expected.loss.backward()
    found.loss.backward()
    torch.testing.assert_close(found.loss.double(), expected.loss.double(), rtol=0, atol=1e-6)  # both in float32
    named = dict(theirs.named_parameters())
    assert len(named) == len(list(ours.parameters()))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(named[to_mosaicml_name(name)].grad, parameter.grad, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_any_number_of_heads_without_mask_and_types(heads, kind):
    ours, theirs = both(heads, attn_implementation=kind)
    ids = inputs()["input_ids"]
    torch.testing.assert_close(theirs(ids).logits, ours.padded(ids).logits, **EXACT)
    ones = torch.ones_like(ids)
    torch.testing.assert_close(theirs(ids, ones).logits, ours.padded(ids).logits, **EXACT)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_padding_only_is_no_nan(kind, dtype):
    _, theirs = both(attn_implementation=kind)
    theirs = theirs.to(dtype)
    given = inputs()
    given["attention_mask"][1] = 0
    hidden = theirs.bert(**given).last_hidden_state
    assert hidden.isfinite().all() and not hidden[given["attention_mask"] == 0].any()
    theirs(**given, labels=labels_of(given)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in theirs.parameters())
    given["attention_mask"][:] = 0
    assert not theirs.bert(**given).last_hidden_state.any()


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_bf16_is_float32_within_rounding(kind):
    """Both of a model in bf16 and under autocast, where a sum of a few hundred products keeps some six bits."""
    _, theirs = both(attn_implementation=kind)
    given = inputs()
    real = given["attention_mask"].bool()
    exact = theirs.float()(**given).logits[real]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = theirs(**given).logits[real]
    low = theirs.bfloat16()(**given).logits[real]
    for logits in (mixed, low):
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - exact).abs().max() < 2**-5 * exact.abs().max()


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_gradient_checkpointing_changes_nothing(kind):
    _, theirs = both(attn_implementation=kind)
    given = inputs()
    theirs.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            theirs.gradient_checkpointing_enable({"use_reentrant": False})
            assert all(layer.gradient_checkpointing for layer in theirs.bert.encoder.layer)
        theirs.zero_grad()
        theirs(**given, labels=labels_of(given)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in theirs.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_dropout_is_where_the_run_has_it():
    """Attention's own included; evaluation has none."""
    settings = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = shipped.MosaicBertModel(shipped.MosaicBertConfig(**{**vars(odd_sizes()), **settings}))
    given = inputs()
    model.eval()
    assert torch.equal(model(**given).last_hidden_state, model(**given).last_hidden_state)
    model.train()
    assert not torch.equal(model(**given).last_hidden_state, model(**given).last_hidden_state)
    dropouts = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.5]
    assert dropouts[:3] == [
        "embeddings.dropout",
        "encoder.layer.0.attention.output.dropout",
        "encoder.layer.0.mlp.dropout",
    ]


def test_what_flash_attn_is_given(monkeypatch):
    """Unpadded sequences with their bounds and slopes: a stand-in computes attention from these alone."""
    ours, theirs = both()
    lengths = []

    def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, alibi_slopes):
        assert cu_q is cu_k and cu_q.dtype == torch.int32 and alibi_slopes.dtype == torch.float32 and dropout_p == 0
        lengths.append((cu_q.diff().tolist(), max_q, max_k))
        return attention(q, k, v, cu_q, max_q, alibi_slopes)

    monkeypatch.setattr(shipped, "flash_attn_varlen_func", stand_in, raising=False)
    theirs.config._attn_implementation = shipped.FLASH
    given = inputs("left")
    real = given["attention_mask"].bool()
    torch.testing.assert_close(theirs(**given).logits[real], ours.padded(**given).logits[real], **EXACT)
    ids = given["input_ids"]
    torch.testing.assert_close(theirs(ids).logits, ours.padded(ids).logits, **EXACT)
    assert lengths == [(list(LENGTHS), 9, 9)] * 2 + [([LONGEST] * 3, LONGEST, LONGEST)] * 2


def test_flash_attn_that_is_not_there_is_refused_in_one_line():
    if shipped.is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    config = shipped.MosaicBertConfig(**vars(odd_sizes()), attn_implementation="flash_attention_2")
    with pytest.raises((ImportError, ValueError), match="(?i)flash") as caught:
        shipped.MosaicBertModel(config)
    assert "\n" not in str(caught.value).strip()


def test_settings_of_the_library():
    ours, theirs = both()
    given = inputs()
    out = theirs(**given, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, LONGEST, 48)] * 3
    assert [weights.shape for weights in out.attentions] == [(3, 3, LONGEST, LONGEST)] * 2
    mask = given["attention_mask"].bool()
    sums = out.attentions[0].sum(-1).transpose(1, 2)[mask]
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
    assert out.attentions[0].transpose(1, 3).transpose(1, 2)[~mask.cpu()].shape[0] == int((~mask).sum())
    (plain,) = theirs(**given, return_dict=False)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(plain[real], out.logits[real], **EXACT)
    embedded = theirs.get_input_embeddings()(given["input_ids"])
    rest = {name: tensor for name, tensor in given.items() if name != "input_ids"}
    torch.testing.assert_close(theirs(inputs_embeds=embedded, **rest).logits[real], plain[real], **EXACT)
    theirs.set_attn_implementation("eager")
    torch.testing.assert_close(theirs(**given).logits[real], plain[real], **EXACT)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either input_ids or inputs_embeds"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 4)},
            r"is \(2, 4\).* be \(2, 3\)",
        ),
    ],
)
def test_wrong_inputs_are_one_line(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        both()[1](**given)
    assert "\n" not in str(caught.value)


def test_the_pooler_reads_the_first_real_token():
    config = shipped.MosaicBertConfig(**vars(odd_sizes()), num_labels=4)
    torch.manual_seed(5)
    model = shipped.MosaicBertForSequenceClassification(config).double().eval()
    right, left = inputs("right"), inputs("left")
    for row, length in enumerate(LENGTHS):
        for name in ("input_ids", "token_type_ids"):
            left[name][row, LONGEST - length :] = right[name][row, :length]
    torch.testing.assert_close(model(**left).logits, model(**right).logits, **EXACT)
    alone = {name: tensor[:1, : LENGTHS[0]] for name, tensor in right.items() if name != "attention_mask"}
    torch.testing.assert_close(model(**alone).logits, model(**right).logits[:1], **EXACT)


@pytest.mark.parametrize(
    ("auto", "labels", "settings"),
    [
        ("SequenceClassification", torch.tensor([0, 2, 1]), {"num_labels": 3}),
        ("SequenceClassification", torch.tensor([0.5, 2.0, 1.0]), {"num_labels": 1}),
        ("SequenceClassification", torch.ones(3, 4), {"num_labels": 4, "problem_type": "multi_label_classification"}),
        ("TokenClassification", inputs()["attention_mask"] * 101 - 100, {"num_labels": 3}),
    ],
    ids=["classes", "numbers", "several", "tokens"],
)
def test_classifiers_learn(auto, labels, settings):
    config = shipped.MosaicBertConfig(**vars(odd_sizes()), **settings)
    torch.manual_seed(5)
    model = getattr(shipped, f"MosaicBertFor{auto}")(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = model(**inputs(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_of_a_batch_in_parts_is_the_whole_batch_s():
    """`Trainer` tells a model that takes keywords how many labels all parts of a batch have, and leaves dividing to it."""
    _, theirs = both()
    given = inputs()
    labels = labels_of(given)
    count = int((labels != -100).sum())
    whole = theirs(**given, labels=labels).loss
    parts = [
        theirs(**{n: t[row] for n, t in given.items()}, labels=labels[row], num_items_in_batch=count).loss
        for row in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)


def test_the_decoder_stays_tied():
    _, theirs = both()
    assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    theirs.resize_token_embeddings(330, mean_resizing=False)
    assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert theirs(**inputs()).logits.shape == (3, LONGEST, 330)


def test_it_keeps_no_buffer_and_imports_nothing_of_ours():
    assert list(both()[1].buffers()) == []
    tree = ast.parse(Path(shipped.__file__).read_text("utf-8"))
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named = [(node.level, node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(level for level, _ in named)
    found = {name.split(".")[0] for name in [*plain, *(name for _, name in named)]} - sys.stdlib_module_names
    assert found == {"torch", "transformers", "flash_attn"}


@pytest.fixture(scope="module")
def golden():
    from safetensors import safe_open

    if not GOLDEN.is_file():
        pytest.skip("the reference model's stored run is not here (shared/data/golden)")
    with safe_open(GOLDEN, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["config"]  # noqa: SIM118


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_the_reference_model_s_own_names_and_numbers(golden, kind):
    """Strictly by the names of mosaicml/examples: a stored run of it, loss, logits, hidden states and every gradient."""
    import json

    tensors, sizes = golden
    config = shipped.MosaicBertConfig(**{**json.loads(sizes), "hidden_dropout_prob": 0.0}, attn_implementation=kind)
    model = shipped.MosaicBertForMaskedLM(config).eval()
    model.load_state_dict({n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")})
    given = {n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.")}
    out = model(**given, output_hidden_states=True)
    out.loss.backward()
    close = dict(rtol=0, atol=1e-4)
    torch.testing.assert_close(out.loss, tensors["output.loss"], **close)
    torch.testing.assert_close(out.logits, tensors["output.logits"], **close)
    torch.testing.assert_close(out.hidden_states[-1], tensors["output.last_hidden_state"], **close)
    named = dict(model.named_parameters())
    gradients = {n.removeprefix("grad."): t for n, t in tensors.items() if n.startswith("grad.")}
    assert named.keys() == gradients.keys() - {"cls.predictions.decoder.weight"}
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.grad, gradients[name], **close, msg=name)
