"""ModernBERT's row against transformers' own class, and all that lies between it and MosaicBERT."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel

from kernels.backends import ATTENTION, Resolved
from kernels.cpu import build
from recipe.block import BLOCK
from recipe.config import TrainConfig, load
from recipe.convert import load_weights
from recipe.model.architecture import Architecture
from recipe.model.architectures import architecture
from recipe.model.config import NORMS, POSITIONS, EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.modern import MODERN, from_their_name, to_their_name
from recipe.plan import sizes_of
from recipe.settings import of
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.models import odd_sizes, write_tokenizer

THEIRS = dict(
    vocab_size=320, hidden_size=48, num_hidden_layers=5, num_attention_heads=3, intermediate_size=80, local_attention=8,
    initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None,
)  # fmt: skip
LENGTHS = (30, 7, 19, 1)
ALLOWED = 1e-4


def backends_of(name: str) -> Backends:
    if name == "cpu" and (reason := build.refusal()):
        pytest.skip(reason)
    return Backends(Resolved(name, "test"), Resolved("cpu" if name == "cpu" else "reference", "test"))


def far_from_alike(model: nn.Module) -> nn.Module:
    """Norms of ones and biases of zeros would hide which is which."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.8, std=0.3)
    return model.eval()


def their_model(**settings) -> ModernBertForMaskedLM:
    torch.manual_seed(3)
    return far_from_alike(ModernBertForMaskedLM(ModernBertConfig(**{**THEIRS, **settings})))


def sizes_from(theirs: nn.Module) -> EncoderConfig:
    return MODERN.recognise(theirs.config.to_dict(), dict)


def padded_rows(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask, labels, (S, L)."""
    draw = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 320, (len(lengths), max(lengths)), generator=draw)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.where(real & (torch.rand(ids.shape, generator=draw) < 0.4), ids.roll(1), -100)
    return ids * real, real.long(), labels


def stream_of(ids: Tensor, mask: Tensor, labels: Tensor) -> dict:
    real, lengths = mask.bool(), mask.sum(1)
    labels = labels[real]
    chosen = (labels != -100).nonzero()[:, 0]
    return {
        "input_ids": ids[real],
        "cu_seqlens": nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        "max_seqlen": int(lengths.max()),
        "masked_indices": chosen,
        "labels": labels[chosen],
    }


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.to_dense() for name, parameter in model.named_parameters()}


def test_sizes_have_the_library_s_names_both_ways():
    theirs = their_model()
    sizes = sizes_from(theirs)
    assert (sizes.window, sizes.global_every, sizes.head_dim, sizes.type_vocab_size) == (8, 3, 16, 0)
    again = ModernBertConfig(**MODERN.export.settings(sizes))
    kept = {name: value for name, value in theirs.config.to_dict().items() if name in THEIRS}
    assert {name: value for name, value in again.to_dict().items() if name in THEIRS} == kept
    published = MODERN.recognise(ModernBertConfig().to_dict(), dict)
    base = {"vocab_size": 50368, "num_hidden_layers": 22, "intermediate_size": 1152, "hidden_dropout_prob": 0.0}
    assert published == EncoderConfig(**MODERN.settings, **base, pad_token_id=50283)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "cpu"])
def test_their_weights_give_their_logits_and_gradients(backend):
    """Ragged rows whose windows are crossed, in the padded form and as the stream that is trained on."""
    theirs = their_model()
    weights, left_out = MODERN.named(dict(theirs.state_dict()), "here")
    ours = MODERN.masked_lm(sizes_from(theirs), 0, backends_of(backend)).eval()
    load_weights(ours, weights, "here")
    assert not left_out and len(weights) == sum(1 for _ in theirs.parameters())
    ids, mask, labels = padded_rows()
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    wanted = gradients(theirs, expected.loss)
    found = ours.padded(ids, mask, labels=labels)
    assert (found.logits - expected.logits)[mask.bool()].abs().max() < ALLOWED < expected.logits.abs().max() / 1e3
    for loss in (found.loss, ours(stream_of(ids, mask, labels))["loss"]):
        assert loss.item() == pytest.approx(expected.loss.item(), abs=ALLOWED)
        got = gradients(ours, loss)
        assert {to_their_name(name) for name in got} == wanted.keys()
        for name, gradient in got.items():
            difference = (gradient - wanted[to_their_name(name)]).abs().max()
            assert difference < ALLOWED < wanted[to_their_name(name)].abs().max() / 10, name


def test_our_weights_give_our_logits_in_their_class():
    ours = far_from_alike(MODERN.masked_lm(sizes_from(their_model()), 0, Backends()))
    theirs = ModernBertForMaskedLM(ModernBertConfig(**MODERN.export.settings(ours.config))).eval()
    missing, unknown = theirs.load_state_dict({to_their_name(n): t for n, t in ours.state_dict().items()}, strict=False)
    assert missing == ["decoder.weight"] and not unknown  # the tied one
    ids, mask, _ = padded_rows()
    difference = ours.padded(ids, mask).logits - theirs(input_ids=ids, attention_mask=mask).logits
    assert difference[mask.bool()].abs().max() < ALLOWED


@pytest.mark.parametrize(
    "change", [{"window": None}, {"window": 6}, {"global_every": 2}, {"rope_theta": 1e4}, {"local_rope_theta": 1e5}]
)
def test_every_part_of_the_pattern_is_seen_in_the_logits(change):
    """Else the comparisons above would prove less than they say."""
    sizes = sizes_from(their_model())
    model = far_from_alike(MODERN.masked_lm(sizes, 0, Backends()))
    other = MODERN.masked_lm(dataclasses.replace(sizes, **change), 0, Backends()).eval()
    other.load_state_dict(model.state_dict())
    ids, mask, _ = padded_rows()
    difference = (model.padded(ids, mask).logits - other.padded(ids, mask).logits).abs().amax((1, 2))
    assert difference[0] > 100 * ALLOWED
    assert difference[3] < ALLOWED, "a single token has neither order nor neighbours"


def test_names_of_parameters_are_inverse_of_each_other():
    ours = [name for name, _ in MODERN.masked_lm(odd_sizes(**MODERN.settings), 0, Backends()).named_parameters()]
    assert [from_their_name(to_their_name(name)) for name in ours] == ours
    assert from_their_name("model.layers.0.attn.strange.weight") == "encoder.layers.0.attn.strange.weight"


def test_a_folder_of_the_encoder_alone_and_of_the_next_major_version(tmp_path):
    """Which has no prefix and no head; transformers 5 writes the bases of the angles by kinds of layers."""
    theirs = their_model(vocab_size=write_tokenizer(tmp_path), local_rope_theta=5e4)
    values = theirs.config.to_dict()
    angles = {"full_attention": values.pop("global_rope_theta"), "sliding_attention": values.pop("local_rope_theta")}
    values["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in angles.items()}
    values["layer_types"] = [("full" if i % 3 == 0 else "sliding") + "_attention" for i in range(5)]
    assert MODERN.recognise(values, dict) == sizes_from(theirs)
    alone = ModernBertModel(theirs.config)
    alone.load_state_dict(theirs.model.state_dict())
    theirs.config.save_pretrained(tmp_path)
    save_file(alone.state_dict(), tmp_path / "model.safetensors")
    checkpoint = find_checkpoint(str(tmp_path))
    assert checkpoint.model == "modern" and checkpoint.padding is None
    weights = checkpoint.pretrained().weights
    assert torch.equal(weights["encoder.layers.4.feed_forward.gated.weight"], alone.layers[4].mlp.Wi.weight)
    assert "without a head for masked language modelling" in refused(checkpoint.masked_lm, Backends())


@pytest.mark.parametrize(
    "other",
    [
        {"norm_bias": True},
        {"mlp_bias": True},
        {"decoder_bias": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"layer_types": ["full_attention"] * 5},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e5},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ],
)  # fmt: skip
def test_what_this_encoder_has_not_is_left_to_their_class(other):
    assert MODERN.recognise({**ModernBertConfig(**THEIRS).to_dict(), **other}, dict) is None


def refusal_of(row: Architecture, sizes: EncoderConfig) -> str | None:
    """Why it cannot be exported."""
    try:
        row.export.settings(sizes)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("embedding_norm", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_combination_learns_and_says_whether_it_can_be_exported(positions, norm, embedding_norm, window):
    biases = positions == "alibi"
    block = dict(positions=positions, norm=norm, embedding_norm=embedding_norm, window=window, biases=biases)
    refusals = {"mosaic_bert": refusal_of(architecture("mosaic_bert"), odd_sizes(**block)),
                "modern": refusal_of(MODERN, odd_sizes(**{**MODERN.settings, **block}))}  # fmt: skip
    theirs = {"mosaic_bert": ("alibi", "post", True, None), "modern": ("rope", "pre", True, window)}
    for name, refusal in refusals.items():
        if theirs[name] == (positions, norm, embedding_norm, window):
            assert refusal is None
        else:
            assert re.fullmatch(r"(\w+=\w+, )*\w+=\w+: .*(no|such) .*(block|mosaic_bert)", refusal)
    torch.manual_seed(2)
    model = MODERN.masked_lm(odd_sizes(num_hidden_layers=2, **block), 0, Backends())
    assert any(name.endswith("norm.bias") for name, _ in model.named_parameters()) == biases
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch, losses = stream_of(*padded_rows()), []
    for _ in range(6):
        loss = model(batch)["loss"]
        losses.append(loss.item())
        moved = gradients(model, loss)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    assert all(gradient.isfinite().all() and gradient.any() for gradient in moved.values())


def test_a_pre_norm_encoder_starts_with_small_additions_and_a_post_norm_one_as_ever():
    for norm, factor in (("pre", (2 * 2) ** -0.5), ("post", 1.0)):
        model = MODERN.masked_lm(odd_sizes(norm=norm), 0, Backends())
        layer = model.encoder.layers[1]
        for module, expected in ((layer.attention.out, factor), (layer.feed_forward.out, factor),
                                 (layer.attention.qkv, 1.0), (layer.feed_forward.gated, 1.0)):  # fmt: skip
            assert module.weight.std().item() == pytest.approx(0.02 * expected, rel=0.1)


def test_backends_are_asked_for_what_the_block_has(monkeypatch):
    """xformers has neither ALiBi nor windows, and would say so in the first step."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (xformers,) = (row for row in ATTENTION if row.name == "xformers")

    def refusal(**block) -> str:
        return xformers.refusal(odd_sizes(**block).requirements("cuda", torch.bfloat16)) or ""

    assert refusal().startswith("ALiBi") and refusal(positions="rope") == ""
    assert refusal(positions="rope", window=8).startswith("windows")
    assert refusal(positions="rope", window=8, global_every=1) == ""


def test_the_config_has_the_block_s_choices_and_a_row_its_own_values():
    fields = {field.name: of(field) for field in dataclasses.fields(type(TrainConfig().model))}
    assert (fields["positions"].choices, fields["norm"].choices) == (POSITIONS, NORMS)
    assert set(BLOCK) <= set(fields) & {field.name for field in dataclasses.fields(EncoderConfig)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.window=0"], "model.window=0: must be at least 2"),
        (["model.window=7"], "model: window=7: give an even number of at least 2, half of it lies on each side"),
        (["model.global_every=0"], "model.global_every=0: must be at least 1"),
        (["model.positions=learned"], "model.positions=learned: must be one of alibi, rope"),
        (["model.norm=sandwich"], "model.norm=sandwich: must be one of post, pre"),
        (["model.rope_theta=0"], "model.rope_theta=0.0: must be above 0"),
        (["model.positions=rope", "model.hidden_size=36"], "head_dim=3, hidden_size / num_attention_heads: positions=rope turns"),
        (["model.name=hf_bert", "model.norm=pre"], "model: norm=pre: the block of hf_bert is as it is; leave the key out"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, words, says):
    file = tmp_path / "train.yaml"
    file.write_text("out: out\ndata: {path: nowhere}\n")
    assert says in refused(lambda: sizes_of(load(TrainConfig, str(file), words)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"window": 1}, "window=1: give an even number"),
        ({"global_every": 0}, "global_every=0: give a whole number of at least 1"),
        ({"positions": "sinus"}, "positions='sinus': known are alibi, rope"),
        ({"norm": None}, "norm=None: known are post, pre"),
        ({"biases": "no"}, "biases='no': give true or false"),
        ({"local_rope_theta": -1.0}, "local_rope_theta=-1.0: give a number above 0"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1: give a whole number, 0 for no token types"),
    ],
)
def test_a_folder_s_mistakes_too(values, says):
    with pytest.raises(ValueError, match="^" + says.replace("(", "\\(")):
        odd_sizes(**values)
