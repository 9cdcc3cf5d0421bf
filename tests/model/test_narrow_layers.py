"""Layers that training computes at masked positions alone: the same as wide layers whose other results are thrown away, and no
trace of it in the encoder that is kept."""

from __future__ import annotations

import json

import pytest
import torch

from recipe.finetune.kinds import CLASSIFICATION
from recipe.model.encoder import Backends, Encoder, Sequences
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.modern import MODERN
from recipe.training.checkpoint import find_checkpoint
from tests.tiny.configs import train_yaml
from tests.tiny.models import odd_sizes
from tests.tiny.runs import run

BLOCKS = {
    "mosaic_bert": {},
    "modern": {**MODERN.settings, "window": 8, "num_attention_heads": 4},
    "no embedding norm": {"norm": "pre", "embedding_norm": False},
}
LENGTHS = [7, 30, 1, 13]
KEEP = [1, 4, 5, 8, 20, 36, 37, 40, 50]


def stream() -> dict:
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    ids = torch.randint(320, (int(bounds[-1]),), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "cu_seqlens": bounds.int(), "max_seqlen": max(LENGTHS)}


def by_hand(encoder: Encoder, batch: dict, keep: torch.Tensor, narrow_layers: int) -> torch.Tensor:
    """Every layer computes every token; a narrow one's results are taken at the kept ones alone."""
    x_TD = encoder.embeddings(batch["input_ids"], None)
    tables = encoder._tables(batch["cu_seqlens"], len(x_TD))
    sequences = Sequences(batch["cu_seqlens"], batch["max_seqlen"], encoder.slopes, tables)
    taken = torch.zeros(len(x_TD), 1, dtype=torch.bool)
    taken[keep] = True
    for number, layer in enumerate(encoder.layers):
        new_TD, _ = layer.summed(*layer(x_TD, None, sequences))
        narrow = number >= len(encoder.layers) - narrow_layers
        x_TD = torch.where(taken, new_TD, x_TD) if narrow else new_TD
    return (x_TD if encoder.final_norm is None else encoder.final_norm(x_TD))[keep]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("narrow_layers", [2, 4])
def test_it_is_wide_layers_whose_other_results_are_thrown_away(block, narrow_layers):
    """Gradients too; filling in `keep`, as packing and a CPU's few sizes make it, changes nothing, wherever it points."""
    sizes = odd_sizes(num_hidden_layers=4, **BLOCKS[block])
    found = []
    for hand in (True, False):
        torch.manual_seed(2)
        encoder = Encoder(sizes).double()
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        keep = torch.tensor(KEEP)
        if hand:
            hidden = by_hand(encoder, stream(), keep, narrow_layers)
        else:
            filled = torch.tensor([0, *KEEP, 0, 4])
            counted = torch.tensor([False, *[True] * len(KEEP), False, False])
            hidden = encoder(stream(), filled, narrow_layers, counted)[counted]
        (hidden * torch.linspace(-1, 1, 48)).sum().backward()
        found.append((hidden, {name: p.grad for name, p in encoder.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


def test_training_is_narrow_and_evaluation_is_not():
    batch = stream()
    masked = torch.tensor(KEEP)
    batch |= {"masked_indices": masked, "labels": batch["input_ids"][masked]}
    losses = {}
    for narrow_layers in (1, 2, 3):
        torch.manual_seed(3)
        model = MosaicBertForMaskedLM(
            odd_sizes(num_hidden_layers=3, narrow_layers=narrow_layers, initializer_range=0.2)
        )
        losses[narrow_layers] = [model.train(mode)(batch)["loss"].item() for mode in (True, False)]
    plain = losses[1][1]
    assert losses[1][0] == plain and all(evaluated == plain for _, evaluated in losses.values())
    assert len({trained for trained, _ in losses.values()}) == 3


def test_what_is_kept_fine_tuned_and_exported_is_the_plain_encoder(tmp_path, tiny_dataset):
    yaml = train_yaml(tmp_path, tiny_dataset, "duration=2ba", "precision=fp32", "model.num_hidden_layers=3")
    record = run(yaml, "model.narrow_layers=3", f"out={tmp_path / 'narrow'}")
    run(yaml, f"out={tmp_path / 'plain'}")
    assert record["encoder"]["narrow_layers"] == 3
    narrow, plain = (tmp_path / name / "encoder" / "config.json" for name in ("narrow", "plain"))
    assert narrow.read_bytes() == plain.read_bytes() and "narrow_layers" not in json.loads(plain.read_text())
    source, other = (find_checkpoint(str(tmp_path / name)).pretrained() for name in ("narrow", "plain"))
    assert {name: w.shape for name, w in source.weights.items()} == {name: w.shape for name, w in other.weights.items()}
    source.architecture.export.settings(source.sizes)
    tuned = find_checkpoint(str(tmp_path / "narrow")).fine_tuned(CLASSIFICATION, 2, Backends()).train()
    rows = []
    for layer in tuned.encoder.layers:
        layer.feed_forward.gated.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    tuned(stream())
    assert rows == [sum(LENGTHS)] * 2 + [len(LENGTHS)]


def test_a_run_may_be_narrow_from_where_another_was_not(tmp_path, tiny_dataset):
    yaml = train_yaml(tmp_path, tiny_dataset, "duration=1ba", "precision=fp32", "data.eval_documents=1")
    run(yaml, f"out={tmp_path / 'plain'}")
    record = run(yaml, f"init_from={tmp_path / 'plain'}", "model.narrow_layers=2")
    assert record["encoder"]["narrow_layers"] == 2
