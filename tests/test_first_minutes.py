"""README's commands as a newcomer has them: in a clone with nothing beside it, offline, as printed save words for small sizes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recipe import shipped
from recipe.config import (
    ExportConfig,
    FinetuneConfig,
    GlueConfig,
    PairsConfig,
    PrepareConfig,
    RetrieveConfig,
    SweepConfig,
    TrainConfig,
    load,
)
from recipe.config.loading import load_words
from recipe.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
SCHEMAS = {
    "recipe.prepare": PrepareConfig,
    "recipe.train": TrainConfig,
    "recipe.glue": GlueConfig,
    "recipe.finetune": FinetuneConfig,
    "recipe.pairs": PairsConfig,
    "recipe.pareto": SweepConfig,
    "recipe.retrieve": RetrieveConfig,
}
SMALL = {
    "recipe.prepare": ["processes=1", "tokenizer.vocab_size=600"],
    "recipe.train": ["duration=4ba", "data.eval_documents=8", "data.sequence_length=64", "model.num_hidden_layers=1",
                     "model.hidden_size=64", "model.num_attention_heads=2", "model.intermediate_size=128"],
    "recipe.pairs": ["max_pairs=8"],
}  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """The words of every command `python -m ...` of a page, without its comment."""
    lines = re.findall(r"^ {4}((?:python|composer -n \d+) -m .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def block(marker: str) -> list[list[str]]:
    """The commands of README that follow `<!-- marker -->`."""
    return commands(PAGES["README.md"].split(f"<!-- {marker} -->\n\n")[1].split("\n\n")[0])


def project_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: which files are the project's is not known")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture
def clone(tmp_path) -> Path:
    """The project's files and nothing beside them."""
    for name in project_files():
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return tmp_path / "clone"


@pytest.mark.timeout(1500)  # a minute or two of one core, and often on a busy one
def test_readme_leads_from_a_clone_to_scored_encoders(clone):
    assert len(block("map")) == 4 and len(block("own")) == 4
    environment = os.environ | {"PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(words: list[str]) -> str:
        python, dash_m, module, *rest = words
        assert (python, dash_m) == ("python", "-m")
        # Of the embedded corpus a few documents make the dataset; the pairs are made of all of it whatever the words.
        few = ["train.max_documents=800"] if any("docstrings" in word for word in rest) else []
        command = [sys.executable, "-m", module, *rest, *SMALL.get(module, []), *few]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    listed = run(["python", "-m", "recipe"])
    assert all(words[2] in listed for words in block("map") + block("own"))
    where = [sys.executable, "-c", "import recipe; print(recipe.__file__)"]
    found = subprocess.run(where, cwd=clone, env=environment, capture_output=True, text=True).stdout.strip()
    assert found == str(clone / "recipe/__init__.py"), "it is the clone that runs"
    *first, _ = block("map")
    *own, plot = block("own")
    assert plot == block("map")[-1]
    for words in first:
        run(words)
    text = "\n\n".join(f"Letter {i}: the {i % 7}th ship left harbour {i % 13} before noon." for i in range(600))
    (clone / "my.txt").write_text(text, "utf-8")
    for words in own:
        run(words)
    for name, documents in (("small", 800), ("mine", 600)):
        record = json.loads((clone / "runs" / name / "run.json").read_text())
        assert record["status"] == "finished" and record["cost"]["usd"] > 0 and record["pairs"]["score"] > 0, name
        info = json.loads((clone / record["config"]["data"]["path"] / "dataset.json").read_text())
        assert sum(split["documents"] for split in info["splits"].values()) == documents
    table = run(plot)
    page = (clone / "runs/pareto/pairs.html").read_text("utf-8")
    assert all(name in table and name in page for name in ("small", "mine"))


def test_only_tests_look_beside_the_checkout():
    beside = [
        name
        for name in project_files()
        if not name.startswith(("tests/", "benchmarks/results/")) and b"../shared" in (ROOT / name).read_bytes()
    ]
    assert not beside


def written_by_an_earlier_row() -> set[str]:
    """What the preparations under yamls/ write, and `make demo`."""
    rows = [load(PrepareConfig, str(file)) for file in (ROOT / "yamls/data").glob("*.yaml")]
    return {place for row in rows for place in (row.out, row.tasks) if place} | {"demo/data"}


YAMLS = {
    file: schema
    for folder, schema in (
        ("data", PrepareConfig), ("pretrain", TrainConfig), ("demo", TrainConfig), ("glue", GlueConfig), ("pairs", PairsConfig),
        ("finetune", FinetuneConfig), ("retrieve", RetrieveConfig), ("sweep", SweepConfig),
    )
    for file in sorted((ROOT / "yamls" / folder).glob("*.yaml"))
}  # fmt: skip


def test_every_yaml_is_of_a_known_kind():
    found = set((ROOT / "yamls").rglob("*.yaml")) - {ROOT / "yamls/prices.yaml"}
    assert found == set(YAMLS)


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_yaml_reads_what_a_newcomer_has(file):
    """The embedded corpus, a hub name, what an earlier row wrote, or a path of the user's that a comment explains."""
    tree, text = yaml.safe_load(file.read_text()), file.read_text()
    explained = {
        line.split("#")[0].split(": ")[1].strip() for line in text.splitlines() if re.match(r" *\w+: .*#", line)
    }
    if YAMLS[file] is PrepareConfig:
        source = tree["train"]
        assert set(source) & {"embedded", "dataset"} or str(source["files"]).replace("'", "") in explained
        assert not tree.get("tokenizer", {}).get("vocab_file")
    elif YAMLS[file] is SweepConfig:  # its models are rows of their own
        assert all((ROOT / model.split()[0]) in YAMLS for model in tree["models"])
    else:
        read = tree["data"]["path"] if YAMLS[file] is TrainConfig else tree["data"]
        assert read in written_by_an_earlier_row() | explained


@pytest.mark.parametrize("old", shipped.MOVED)
def test_a_file_that_moved_is_named(old, tmp_path, monkeypatch):
    assert (ROOT / shipped.MOVED[old].split(",")[0]).is_file() and not (ROOT / old).exists()
    monkeypatch.chdir(tmp_path)
    for path in (old, str(ROOT / old)):
        with pytest.raises(UserError, match=f"^{re.escape(path)}: is now {shipped.MOVED[old]}$"):
            load(TrainConfig, path)


def test_a_command_that_moved_still_runs_and_says_its_new_name(tmp_path):
    command = [sys.executable, "-m", "benchmarks.pareto", "plot", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    first, second = done.stderr.splitlines()
    assert first.startswith("benchmarks.pareto is now recipe.pareto") and "no such file or folder" in second
    assert done.returncode == 2


PRINTED = [(page, words) for page, text in PAGES.items() for words in commands(text)]


@pytest.mark.parametrize(
    ("page", "words"), PRINTED, ids=lambda value: value if isinstance(value, str) else shlex.join(value)[:80]
)
def test_printed_commands_are_understood(page, words):
    """The module is there; its YAML and its key=value words make a config."""
    module, *rest = words[words.index("-m") + 1 :]
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() or (
        ROOT / module.replace(".", "/") / "__main__.py"
    ).is_file()
    files = [word for word in rest if word.endswith(".yaml") and "=" not in word and not word.startswith("my-")]
    assert all((ROOT / word).is_file() for word in files)
    if module in SCHEMAS and files:
        load(SCHEMAS[module], str(ROOT / files[0]), [word for word in rest if "=" in word])
        return
    if module == "recipe.export":
        load_words(ExportConfig, rest, ["checkpoint"])
        return
    if module == "recipe.prepare":
        assert rest[0] == "inspect"
        return
    flags = {word.split("=")[0] for word in rest if word.startswith("--")}
    if flags:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert all(f'"{flag}"' in source or flag == "--help" for flag in flags)
