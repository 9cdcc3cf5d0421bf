"""The compiled step: one graph for whatever comes, the plain step's numbers, in whole runs, after a resume and on two ranks."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.distributed import dist_strategy
from torch._dynamo.utils import counters
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.throughput_batches import drawn
from kernels.backends import Resolved
from recipe import train
from recipe.config import TrainConfig, load
from recipe.data.batch import pad_batch, split_batch
from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.model.modern import MODERN
from recipe.records import read_record, write_record
from recipe.training.callbacks import AfterBatch
from recipe.training.compiled import compiled_step
from tests.mistakes import refused
from tests.processes import on_two_ranks
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

SIZES = EncoderConfig(
    vocab_size=1088, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0,
)  # fmt: skip

ONE_LAYER = ("model.num_hidden_layers=1", "model.hidden_dropout_prob=0")
BUCKET = 2**13  # bytes of gradients that go together; a layer's are five times as many


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("optimizer.lr=3.0e-3", "duration=20ba", "log_every=5", "device=cpu", "model.compile=true")
    return train_yaml(tmp_path, tiny_dataset, *words)


@pytest.fixture
def trusted_instructions():
    """Inductor tries out each of the CPU's instruction sets in a process of its own, which takes longer than all else here."""
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        yield


@pytest.fixture
def without_code(monkeypatch):
    """Graphs are made as ever and run by plain torch: no C++ is written, which is what takes the time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def model_of(attention: str, kernels: str, block: Mapping[str, Any]) -> torch.nn.Module:
    torch.manual_seed(5)
    if attention == "transformers":
        return HFBertForMaskedLM(SIZES, 64)
    sizes = dataclasses.replace(SIZES, **block)
    return MosaicBertForMaskedLM(sizes, Backends(Resolved(attention, "tested"), Resolved(kernels, "tested")))


@pytest.mark.parametrize(
    ("attention", "kernels", "block", "graphs"),
    [
        ("cpu", "cpu", {}, 1),
        ("cpu", "cpu", {**MODERN.settings, "window": 8, "num_hidden_layers": 2, "narrow_layers": 2}, 2),
        ("sdpa", "reference", {}, 3),
        ("transformers", "transformers", {}, 2),
    ],
    ids=["mosaic_bert", "modern", "plain", "hf_bert"],
)
def test_one_graph_for_batches_of_every_shape(without_code, attention, kernels, block, graphs):
    """For sdpa another for sequences of like lengths, and like the baseline and rotary positions one for a single sequence; after
    these, none."""
    model = model_of(attention, kernels, block).train()
    step = compiled_step(model, one_shape=False)
    whole = drawn(64, 12, 2, 1024)[0]
    pieces = [piece for size, batch in zip((5, 6), whole, strict=True) for piece in split_batch(batch, size)]
    pieces += [drawn(64, count, 1, 1024)[0][0] for count in (1, 3, 1, 2)] + [drawn(8, 2, 1, 1024)[0][0]]
    if attention == "transformers":
        pieces = [pad_batch(piece, 0) for piece in pieces]
    counters.clear()
    for piece in pieces:
        with torch.autocast("cpu", torch.bfloat16):
            loss, accuracy = step(piece).values()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            plain, plain_accuracy = model(piece).values()
        plain.backward()
        assert loss.item() == pytest.approx(plain.item(), rel=2e-3) and accuracy == plain_accuracy
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                bound = 0.02 * parameter.grad.abs().max() + 1e-6
                assert (gradients[name] - parameter.grad).abs().max() <= bound, name
        model.zero_grad()
    assert counters["stats"]["unique_graphs"] == graphs


def test_batches_of_one_shape_have_one_graph_and_runs_do_not_add_up(yaml, tmp_path, without_code):
    """More runs in a process than torch allows graphs of one function."""
    words = ("data.batching=tokens", "microbatch_size=8", "batch_size=16", "duration=2ba", "data.eval_documents=1")
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(3):
            counters.clear()
            record = run(yaml, *words, "model.num_hidden_layers=1", f"out={tmp_path / str(number)}")
            assert counters["stats"]["unique_graphs"] == 2, "the step's, and that of the trial"
    assert record["status"] == "finished"


def test_a_compiled_run_learns_what_a_plain_one_does_and_resumes_where_it_was(
    yaml, tmp_path, trusted_instructions, capsys
):
    """With dropout, whose draws are other ones: apart by less than another seed, and the same again after an interruption."""
    words = ("checkpoint_every=4ba", "microbatch_size=3", "model.num_hidden_layers=1")
    compiled = run(yaml, *words)
    assert "compiled by torch.compile; the first step takes longer" in capsys.readouterr().out
    assert compiled["config"]["model"]["compile"] is True
    plain = run(yaml, *words, "model.compile=false", f"out={tmp_path / 'plain'}")
    assert "compiled by" not in capsys.readouterr().out
    assert losses(compiled) == pytest.approx(losses(plain), abs=0.03) and losses(compiled) != losses(plain)
    assert losses(plain)[-1] < losses(plain)[0] - 0.3, "a run that does not learn proves little"

    with pytest.raises(KeyboardInterrupt):
        run(yaml, *words, f"out={tmp_path / 'broken'}", callbacks=[stop_at(11)])
    resumed = run(yaml, *words, f"out={tmp_path / 'broken'}", "autoresume=true")
    assert resumed["resumed"] and losses(resumed) == losses(compiled) and resumed["eval"] == compiled["eval"]
    names = [set(torch.load(p / "checkpoints/latest-rank0.pt", weights_only=False)["state"]["model"])
             for p in (tmp_path / "run", tmp_path / "plain")]  # fmt: skip
    assert names[0] == names[1], "compiled or not, the parameters have their names"


class ToldBuckets(DistributedDataParallel):
    """Writes down when a part of the compiled backward begins, and when a bucket of gradients goes to the other rank."""

    seen: list[str] = []

    def __init__(self, module: torch.nn.Module, **settings: Any) -> None:
        super().__init__(module, bucket_cap_mb=BUCKET / 2**20, **settings)
        self.register_comm_hook(None, self.sent)

    @staticmethod
    def sent(state, bucket):  # torch reads annotations, and not as text
        ToldBuckets.seen.append("bucket")
        return allreduce_hook(state, bucket)

    def forward(self, *batch: Any) -> dict[str, torch.Tensor]:
        outputs = super().forward(*batch)
        for node in compiled_parts(outputs["loss"].grad_fn):
            node.register_prehook(lambda _: ToldBuckets.seen.append("part"))
        return outputs


def compiled_parts(last: torch.autograd.graph.Node | None) -> set[torch.autograd.graph.Node]:
    """The nodes of an autograd graph that a compiler made."""
    met, left = set(), [last] if last else []  # none in evaluation
    while left:
        node = left.pop()
        if node not in met:
            met.add(node)
            left += [before for before, _ in node.next_functions if before]
    return {node for node in met if "CompiledFunction" in node.name()}


def on_each_of_two_ranks(*words: str) -> None:
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = BUCKET
    dist_strategy.DistributedDataParallel = ToldBuckets
    config = load(TrainConfig, *words[:1], list(words[1:]))
    train.train(config, [AfterBatch(lambda state: ToldBuckets.seen.append("batch"))])
    if os.environ["RANK"] == "0":
        Path(config.out, "seen.json").write_text(json.dumps(ToldBuckets.seen))


def test_two_ranks_train_what_one_trains_and_exchange_gradients_meanwhile(yaml, tmp_path):
    """Torch cuts the step's graph where DDP's buckets end, so that a bucket goes while earlier layers' gradients are made.
    Microbatches add theirs up first."""
    words = (str(yaml), "duration=4ba", "log_every=2", "microbatch_size=2", *ONE_LAYER)
    out = on_two_ranks("tests.training.test_compiled", *words, f"out={tmp_path / 'two'}")
    single = run(yaml, *words[1:], "model.compile=false")
    assert "compiled by torch.compile" in out
    two = read_record(tmp_path / "two")
    assert two["tokens"] == single["tokens"]
    assert losses(two) == pytest.approx(losses(single), abs=5e-3)
    seen = json.loads((tmp_path / "two/seen.json").read_text())
    batches = " ".join(seen).split("batch")[:-1]
    assert len(batches) == 4
    for batch in batches[1:]:  # DDP learns the order of its buckets in the first
        groups = [between.count("bucket") for between in batch.split("part")]
        assert sum(count > 0 for count in groups) >= 4, batch


def test_what_cannot_be_compiled_is_refused_in_one_line(yaml, tmp_path):
    with pytest.raises(UserError, match="attention=reference cannot be compiled; set model.attention=auto"):
        run(yaml, "model.attention=reference")
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        said = refused(run, yaml)
    assert "no-such-compiler" in said and "install a C++ compiler" in said
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_there_was_the_key_goes_on(yaml, tmp_path):
    run(yaml, "duration=2ba", "model.compile=false")
    record = read_record(tmp_path / "run")
    del record["config"]["model"]["compile"]
    write_record(tmp_path / "run", record)
    words = ("duration=2ba", "autoresume=true")
    assert run(yaml, *words, "model.compile=false")["status"] == "finished"
    with pytest.raises(UserError, match="resume with the same settings"):
        run(yaml, *words)


if __name__ == "__main__":
    on_each_of_two_ranks(*sys.argv[1:])
