"""Who may import what, read from the source, imports inside functions included; and the linter's rules."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.finetune.kinds import KINDS
from recipe.model.architectures import ARCHITECTURES
from recipe.objectives import OBJECTIVES
from recipe.training.averages import AVERAGES
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.parallel import PARALLEL
from recipe.training.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parents[1]

# The only places of these packages; a path that ends in / stands for all below it.
ONLY_IN = {
    "triton": ["kernels/triton/"],
    "flash_attn": ["kernels/attention_backends.py", "recipe/export/modeling_mosaic_bert.py"],
    "xformers": ["kernels/attention_backends.py"],
    "composer": [
        "recipe/training/",
        "recipe/finetune/fit.py",
        "recipe/finetune/jobs.py",
        "recipe/train.py",
    ],
    "streaming": [
        "recipe/data/shards.py",
        "recipe/data/documents.py",
        "recipe/data/storage.py",
        "recipe/data/stream.py",
    ],
    "transformers": [
        "recipe/data/tokenizer.py",
        "recipe/model/huggingface.py",
        "recipe/model/hf_bert.py",
        "recipe/model/electra.py",
        "recipe/model/unpadded.py",
        "recipe/export/",
        "benchmarks/",
    ],
    "onnx": ["recipe/export/"],
    "onnxruntime": ["recipe/export/"],
    "sentence_transformers": ["recipe/export/"],
    "omegaconf": ["recipe/config/loading.py"],
    "filelock": ["recipe/system/files.py"],
    "fcntl": ["recipe/system/files.py", "recipe/corpus/ownership.py"],  # of a folder; a lock that several share
    "tensorboard": [],
    "torch.utils.tensorboard": ["recipe/training/loggers.py"],
    "wandb": ["recipe/training/loggers.py"],
    "mlflow": ["recipe/training/loggers.py"],
    "matplotlib": ["recipe/report/", "benchmarks/", "recipe/corpus/histogram.py"],
    "plotly": ["recipe/report/"],
    "jinja2": ["recipe/report/", "recipe/export/card.py"],
}
# The names of rows, which the tables alone know.
ROWS = {*ARCHITECTURES, *OBJECTIVES, *OPTIMIZERS, *SCHEDULES, *AVERAGES, *PARALLEL, *KINDS}
# What the files below a folder never import.
NEVER = {
    "kernels/": ["recipe", "benchmarks", "tests"],
    "recipe/": ["benchmarks", "tests"],
    "recipe/model/": ["composer", "streaming", "omegaconf", "yaml", "recipe.config"],
    "recipe/objectives/": ["composer", "streaming", "omegaconf", "recipe.config", "recipe.data"],
    "recipe/system/": [
        "recipe.corpus",
        "recipe.data",
        "recipe.model",
        "recipe.training",
        "recipe.finetune",
        "recipe.config",
    ],
    "recipe/corpus/": ["recipe.model", "recipe.training", "composer"],
    "recipe/data/": ["recipe.corpus", "recipe.model", "recipe.training", "recipe.finetune"],
    "recipe/training/": ["recipe.corpus", "recipe.finetune", "recipe.report", "recipe.export"],
    "recipe/finetune/": ["recipe.report", "recipe.export"],
    "recipe/export/modeling_mosaic_bert.py": ["recipe", "kernels"],  # it leaves the house
    "recipe/export/": ["recipe.report", "recipe.corpus"],
    "recipe/cost/": ["torch", "composer", "streaming", "transformers", "kernels", "recipe.model", "recipe.training"],
    "recipe/records.py": [
        "torch",
        "composer",
        "streaming",
        "transformers",
        "kernels",
        "recipe.model",
        "recipe.training",
    ],
    "benchmarks/": ["tests"],
}


def sources() -> list[Path]:
    return sorted(file for folder in ("recipe", "kernels", "benchmarks") for file in (ROOT / folder).rglob("*.py"))


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, and so is never imported."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found |= {inner for statement in node.body for inner in ast.walk(statement)}
    return found


@functools.cache
def imports(file: Path) -> tuple[str, ...]:
    """Dotted names that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(), str(file))
    skipped = type_checking_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(ROOT).parent.parts)
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            argument = node.args[0]
            assert isinstance(argument, ast.Constant), f"{relative(file)}:{node.lineno} imports a computed name"
            yield argument.value


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def inside(file: Path, places: list[str]) -> bool:
    path = relative(file)
    return any(path.startswith(place) if place.endswith("/") else path == place for place in places)


def test_there_is_something_to_check():
    assert len(sources()) > 30
    names = {name for file in sources() for name in imports(file)}
    assert {"composer.Callback", "streaming.MDSWriter", "kernels.backends", "omegaconf.OmegaConf"} <= names


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_stay_in_their_places(package):
    places = ONLY_IN[package]
    strays = [
        relative(file)
        for file in sources()
        if not inside(file, places) and any(below(name, package) for name in imports(file))
    ]
    assert strays == []


@pytest.mark.parametrize("folder", NEVER)
def test_what_a_folder_never_imports(folder):
    for file in sources():
        if relative(file).startswith(folder):
            found = [name for name in imports(file) for package in NEVER[folder] if below(name, package)]
            assert found == [], relative(file)


def modules() -> dict[str, Path]:
    """Every module's file, by its dotted name."""
    names = (relative(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in sources())
    return dict(zip(names, sources(), strict=True))


def test_no_import_goes_round_in_a_circle():
    """Those inside functions included. That a module's own package is imported before it is no circle."""
    known = modules()
    graph = {
        name: {other for other in imports(file) if other in known and not below(name, other)}
        for name, file in known.items()
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def named(file: Path) -> list[str]:
    """Where a file compares with a row's name, or asks whether something is of a row's class."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare):
            constants = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            asks = not ROWS.isdisjoint(constants)
        else:
            called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
            asks = called and re.search(r"MosaicBert|HFBert", ast.unparse(node.args[1])) is not None
        if asks:
            found.append(f"{relative(file)}:{node.lineno}")
    return found


def test_nothing_compares_a_row_s_name_or_class():
    assert [place for file in sources() for place in named(file)] == []


def test_the_search_path_is_left_alone():
    for file in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "sys.path", f"{relative(file)}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module == "sys":
                assert "path" not in [alias.name for alias in node.names], relative(file)


def loaded_by(statement: str) -> set[str]:
    """Every module that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_kernels_load_torch_and_nothing_heavier():
    """What torch itself loads is torch's affair; `import kernels` adds no Triton, no launcher, no trainer to it."""
    added = loaded_by("import kernels") - loaded_by("import torch")
    heavy = ("triton", "kernels.triton", "flash_attn", "xformers", "composer", "streaming", "transformers", "recipe")
    assert "kernels.attention" in added
    assert sorted(name for name in added if any(below(name, package) for package in heavy)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("recipe.records", ["torch", "composer", "streaming", "transformers", "omegaconf"]),
        ("recipe.cost.frontier", ["torch", "composer", "streaming", "transformers"]),
        ("recipe.cost.prices", ["torch", "composer", "streaming", "transformers"]),
        ("recipe.pareto", ["torch", "composer", "streaming", "transformers"]),
        ("benchmarks.throughput", ["composer", "streaming", "transformers", "omegaconf", "yaml"]),
        ("benchmarks.throughput_worker", ["composer", "streaming", "transformers", "omegaconf"]),
        ("recipe.config", ["torch", "composer", "streaming", "transformers"]),
        ("recipe.train", ["tensorboard", "wandb", "mlflow"]),
        ("recipe.model.heads", ["composer", "streaming", "transformers", "omegaconf"]),
    ],
)
def test_figures_and_models_need_little(module, heavy):
    """Indirectly too: figures are redrawn without torch, and a model is used without a trainer."""
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert sorted(package for package in heavy if package in loaded) == []


def test_files_and_functions_stay_short():
    for file in sources():
        text = file.read_text()
        assert len(text.splitlines()) < 420, relative(file)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length < 65, f"{relative(file)}: {node.name} has {length} lines"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
