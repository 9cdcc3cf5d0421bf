"""The closed config: every mistake is one line with its remedy, and every YAML file of the project loads."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipe.__main__ import COMMANDS
from recipe.config import (
    FinetuneConfig,
    GlueConfig,
    PairsConfig,
    PrepareConfig,
    RetrieveConfig,
    SweepConfig,
    TrainConfig,
    load,
    run_main,
    to_dict,
)
from recipe.errors import UserError
from recipe.settings import describe
from tests.mistakes import refused

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    "data": PrepareConfig,
    "pretrain": TrainConfig,
    "glue": GlueConfig,
    "finetune": FinetuneConfig,
    "retrieve": RetrieveConfig,
    "pairs": PairsConfig,
    "sweep": SweepConfig,
}
TRAIN = "out: runs/x\ndata:\n  path: data/y\n"
PREPARE = "out: data/y\ntrain:\n  files: [a.txt]\n"


@pytest.fixture
def write(tmp_path) -> Callable[[str | bytes], str]:
    def write_file(text: str | bytes) -> str:
        file = tmp_path / "config.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write_file


def refusal(schema: type, path: str, *words: str) -> str:
    return refused(load, schema, path, words)


def test_defaults_are_the_papers(write):
    config = load(TrainConfig, write(TRAIN))
    assert (config.out, config.data.path) == ("runs/x", "data/y")
    assert config == TrainConfig(out="runs/x", data=dataclasses.replace(TrainConfig().data, path="data/y"))
    assert (config.batch_size, config.duration, config.seed) == (4096, "70000ba", 17)
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.eps) == (5e-4, [0.9, 0.98], 1e-6)
    assert (config.optimizer.weight_decay, config.schedule.warmup, config.schedule.final_lr) == (1e-5, 0.06, 0.02)
    assert (config.data.mask_rate, config.data.eval_mask_rate, config.data.sequence_length) == (0.30, 0.15, 128)
    assert to_dict(config)["model"]["hidden_size"] == 768


@pytest.mark.parametrize(
    ("schema", "text", "key", "near"),
    [
        (TrainConfig, TRAIN + "optimzer: {lr: 1}", "optimzer", "optimizer"),
        (TrainConfig, TRAIN + "optimizer: {lrr: 1}", "optimizer.lrr", "optimizer.lr"),
        (TrainConfig, TRAIN + "  pth: x", "data.pth", "data.path"),
        (TrainConfig, TRAIN + "Batch_size: 3", "Batch_size", "batch_size"),
        (TrainConfig, TRAIN + "cost: {usd_per_hours: 3}", "cost.usd_per_hours", "cost.usd_per_hour"),
        (PrepareConfig, PREPARE + "validation: {filez: [b.txt]}", "validation.filez", "validation.files"),
        (PrepareConfig, PREPARE + "tokenizer: {vocabsize: 9}", "tokenizer.vocabsize", "tokenizer.vocab_size"),
        (GlueConfig, "checkpoint: x\ndata: y\ntask: [CoLA]", "task", "tasks"),
    ],
)
def test_unknown_key_in_the_file(write, schema, text, key, near):
    path = write(text)
    assert refusal(schema, path) == f"{path}: unknown key `{key}`; did you mean `{near}`?"


def test_unknown_key_without_a_near_one_lists_what_there_is(write):
    message = refusal(TrainConfig, write(TRAIN + "zzz: 1"))
    assert "unknown key `zzz`" in message
    assert all(field.name in message for field in dataclasses.fields(TrainConfig))
    assert "unknown key `3`" in refusal(TrainConfig, write(TRAIN + "3: x"))


@pytest.mark.parametrize(
    ("schema", "text", "word", "near"),
    [
        (TrainConfig, TRAIN, "batch_sizze=8", "batch_size"),
        (TrainConfig, TRAIN, "--batch_size=8", "batch_size"),
        (TrainConfig, TRAIN, "optimizer.lrr=1", "optimizer.lr"),
        (PrepareConfig, PREPARE, "validation.filez=[b]", "validation.files"),
    ],
)
def test_unknown_key_on_the_command_line(write, schema, text, word, near):
    message = refusal(schema, write(text), word)
    assert message == f"command line: unknown key `{word.split('=')[0]}`; did you mean `{near}`?"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: {hidden_size: abc}", "model.hidden_size"),
        ("model: {hidden_size: 3.5}", "model.hidden_size"),
        ("model: {hidden_size: true}", "model.hidden_size"),
        ("model: {hidden_size: [3]}", "model.hidden_size"),
        ("model: {vocab_size: many}", "model.vocab_size"),
        ("batch_size: 1e3", "batch_size"),
        ("batch_size:", "batch_size"),
        ("batch_size: null", "batch_size"),
        ("autoresume: maybe", "autoresume"),
        ("optimizer: {betas: 0.9}", "optimizer.betas"),
        ("optimizer: {betas: [0.9, x]}", "optimizer.betas[1]"),
        ("optimizer: {betas: [0.9, null]}", "optimizer.betas[1]"),
        ("optimizer: {lr: fast}", "optimizer.lr"),
        ("optimizer: null", "optimizer"),
        ("duration: [3ba]", "duration"),
    ],
)
def test_wrong_type(write, text, key):
    path = write(TRAIN + text)
    message = refusal(TrainConfig, path)
    assert message.startswith(f"{path}: `{key}`: ")


@pytest.mark.parametrize("text", ["optimizer: 3", "optimizer: [1]", "optimizer: adam"])
def test_a_value_where_a_group_belongs_is_named(write, text):
    assert "`optimizer`" in refusal(TrainConfig, write(TRAIN + text))
    assert "`optimizer`" in refusal(TrainConfig, write(TRAIN), "optimizer=3")


def test_a_group_where_a_list_of_text_belongs(write):
    assert "files" in refusal(PrepareConfig, write("out: x\ntrain: {files: [{a.txt: b}]}"))
    assert "`train.files`" in refusal(PrepareConfig, write("out: x\ntrain: {files: a.txt}"))
    assert "`validation.files`" in refusal(PrepareConfig, write(PREPARE + "validation: {files: b.txt}"))
    message = refusal(PrepareConfig, write(PREPARE + "validation: {max_documents: few}"))
    assert "`validation.max_documents`" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [("", "data.path"), ("out: x", "data.path"), ("data: {path: y}", "out"), ("out: ???\ndata: {path: y}", "out")],
)
def test_missing_value(write, text, key):
    path = write(text)
    assert refusal(TrainConfig, path) == f"{path}: `{key}` has no value; add it to the file or say {key}=..."
    assert load(TrainConfig, path, ["out=x", "data.path=y"]).data.path == "y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b", "expected `key: value` lines"),
        ("a: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\tout: x", "not valid YAML"),
        ("3", "not valid YAML"),
        (b"\xff\xfe\x00out", "not valid YAML"),
        (TRAIN + "out: z", "duplicate key out"),
        ("out: *nothing", "not valid YAML"),
        ("out: '${'\ndata: {path: y}", "not valid YAML"),
        ("out: ${nothing}\ndata: {path: y}", "`out`"),
        ("just text", "just text"),
    ],
)
def test_bad_yaml(write, text, expected):
    path = write(text)
    message = refusal(TrainConfig, path)
    assert message.startswith(f"{path}: ") and expected in message


def test_no_such_file(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        assert refusal(TrainConfig, str(path)).startswith(f"{path}: no such file; ")


@pytest.mark.parametrize("word", ["word", "=x", "=", "==x", ""])
def test_a_word_that_is_no_setting(write, word):
    assert refusal(TrainConfig, write(TRAIN), word) == f"`{word}`: settings on the command line have the form key=value"


@pytest.mark.parametrize("word", ["batch_size=[1", "out={", 'out="x', "out=${"])
def test_a_value_that_is_no_yaml(write, word):
    assert refusal(TrainConfig, write(TRAIN), word).startswith("command line: ")


@pytest.mark.parametrize(
    "word", ["optimizer.betas[0]=0.8", "optimizer.betas.0=0.8", "optimizer.betas[9]=1", "data.path.x=1", "data=null"]
)
def test_a_place_that_cannot_be_set(write, word):
    key = word.split("=")[0].split("[")[0].removesuffix(".0").removesuffix(".x")
    assert f"`{key}" in refusal(TrainConfig, write(TRAIN), word)


def test_a_bad_word_is_not_blamed_on_the_file(write):
    path = write(TRAIN)
    message = refusal(TrainConfig, path, "data.workers=two")
    assert "`data.workers`" in message and not message.startswith(path)


def test_words_win_over_the_file(write):
    path = write(TRAIN + "batch_size: 8\noptimizer: {lr: 1e-3, eps: 1e-8}\n")
    config = load(TrainConfig, path, ["batch_size=16", "optimizer.lr=2e-3", "out=a=b", "autoresume=true"])
    assert (config.batch_size, config.optimizer.lr, config.optimizer.eps) == (16, 2e-3, 1e-8)
    assert config.out == "a=b" and config.autoresume is True
    assert load(TrainConfig, path, ["batch_size=16", "batch_size=32"]).batch_size == 32
    assert load(TrainConfig, path).batch_size == 8


def test_lists(write):
    path = write(TRAIN)
    assert load(TrainConfig, path, ["optimizer.betas=[0.8,0.99]"]).optimizer.betas == [0.8, 0.99]
    config = load(PrepareConfig, write(PREPARE), ["train.files=[b.txt,c-*.json.gz]"])
    assert config.train.files == ["b.txt", "c-*.json.gz"] and type(config.train.files) is list
    assert load(GlueConfig, write("checkpoint: x\ndata: y\ntasks: [CoLA]"), ["tasks=[]"]).tasks == []


def test_none_for_what_is_optional(write):
    path = write(TRAIN + "model: {vocab_size: 8192}\ncost: {usd_per_hour: 3}")
    config = load(TrainConfig, path, ["model.vocab_size=null"])
    assert config.model.vocab_size is None and config.cost.usd_per_hour == 3.0
    path = write(PREPARE + "validation: {files: [b.txt]}")
    assert load(PrepareConfig, path).validation.files == ["b.txt"]
    assert load(PrepareConfig, path, ["validation=null"]).validation is None
    assert load(PrepareConfig, write(PREPARE + "validation: null")).validation is None
    assert load(PrepareConfig, write(PREPARE), ["validation.files=[c.txt]"]).validation.files == ["c.txt"]


def test_configs_share_nothing(write):
    first, second = (load(TrainConfig, write(TRAIN)) for _ in range(2))
    first.optimizer.betas[0] = 0.5
    assert second.optimizer.betas[0] == load(TrainConfig, write(TRAIN)).optimizer.betas[0] == 0.9


def test_exit_status(write, capsys):
    seen = []
    assert run_main(TrainConfig, seen.append, [write(TRAIN), "batch_size=8"]) == 0
    assert [config.batch_size for config in seen] == [8]
    assert capsys.readouterr() == ("", "")

    def fail(config: TrainConfig) -> None:
        raise UserError("out=x holds a run already")

    def check(main: Callable, *argv: str) -> str:
        assert run_main(TrainConfig, main, argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        return err

    assert check(fail, write(TRAIN)) == "error: out=x holds a run already\n"
    assert "batch_sizze" in check(seen.append, write(TRAIN), "batch_sizze=8")
    assert "absent.yaml" in check(seen.append, "absent.yaml")
    assert "not valid YAML" in check(seen.append, write("a: ["))
    assert len(seen) == 1


def test_only_a_users_mistake_is_swallowed(write, capsys):
    def crash(config: TrainConfig) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(TrainConfig, crash, [write(TRAIN)])

    def interrupt(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    assert run_main(TrainConfig, interrupt, [write(TRAIN)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_usage(schema, capsys):
    def never(config: object) -> None:
        raise AssertionError

    for argv, status in (([], 2), (["--help"], 0), (["-h"], 0)):
        assert run_main(schema, never, argv) == status
        out = capsys.readouterr().out
        assert out.startswith("usage: ")
        assert out.endswith(describe(schema) + "\n")


def test_the_command_line_itself(write, tmp_path):
    """A whole process: one line on stderr, exit status 2, nothing written."""
    path = write(PREPARE + "tokenizer: {vocabsize: 9}")
    done = subprocess.run(
        [sys.executable, "-m", "recipe.prepare", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {path}: unknown key `tokenizer.vocabsize`; did you mean `tokenizer.vocab_size`?\n"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_the_commands_are_listed_a_line_each():
    done = subprocess.run([sys.executable, "-m", "recipe"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    for line in lines:
        module, text = line.split(maxsplit=1)
        place = ROOT / module.replace(".", "/")
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        assert '__name__ == "__main__"' in file.read_text() and len(text) > 20
    entry_points = {
        f"{file.parent.name}.{file.stem}"
        for folder in ("recipe", "benchmarks", "kernels")
        for file in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in file.read_text() and file.stem != "__main__"
    } | {f"recipe.{file.parent.name}" for file in (ROOT / "recipe").glob("*/__main__.py")}
    assert set(COMMANDS) <= entry_points
    assert {name for name in entry_points if name.startswith("recipe.")} <= set(COMMANDS)


def yaml_files() -> list[Path]:
    return sorted((ROOT / "yamls").rglob("*.y*ml"))


@pytest.mark.parametrize(
    "file", [f for f in yaml_files() if f.parent.name in SCHEMAS], ids=lambda f: f"{f.parent.name}/{f.name}"
)
def test_every_yaml_loads(file):
    schema = SCHEMAS[file.parent.name]
    words = (
        ["checkpoint=runs/x"] if schema in (GlueConfig, PairsConfig, FinetuneConfig, RetrieveConfig) else []
    )  # given on the command line, as the files say
    config = load(schema, str(file), words)
    assert isinstance(config, schema)
    assert "#" in file.read_text().splitlines()[0], "the first line says what the file is for"


def test_no_yaml_is_left_out():
    assert yaml_files()
    others = {f for f in yaml_files() if f.parent.name not in SCHEMAS and f.parent.name != "demo"}
    assert others == {ROOT / "yamls" / "prices.yaml"}


@pytest.mark.parametrize(
    "file",
    [f for f in yaml_files() if f.parent.name in ("pretrain", "glue", "finetune", "retrieve", "pairs")],
    ids=lambda f: f.name,
)
def test_a_yaml_shows_only_what_differs_from_the_defaults(file):
    from omegaconf import OmegaConf

    def repeated(values: dict, defaults: dict, prefix: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            if isinstance(value, dict):
                found += repeated(value, defaults[key], f"{prefix}{key}.")
            elif value == defaults[key]:
                found.append(prefix + key)
        return found

    stated = OmegaConf.to_container(OmegaConf.load(file))
    assert repeated(stated, to_dict(SCHEMAS[file.parent.name]())) == []
