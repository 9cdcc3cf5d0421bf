"""The lock files: what is imported is declared, one version of a package on each Python, and no test package in a run."""

from __future__ import annotations

import ast
import functools
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_imports import ROOT, relative, sources

LOCKED = ("requirements", "requirements-dev", "requirements-export", "requirements-loggers")  # an .in and a .txt each
OWN = {"recipe", "kernels", "benchmarks", "tests"}
# Other projects' checkouts, which the user names and which no index has: benchmarks/peers.py.
CHECKOUTS = {"bert_layers", "configuration_bert", "src"}
INSTALLED = packages_distributions()


def read(name: str) -> list[Requirement]:
    lines = (line.split(" #")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def declared(*names: str) -> set[str]:
    return {canonicalize_name(requirement.name) for name in names for requirement in read(name)}


@functools.cache
def top_level(file: Path) -> set[str]:
    """Packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    plain += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in plain}


def undeclared(files: list[Path], known: set[str]) -> list[str]:
    """Imports of packages that no file of requirements names; a package may have another name than its distribution."""
    return sorted(
        f"{relative(file)}: {name}"
        for file in files
        for name in top_level(file)
        if name not in OWN | CHECKOUTS | sys.stdlib_module_names
        and not known & {canonicalize_name(distribution) for distribution in INSTALLED.get(name, [name])}
    )


def environment(python: str) -> dict[str, str]:
    known = {"python_version": python, "python_full_version": f"{python}.9", "implementation_version": f"{python}.9"}
    known |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    return {**default_environment(), **known}


def versions(name: str, python: str) -> dict[str, set[str]]:
    """What a lock installs on one Python."""
    found: dict[str, set[str]] = {}
    for requirement in read(name):
        if requirement.marker is None or requirement.marker.evaluate(environment(python)):
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            found.setdefault(canonicalize_name(requirement.name), set()).add(pin.version)
    return found


def test_what_a_run_imports_is_declared():
    known = declared("requirements.in", "requirements-export.in", "requirements-loggers.in", "requirements-gpu.txt")
    assert undeclared(sources(), known) == []
    assert "recipe/training/composer_model.py: torchmetrics" in undeclared(sources(), known - {"torchmetrics"})


def test_what_the_tests_import_is_declared():
    """What a run needs too need not be named twice; tests/loggers has an environment of its own."""
    known = declared("requirements.in", "requirements-dev.in", "requirements-export.in")
    files = sorted((ROOT / "tests").rglob("*.py"))
    loggers = [file for file in files if relative(file).startswith("tests/loggers/")]
    assert undeclared([file for file in files if file not in loggers], known) == []
    assert undeclared(loggers, known | declared("requirements-loggers.in")) == []
    assert "tests/object_store.py: moto" in undeclared(files, known - {"moto"})


def test_a_run_installs_no_package_of_the_tests():
    assert not {"pytest", "hypothesis", "ruff", "moto", "flask", "tensorboard"} & declared("requirements.txt")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_a_package_has_one_version_in_all_locks(python):
    together: dict[str, set[str]] = {}
    for name in LOCKED:
        for package, found in versions(f"{name}.txt", python).items():
            together.setdefault(package, set()).update(found)
    assert {package: found for package, found in together.items() if len(found) > 1} == {}
    assert len(together) > 150


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("name", LOCKED)
def test_each_lock_holds_what_was_asked_for(name, python):
    """`make lock` was run after the last edit."""
    locked = versions(f"{name}.txt", python)
    for requirement in read(f"{name}.in"):
        (version,) = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, locked at {version}"


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_names_no_index(name):
    assert re.findall(r"://|^--.*", (ROOT / f"{name}.txt").read_text("utf-8"), re.MULTILINE) == []
