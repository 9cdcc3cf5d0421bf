"""One model's process in `benchmarks.throughput`: it does training steps when told to, and says how long each took.

It is told `{"steps": n}` on its standard input, a line each time, and answers with a line of JSON on its standard output; what
libraries print goes to its standard error.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Absent, Loss, Sizes
from benchmarks.throughput_channel import Channel, Steps
from kernels.backends import Requirements, resolve
from recipe.data.batch import pad_batch
from recipe.errors import class_and_line, end
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.system.hardware import keep_freed_memory
from recipe.training.compiled import compiled_step


def main() -> None:
    job = json.loads(sys.argv[1])
    channel = Channel()
    torch.set_float32_matmul_precision("high")
    if job["kept_memory"]:
        keep_freed_memory()
    if job["memory_share"]:
        torch.cuda.set_per_process_memory_fraction(job["memory_share"])
    try:
        if job["model"] == "trainer":
            from benchmarks.throughput_trainer import train

            train(job, channel)
        else:
            bare(job, channel)
    except Absent as reason:
        channel.say(absent=str(reason))
    except Exception as error:  # a rival's failure is a line in the table, not the end of the run
        channel.say(absent=class_and_line(error))
        raise


def bare(job: dict[str, Any], channel: Channel) -> None:
    """Forward, backward and optimizer on batches that are there already."""
    device = job["device"]
    torch.manual_seed(17)
    sizes = Sizes(**job["sizes"])
    model, loss_of, note = build(job, sizes)
    model.to(device).train()
    batches = [on_device(batch, device) for batch in load(job)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job["lr"], betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-5 / job["lr"], fused=True
    )
    start, source = time.perf_counter(), itertools.cycle(batches)
    watch = Steps(device)

    def turn(steps: int) -> dict[str, Any]:
        watch.start()
        for batch in itertools.islice(source, steps):
            with torch.autocast(device, torch.bfloat16, enabled=job["bf16"]):
                loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            watch.step(loss)
        return watch.answer()

    turn(job["warm_up"])
    parameters = sum(p.numel() for p in model.parameters())
    channel.say(ready=True, note=note, parameters=parameters, warm_up_s=time.perf_counter() - start)
    while wanted := channel.steps():
        channel.say(**turn(wanted))


def build(job: dict[str, Any], sizes: Sizes) -> tuple[torch.nn.Module, Loss, str]:
    kind = job["model"]
    if kind == "this":
        model, loss_of, note = this_model(job, sizes)
    elif kind == "hf":
        (model, loss_of), note = peers.hf_bert(sizes, job["length"]), "its own loss, its head on every position"
    else:
        model, loss_of, note = peers.checkout(Path(job["path"]), sizes, job["device"] == "cuda")
    if job["compile"]:
        loss_of = compiled(model, job)
    return model, loss_of, note


def this_model(job: dict[str, Any], sizes: Sizes) -> tuple[torch.nn.Module, Loss, str]:
    values = {**vars(sizes), "vocab_size": padded_vocab_size(sizes.vocab_size)}
    config = EncoderConfig(**values)
    dtype = torch.bfloat16 if job["bf16"] else torch.float32
    needs = Requirements(job["device"], dtype, config.head_dim, config.attention_probs_dropout_prob)
    backends = Backends(resolve("attention", "auto", needs), resolve("kernels", "auto", needs))
    model = MosaicBertForMaskedLM(config, backends)
    return model, lambda batch: model(batch)["loss"], f"{backends.attention.name}, {backends.kernels.name}"


def compiled(model: torch.nn.Module, job: dict[str, Any]) -> Loss:
    """On a GPU with CUDA graphs, where all batches have one shape."""
    mode = "reduce-overhead" if job["device"] == "cuda" and job["static"] else None
    if job["model"] == "this":
        step = compiled_step(model, job["static"], mode)
        return lambda batch: step(batch)["loss"]
    fast = torch.compile(model, mode=mode)
    return lambda batch: peers.padded_loss(fast, batch)


def load(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The batches in the form of this model, or padded: to the longest of each, or to one length where that is compiled."""
    batches = torch.load(job["batches"])
    if job["model"] == "this":
        return batches
    padded = [pad_batch(batch, 0) for batch in batches]
    if job["compile"]:
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        for batch in padded:
            missing = job["length"] - batch["input_ids"].shape[1]
            batch.update({k: torch.nn.functional.pad(batch[k], (0, missing), value=v) for k, v in fill.items()})
    return padded


def on_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


if __name__ == "__main__":
    end(main)
