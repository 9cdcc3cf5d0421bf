"""The compiled step: one graph for whatever comes, the plain step's numbers, in whole runs, after a resume and on two ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.throughput_batches import drawn
from kernels.backends import Resolved
from recipe.data.batch import pad_batch, split_batch
from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.model.modern import MODERN
from recipe.records import read_record, write_record
from recipe.training.compiled import compiled_step
from tests.mistakes import refused
from tests.processes import ROOT, start
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

SIZES = EncoderConfig(
    vocab_size=1088, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0,
)  # fmt: skip


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


def test_two_ranks_train_what_one_trains(yaml, tmp_path):
    """Gradients go through DDP's hooks, which compilation cuts its graph for; microbatches add theirs up first."""
    words = (str(yaml), "duration=8ba", "model.hidden_dropout_prob=0", "log_every=4", "microbatch_size=2")
    program = tmp_path / "program.py"
    program.write_text(
        "import functools, sys, torch\n"
        "torch.compile = functools.partial(torch.compile, backend='eager')\n"
        "from recipe import train\n"
        "from recipe.config import TrainConfig, run_main\n"
        "sys.exit(run_main(TrainConfig, train.main, sys.argv[1:]))\n"
    )
    both = start(
        "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), *words, f"out={tmp_path / 'two'}",
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    single = run(yaml, *words[1:], "model.compile=false")
    out, err = both.communicate(timeout=300)
    assert both.returncode == 0, err
    assert "compiled by torch.compile" in out
    two = read_record(tmp_path / "two")
    assert two["tokens"] == single["tokens"]
    assert losses(two) == pytest.approx(losses(single), abs=5e-3)


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
