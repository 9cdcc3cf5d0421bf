"""`benchmarks/gpu.sh` from end to end, where a processor plays a GPU's bare machine: no git, no compiler, no home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOOLS = ("bash", "dirname", "mkdir", "mktemp", "touch")
# Those left out have the same commands with other sizes; tests/benchmarks/test_gpu_parts.py reads their words.
PARTS = ("machine", "loss", "kernels-base", "step-128", "tests")


def copy_of_the_project(folder: Path) -> None:
    for name in ("benchmarks", "kernels", "recipe"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    shutil.copytree(ROOT / "tests/kernels", folder / "tests/kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)


def a_wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "brought-1.0-py3-none-any.whl", "w") as wheel:
        info = "brought-1.0.dist-info"
        wheel.writestr("brought.py", "x = 1\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\nRequires-Dist: absent>=9\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_rehearsal(tmp_path):
    project, tools, cache, out = (tmp_path / name for name in ("project", "tools", "cache", "out"))
    copy_of_the_project(project)
    a_wheel(project / "wheels")
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name))
    environment = {
        "PATH": str(tools), "HOME": "/dev/null/home", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests/benchmarks/bare_machine"),
        "OUT": str(out), "CACHE": str(cache), "COMMIT": COMMIT, "SMALL": "1", "PARTS": " ".join(PARTS),
    }  # fmt: skip
    command = [shutil.which("bash"), str(project / "benchmarks/gpu.sh"), sys.executable]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(os.listdir(out)) == ["results.tar.gz", "summary.txt"]
    summary = (out / "summary.txt").read_text()
    assert [line.split()[2:4] for line in summary.splitlines()[: len(PARTS)]] == [[name, "done,"] for name in PARTS]
    assert (cache / "site/brought.py").is_file(), "installed, although what it asks for is not there"

    with tarfile.open(out / "results.tar.gz") as archive:
        archive.extractall(tmp_path / "all", filter="data")
    logs, results = tmp_path / "all/logs", tmp_path / "all/results"
    assert {file.stem for file in logs.iterdir()} == set(PARTS)
    machine = json.loads((results / "machine.json").read_text())
    assert machine["device"] == "NVIDIA H100 80GB HBM3" and machine["commit"] == COMMIT
    assert machine["driver"] is None and machine["compiler"] is None
    checked = json.loads((results / "loss/check.json").read_text())["rows"]
    assert {row["implementation"] for row in checked} == {"triton"} and not any(row["problem"] for row in checked)

    kernels = json.loads(next((results / "kernels-base").glob("*.json")).read_text())
    assert kernels["provenance"]["commit"] == COMMIT
    ours = {
        row["kernel"]: row for row in kernels["rows"] if row["implementation"] == "triton" and row["mode"] == "both"
    }
    assert set(ours) == {"attention", "glu", "layer_norm", "cross_entropy", "padding"}
    rivals = {row["kernel"] for row in kernels["rows"] if row["ours_is"] and row["mode"] == "both"}
    assert rivals == set(ours) and all(row["p50_ms"] > 0 for row in ours.values())

    case = json.loads((results / "step-128.json").read_text())["cases"][0]
    rows = {row["name"]: row for row in case["rows"]}
    assert rows["this"]["problem"] is None and rows["this"]["note"] == "triton, triton"
    assert (
        rows["this"]["tokens_per_s"] > 0 and rows["hf eager"]["problem"] == "the package transformers is not installed"
    )
    assert all(0 < row["memory_share"] < 1 for row in rows.values())
    assert "passed" in (logs / "tests.log").read_text() and (results / "tests.xml").is_file()
