import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipe import records
from recipe.cost.prices import Price
from recipe.errors import UserError
from recipe.records import new_record, provenance, read_record, write_record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def record():
    return new_record(
        kind="pretrain",
        name="tiny",
        model="mosaic_bert",
        config={"out": "runs/tiny"},
        device=records.device("cpu", "AMD EPYC", 2, Price(0.05, "config: cost.usd_per_hour")),
        backends={"attention": "sdpa"},
        parameters=7,
    )


def test_a_record_comes_back_as_it_was_written(tmp_path, record):
    file = write_record(tmp_path / "deep" / "run", record)
    assert file == tmp_path / "deep" / "run" / "run.json"
    assert read_record(file) == read_record(file.parent) == record


def test_what_is_not_finite_becomes_null_and_other_libraries_numbers_become_plain(tmp_path, record):
    record["loss_curve"] = [
        {"loss": float("nan"), "mfu": float("inf"), "lr": np.float32(0.5), "tokens": np.int64(2**40)}
    ]
    record["tokens"] = np.int32(5)
    text = write_record(tmp_path, record).read_text()
    assert "NaN" not in text and "Infinity" not in text
    back = read_record(tmp_path)
    assert back["loss_curve"] == [{"loss": None, "mfu": None, "lr": 0.5, "tokens": 2**40}]
    assert back["tokens"] == 5


def test_a_failed_write_leaves_the_old_record_and_no_litter(tmp_path, record):
    write_record(tmp_path, record)
    spoilt = copy.deepcopy(record)
    spoilt["backends"] = {"model": object()}
    with pytest.raises(TypeError, match="object"):
        write_record(tmp_path, spoilt)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_crash_while_replacing_leaves_the_old_record_and_no_litter(tmp_path, record, monkeypatch):
    write_record(tmp_path, record)

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_record(tmp_path, {**record, "tokens": 99})
    assert read_record(tmp_path)["tokens"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_record_that_no_reader_would_take_is_not_written(tmp_path, record):
    del record["cost"]["usd"]
    with pytest.raises(AssertionError, match="cost.usd"):
        write_record(tmp_path, record)
    assert not list(tmp_path.iterdir())


def test_a_missing_record_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot read it"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "run.json:1: not valid JSON"),
        (b'{\n "format": 1,\n oops}', "run.json:3: not valid JSON"),
        (b"[1, 2]", "not the record of a run"),
        (b"{}", "no `format`"),
        (b'{"format": 3}', "format 3, of an unnamed version, but this version reads formats 1 to 2; update it"),
        (
            b'{"format": 3, "provenance": {"version": "9.9.0", "commit": "0123456789abcdef"}}',
            "format 3, written by bert-recipe 9.9.0 at commit 0123456789, but this version",
        ),
        (b'{"format": "2"}', "format '2'"),
        (b'{"format": 1}', "`kind` is missing"),
        (b'{"format": 1, "device": 7}', "`kind` is missing"),
        (b'{"format": 2}', "`kind` is missing"),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_an_invalid_record_is_one_line_with_the_file(tmp_path, content, says):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_record(tmp_path)
    assert str(tmp_path / "run.json") in str(error.value) and "\n" not in str(error.value)


PAIRS = {
    "score": 50.0,
    "method": "m",
    "part": "reported",
    "max_pairs": 0,
    "tuning_pairs": 40,
    "inputs": {},
    "fields": {},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("glue"), "`glue` is missing"),
        (lambda r: r.update(config="a.yaml"), "`config` is a str"),
        (lambda r: r["device"].pop("price_source"), "`device.price_source` is missing"),
        (lambda r: r["device"].pop("price_row"), "`device.price_row` is missing"),
        (lambda r: r.pop("trunk"), "`trunk` is missing"),
        (lambda r: r["cost"].update(usd=None), "`cost.usd` is a NoneType"),
        (lambda r: r.update(glue={"benchmark": "GLUE"}), "`glue.protocol` is missing"),
        (
            lambda r: r.update(
                glue={"benchmark": "GLUE", "protocol": {}, "tasks": {"RTE": {"init": "mnli"}}, "absent": [], "of": 8}
            ),
            "`glue.tasks.RTE` lacks",
        ),
        (lambda r: r.update(pairs={"score": 50.0}), "`pairs.method` is missing"),
        (
            lambda r: r.update(pairs=PAIRS | {"paradigms": {"DocWord": {"pairs": 9}}}),
            "`pairs.paradigms.DocWord` must hold",
        ),
        (lambda r: r.update(pairs=1), "`pairs` is a int"),
        (lambda r: r["config"].update(model=2**31), "`config.model` is a int"),
        (lambda r: r["config"].update(model={"hidden_size": []}), "`config.model.hidden_size` is a list"),
        (lambda r: r.update(eval={"loss": "x"}), "`eval.loss` is a str"),
        (lambda r: r.update(batches=float("nan"), eval={"loss": 1.0}), "`batches` is a float"),
        (lambda r: r.update(trunk={"": 0}), "`trunk.cost` is missing"),
    ],
)
def test_the_keys_that_readers_need_are_checked(tmp_path, record, change, says):
    change(record)
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=says):
        read_record(tmp_path)


def as_format_1(record, price_source):
    """What the version before this format wrote."""
    device = {key: value for key, value in record["device"].items() if key != "price_row"}
    kept = {key: value for key, value in record.items() if key not in ("trunk", "dataset")}
    return {**kept, "format": 1, "device": {**device, "price_source": price_source}}


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("yamls/prices.yaml: h200", "h200"),
        ("C: my prices.yaml: a: b", "b"),
        ("config: cost.usd_per_hour", None),
        ("test", None),
    ],
)
def test_a_record_of_format_1_is_read_as_one_of_this_format(tmp_path, record, source, row):
    (tmp_path / "run.json").write_text(json.dumps(as_format_1(record, source)))
    read = read_record(tmp_path)
    assert read == {**record, "device": {**record["device"], "price_source": source, "price_row": row}}
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 1  # reading changes no file
    write_record(tmp_path, read)
    assert json.loads((tmp_path / "run.json").read_text())["format"] == records.FORMAT and read_record(tmp_path) == read


def test_a_branch_of_format_1_keeps_its_trunk(tmp_path, record):
    trunk = {"run": "runs/trunk", "batch": 3, "tokens": 9, "cost": record["cost"]}
    (tmp_path / "run.json").write_text(json.dumps({**as_format_1(record, "test"), "trunk": trunk}))
    assert read_record(tmp_path)["trunk"] == trunk


def test_every_committed_record_is_read_and_keeps_what_it_holds():
    files = sorted((ROOT / "benchmarks" / "results").rglob(records.FILE_NAME))
    assert len(files) >= 46
    for file in files:
        written, read = json.loads(file.read_text(encoding="utf-8")), read_record(file)
        assert read["format"] == records.FORMAT and read["device"]["price_row"] == "cpu-core", file
        assert read | {key: written[key] for key in written} | {"device": read["device"], "format": 2} == read
        assert read["device"] | written["device"] == read["device"]


def test_the_projects_name_is_the_one_that_is_installed():
    assert f'\nname = "{records.PACKAGE}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


def test_provenance_knows_the_commit_and_whether_the_code_was_changed(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("a = 1\n")
    assert provenance(tmp_path)["commit"] is None  # a checkout without a commit
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "my.yaml").write_text("untracked: true\n")
    clean = provenance(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "code.py").write_text("a = 2\n")
    changed = provenance(tmp_path)
    assert changed["commit"] == clean["commit"] and changed["dirty"] is True


def test_an_installed_copy_does_not_claim_the_commit_of_the_repository_around_it(tmp_path):
    git(tmp_path, "init")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    state = provenance(inside)
    assert state["commit"] is None and state["dirty"] is None


def test_a_copy_without_git_says_which_commit_it_was_made_of(tmp_path, monkeypatch):
    for text, expected in (("0123abc\n", "0123abc"), ("main\n", None), ("", None)):
        (tmp_path / records.COMMIT).write_text(text)
        state = provenance(tmp_path)
        assert (state["commit"], state["dirty"]) == (expected, None)
    (tmp_path / records.COMMIT).write_text("0123abc\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    assert len(provenance(tmp_path)["commit"]) == 40, "where git answers, nothing else is asked"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance(tmp_path)["commit"] == "0123abc"


def test_provenance_names_versions_and_says_what_is_not_installed():
    from importlib.metadata import version

    state = provenance()
    assert state["packages"]["numpy"] == version("numpy")
    assert set(state["packages"]) == set(records.PACKAGES)
    assert state["started"].endswith("+00:00") and state["python"] == sys.version.split()[0]


def test_the_cost_side_needs_none_of_the_training_libraries():
    code = (
        "import sys\n"
        "for name in ('torch', 'composer', 'streaming', 'transformers', 'numpy', 'omegaconf'):\n"
        "    sys.modules[name] = None\n"
        "import recipe.cost.prices, recipe.cost.frontier, recipe.records\n"
        "print(recipe.records.provenance()['packages']['torch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
