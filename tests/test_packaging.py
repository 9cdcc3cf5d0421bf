"""The project as it is installed: its commands from any folder, what ships with it, and a neighbour of the same name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recipe import shipped
from recipe.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: which files are the project's is not known")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def elsewhere(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=300
    )


def test_what_ships_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("yamls/prices.yaml") == ROOT / "yamls" / "prices.yaml"
    assert shipped.find("yamls/none.yaml") == Path("yamls/none.yaml")
    assert shipped.find("mine.yaml") == Path("mine.yaml") and shipped.find("README.md") == Path("README.md")
    (tmp_path / "yamls").mkdir()
    (tmp_path / "yamls" / "prices.yaml").write_text("mine")
    assert shipped.find("yamls/prices.yaml") == Path("yamls/prices.yaml"), "what is here comes first"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that a wheel of the tracked files was installed into, no checkout anywhere near."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_all_that_runs(installed):
    there = {file.relative_to(installed).as_posix() for file in installed.rglob("*") if file.is_file()}
    wanted = {
        name
        for name in tracked()
        if name.startswith(("recipe/", "kernels/", "yamls/"))
        or (name.startswith("benchmarks/") and name.endswith((".py", "run.json")))
    }
    assert len(wanted) > 150 and wanted <= there
    assert not [name for name in there if name.startswith(("tests", "docs"))]


def test_an_installed_wheel_plans_from_its_own_records(installed, tmp_path):
    """In a folder with nothing in it: price table, YAML and recorded runs are the wheel's own."""
    words = ("-m", "recipe.plan", "--gpu", "h200", "--count", "1", "--budget-usd", "20")
    done = elsewhere(tmp_path, *words, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "$20" in done.stdout and "mosaic_bert on 1 GPUs, h200" in done.stdout
    code = "from recipe import records; import json; print(json.dumps(records.provenance()))"
    made = json.loads(elsewhere(tmp_path, "-c", code, PYTHONPATH=str(installed)).stdout)
    assert (made["commit"], made["dirty"]) == (None, None), "a wheel is no checkout"
    assert list(tmp_path.iterdir()) == []


def test_an_installed_wheel_draws_its_own_records(installed, tmp_path):
    """The page's template is the wheel's own too."""
    words = ("-m", "recipe.pareto", "benchmarks/results/demo/runs", "--measure", "pairs", "--out", "drawn")
    done = elsewhere(tmp_path, *words, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "<h2>Every number</h2>" in (tmp_path / "drawn" / "pairs.html").read_text("utf-8")


def test_the_checkout_runs_from_any_folder(tmp_path, tiny_dataset):
    """`make setup` installs it, editable: no path is set here."""
    done = elsewhere(tmp_path, "-m", "recipe")
    assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS), done.stderr
    small = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64"]
    small = [*(f"model.{word}" for word in small), "data.eval_documents=8", "batch_size=4", "duration=2ba"]
    words = [
        "-m",
        "recipe.train",
        "yamls/demo/train.yaml",
        f"data.path={tiny_dataset}",
        "out=run",
        "device=cpu",
        *small,
    ]
    done = elsewhere(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished" and record["device"]["price_source"].startswith("yamls/prices.yaml: ")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert record["provenance"]["commit"] == (commit or None)
    done = elsewhere(
        tmp_path,
        "-m",
        "recipe.plan",
        "--gpu",
        "cpu-core",
        "--count",
        "1",
        "--budget-usd",
        "0.1",
        "--record",
        "run",
        "--model",
        "yamls/demo/train.yaml",
    )
    assert done.returncode == 0 and "measured on" in done.stdout, done.stderr


NEIGHBOUR = """
import kernels
import torch
from transformers import AutoModel, BertConfig
from transformers.utils import is_kernels_available
import transformers.integrations.hub_kernels
assert not is_kernels_available(), "this project's kernels taken for Hugging Face's"
for attention in ("eager", "sdpa"):
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    model = AutoModel.from_config(config, attn_implementation=attention)
    assert model(torch.arange(8)[None]).last_hidden_state.shape == (1, 8, 32)
print(kernels.__file__)
"""


def test_transformers_is_not_misled_by_a_package_named_kernels(tmp_path):
    """Hugging Face has one of that name, for which transformers probes; `make test-transformers-latest` asks the newest."""
    done = elsewhere(tmp_path, "-c", NEIGHBOUR)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "kernels"
