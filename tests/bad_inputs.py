"""`python -m tests.bad_inputs OUT [some]`: bad inputs, each tried on the command that reads it, and the page of what they got.

Every case begins with a copy of the same valid files, in a working folder of its own, so the lines hold no path of a machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from recipe import glue, pairs, pareto, plan, predict, prepare, retrieve, train
from recipe.config import (
    ExportConfig,
    FinetuneConfig,
    GlueConfig,
    PairsConfig,
    PredictConfig,
    PrepareConfig,
    RetrieveConfig,
    TrainConfig,
    run_main,
)
from recipe.corpus import inspection
from recipe.errors import exit_status
from recipe.export import __main__ as export
from recipe.finetune.__main__ import finetune
from recipe.system.quiet import quiet_libraries
from tests.bad_cases import CASES, Case
from tests.fuzz.readers import write_valid
from tests.tiny.configs import PRICES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad-input.md"
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "prepare": lambda words: run_main(PrepareConfig, prepare.prepare, words),
    "inspect": lambda words: exit_status(lambda: inspection.main(words)),
    "train": lambda words: run_main(TrainConfig, train.train, words),
    "glue": lambda words: run_main(GlueConfig, glue.glue, words),
    "finetune": lambda words: run_main(FinetuneConfig, finetune, words),
    "predict": lambda words: run_main(PredictConfig, predict.predict, words, first=("model", "file")),
    "retrieve": lambda words: run_main(RetrieveConfig, retrieve.retrieve, words),
    "pairs": lambda words: run_main(PairsConfig, pairs.pairs, words),
    "export": lambda words: run_main(ExportConfig, export.export, words, first=["checkpoint"]),
    "pareto": pareto.main,
    "plan": plan.main,
}
YAMLS: dict[str, dict[str, Any]] = {
    "prepare": {"out": "made", "train": {"files": ["text.jsonl"]}, "tokenizer": {"vocab_file": "vocab.txt"}, "processes": 1},
    "train": {"out": "new", "data": {"path": "dataset", "sequence_length": 32}, "batch_size": 8, "duration": "2ba",
              "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
              "device": "cpu", "precision": "fp32", "cost": {"prices": "prices.yaml"}},
    "glue": {"checkpoint": "encoder", "data": "glue", "out": "scores", "device": "cpu", "cost": {"usd_per_hour": 1.0}},
    "finetune": {"name": "mine", "checkpoint": "encoder", "data": "own", "train": ["train.csv"], "text": ["text"],
                 "max_length": 16, "out": "tuned", "device": "cpu", "cost": {"usd_per_hour": 1.0}},
    "pairs": {"checkpoint": "encoder", "data": "pairs.jsonl", "out": "scores", "device": "cpu", "cost": {"usd_per_hour": 1.0}},
    "retrieve": {"checkpoint": "encoder", "documents": ["docs.tsv"], "queries": ["queries.tsv"], "judgements": ["grades.tsv"],
                 "out": "found", "device": "cpu"},
    "sweep": {"out": "swept", "models": ["train.yaml"], "budgets": ["2ba"], "pairs": "pairs.yaml"},
}  # fmt: skip


class Result(NamedTuple):
    status: int
    line: str
    made: list[str]  # files that the command left behind


def write_base(folder: Path) -> None:
    """The valid files, and a config for every command."""
    write_valid(folder)
    for name, settings in YAMLS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    shutil.copyfile(PRICES, folder / "prices.yaml")
    (folder / "glue" / "CoLA").mkdir(parents=True)
    for name in ("train", "dev"):
        shutil.copyfile(folder / "CoLA.tsv", folder / "glue" / "CoLA" / f"{name}.tsv")
    (folder / "docs.tsv").write_text("id\ttext\n1\tthe cat\n2\tthe dog\n")
    (folder / "queries.tsv").write_text("id\ttext\na\tcat\n")
    (folder / "grades.tsv").write_text("query\tdocument\tgrade\na\t1\t1\n")
    (folder / "run").mkdir()
    record = json.loads((folder / "runs/one/run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps({**record, "status": "running"}))


def change(folder: Path, name: str, how: Any) -> None:
    """One file of a case: gone (None), another text or bytes, or what a function makes of its bytes."""
    file = folder / name
    if how is None:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        return
    content = how(file.read_bytes() if file.exists() else b"") if callable(how) else how
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        file.unlink(missing_ok=True)
        file.symlink_to(content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def tried(base: Path, words: str, files: dict[str, Any]) -> Result:
    """What a command says of its case."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, before = Path(shutil.copytree(base, Path(scratch) / "files", symlinks=True)), Path.cwd()
        for name, how in files.items():
            change(folder, name, how)
        there = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        said, errors = io.StringIO(), io.StringIO()
        command, *rest = shlex.split(words)
        try:
            os.chdir(folder)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
                try:
                    status = COMMANDS[command](rest)
                except SystemExit as error:  # argparse's
                    status = error.code
        finally:
            os.chdir(before)
        made = sorted({str(path.relative_to(folder)) for path in folder.rglob("*")} - there)
    text = errors.getvalue().replace(os.path.realpath(folder), "FOLDER")
    lines = [line.rpartition("error: ")[2] for line in text.splitlines() if "error: " in line[:40]]
    return Result(status, lines[0] if len(lines) == 1 else f"no one line: {text[-500:]}", made)


HEAD = """# Bad input

{count} bad inputs, each tried on the command that reads it, with files that are valid but for what the row says, and the one line
that it ended with, at exit status 2. Nothing was written. `python -m tests.bad_inputs docs/bad-input.md` tries all of them again
and writes this page, and a test compares every sixth. `tests/fuzz/` reads damaged copies of every kind of file by the hundred.

Code that a folder brings is never run, and no key lets it.
"""


def as_code(text: str) -> str:
    """In a cell of a Markdown table."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def row(base: Path, case: Case) -> str:
    what, words, files = case
    found = tried(base, words, files)
    assert found.status == 2 and not found.made and "no one line" not in found.line, (what, words, found)
    return f"| {what} | {as_code(words)} | {as_code(found.line)} |"


def page(base: Path) -> str:
    lines = [HEAD.format(count=sum(map(len, CASES.values()))).rstrip()]
    for section, cases in CASES.items():
        lines += ["", f"## {section}", "", "| what is wrong | command | its line |", "|---|---|---|"]
        lines += [row(base, case) for case in cases]
    return "\n".join(lines) + "\n"


def some(base: Path) -> str:
    """Every sixth row."""
    cases = [case for cases in CASES.values() for case in cases]
    return "".join(f"{row(base, case)}\n" for case in cases[::6])


def main(out: Path, text_of: Callable[[Path], str]) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(io.StringIO()):
            write_base(Path(scratch))
        out.write_text(text_of(Path(scratch)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), some if "some" in sys.argv[2:] else page)
