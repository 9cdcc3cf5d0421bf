"""What benchmarks/soak.py interrupts: commands with tiny settings, and what of their results must not depend on it.

A command runs in a folder of its own and writes `out` there, so two folders of the same command hold the same files, byte for
byte, but for what is measured. Text is the language reference's, which Python brings along.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from recipe.system.files import digest, read_json, write_whole

INPUTS, UNBROKEN = "inputs", "unbroken"
# Measured, or of the machine and the moment.
MEASURED = frozenset({
    "provenance", "resumed", "cost", "seconds", "waiting_for_data", "waiting", "tokens_per_s", "mfu", "microbatch", "usd",
})  # fmt: skip
PRICED = re.compile(r"(^|/)(pareto/|scores\.md$)")  # figures and tables with dollars in them, of what is in records
RECORDS = ("run.json", "export.json")
TORN = ".torn"  # a checkpoint that was set aside, which its run has said


@dataclass(frozen=True)
class Subject:
    """A command; in its words {inputs} is the folder of its files and {unbroken} that of unbroken runs."""

    name: str
    words: tuple[str, ...]
    ranks: int = 1  # of a node
    nodes: int = 1
    needs: tuple[str, ...] = ()  # whose unbroken runs it reads

    def command(self, work: Path) -> list[str]:
        places = {"inputs": work / INPUTS, UNBROKEN: work / UNBROKEN}
        launcher: tuple[str, ...] = ()
        if self.nodes > 1:
            launcher = ("benchmarks.soak_nodes",)
        elif self.ranks > 1:
            launcher = ("torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}", "-m")
        words = (word.format(**places) for word in self.words)
        return [sys.executable, "-m", *launcher, *words, "out=out"]


PREPARE = ("recipe.prepare", "yamls/data/text.yaml", "train.files=[{inputs}/text/*.jsonl]", "tokenizer.vocab_size=512")
TRAIN = (
    "yamls/demo/train.yaml", "data.path={unbroken}/prepare/out", "data.sequence_length=48", "data.eval_documents=16",
    "batch_size=8", "microbatch_size=4", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1", "checkpoint_every=4ba", "log_every=1", "device=cpu", "precision=fp32",
)  # fmt: skip
TRAINED = ("recipe.train", *TRAIN, "duration=32ba", "data.workers=1", "rank_timeout=60", "autoresume=true")
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("prepare", (*PREPARE, "processes=1")),
        Subject("prepare-2", (*PREPARE, "processes=2")),
        Subject("train", TRAINED, needs=("prepare",)),
        Subject("train-2", TRAINED, ranks=2, needs=("prepare",)),
        Subject("nodes-2", TRAINED, nodes=2, needs=("prepare",)),
        Subject(
            "finetune",
            ("recipe.finetune", "yamls/finetune/own.yaml", "checkpoint={unbroken}/train/out", "data={inputs}",
             "train=[rows.jsonl]", "seeds=[19,20]", "epochs=4", "batch_size=8", "max_length=48", "device=cpu", "precision=fp32"),
            needs=("prepare", "train"),
        ),
        Subject("sweep", ("recipe.pareto", "sweep", "{inputs}/sweep.yaml"), needs=("prepare",)),
        Subject("export", ("recipe.export", "{unbroken}/train/out"), needs=("prepare", "train")),
    )
}  # fmt: skip


def paragraphs() -> list[str]:
    """Of the language reference; no two alike."""
    found = (" ".join(paragraph.split()) for topic in topics.values() for paragraph in topic.split("\n\n"))
    return list(filter(None, dict.fromkeys(found)))


def write_inputs(work: Path) -> None:
    """The files that the subjects read."""
    folder, texts = work / INPUTS, paragraphs()
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for part in range(4):
        _write_lines(folder / f"text/{part}.jsonl", [{"text": text} for text in texts[part::4]])
    rows = [{"text": text, "label": "code" if ">>>" in text or "=" in text else "prose"} for text in texts[:96]]
    _write_lines(folder / "rows.jsonl", rows)
    pairs = [text.split()[:8] for text in texts if len(text.split()) >= 8][:48]
    kind = {"UID": "order", "linguistics_term": "order", "field": "reference"}
    _write_lines(
        folder / "pairs.jsonl",
        [{"sentence_good": " ".join(words), "sentence_bad": " ".join(reversed(words)), **kind} for words in pairs],
    )
    model = " ".join(TRAIN).format(unbroken=work / UNBROKEN)
    settings = {
        "out": "out",
        "models": [model],
        "budgets": ["12ba", "24ba"],
        "pairs": f"yamls/pairs/demo.yaml data={folder / 'pairs.jsonl'} device=cpu",
    }
    write_whole(folder / "sweep.yaml", yaml.safe_dump(settings))


def _write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def result_of(folder: Path) -> dict[str, Any]:
    """Every file below `folder` by its name: its digest, or what is in a record and was not measured. Of checkpoints, whose
    number depends on where a run was stopped, the newest alone, and not its bytes, in which the seconds are."""
    found: dict[str, Any] = {}
    newest: dict[Path, tuple[int, str]] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or file.is_symlink() or file.suffix == TORN:
            continue
        if file.suffix == ".pt":
            batch = int(file.name.removeprefix("ba").partition("-")[0])
            newest[file.parent] = max(newest.get(file.parent, (-1, "")), (batch, name))
        elif file.name in RECORDS:
            found[name] = unmeasured(read_json(file))
        else:
            found[name] = None if PRICED.search(name) else digest([file])
    return found | {name: None for _, name in newest.values()}


def unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return [unmeasured(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """In what two results differ, in words."""
    for name in sorted({*expected, *found}):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is left behind"
        elif expected[name] != found[name]:
            yield f"{name} differs{_keys(expected[name], found[name])}"


def _keys(expected: Any, found: Any) -> str:
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return ""
    return f" ({', '.join(key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key))})"


def wrong_bills(folder: Path, wall_s: float) -> Iterator[str]:
    """The records below `folder` whose bill does not add up, or has more seconds than the commands took together."""
    for file in sorted(folder.rglob("run.json")):
        record = read_json(file)
        name, cost, price = file.relative_to(folder).as_posix(), record["cost"], record["device"]["usd_per_hour"]
        if not math.isclose(cost["usd"], cost["device_hours"] * price, rel_tol=1e-9):
            yield f"{name}: ${cost['usd']} is not {cost['device_hours']} device-hours at ${price}"
        if not 0 < cost["seconds"] <= wall_s:
            yield f"{name}: {cost['seconds']:.1f} s are billed, and the commands took {wall_s:.1f}"
        curve = record["loss_curve"]
        if [row["batch"] for row in curve] != list(range(1, len(curve) + 1)):
            yield f"{name}: a batch is counted twice or not at all"
        devices = record["device"]["count"]
        if curve and not math.isclose(cost["device_hours"], cost["seconds"] * devices / 3600, rel_tol=1e-9):
            yield f"{name}: {cost['device_hours']} device-hours are not {cost['seconds']} s on {devices} devices"
