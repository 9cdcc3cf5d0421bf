"""The embedded corpus: documentation strings of installed packages, parsed from their source files, never imported.

Some 26 MB of real English that every installation of the lock already holds. Besides the strings of modules, classes
and functions it takes those that numpy, scipy and torch attach to compiled functions with `add_newdoc` or `add_docstr`.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.errors import UserError
from recipe.system.processes import WorkerPool

# import name -> distribution; `python` is the standard library
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "sympy": "sympy",
    "python": None,
}
MIN_CHARACTERS = 60  # below this they are mostly "See the base class."
_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SURROGATE = re.compile("[\ud800-\udfff]")  # not encodable as UTF-8; some tests of Unicode mention them
_ATTACHES = re.compile(r"add_(docstr|newdoc)")
_BRACES = re.compile(r"\{\{|\}\}|\{\w*\}")  # torch fills {name} in with .format(**common_args)


@dataclass(frozen=True)
class Entry:
    """One documentation string, dedented and stripped."""

    package: str  # a key of PACKAGES
    text: str


def versions() -> dict[str, str]:
    """The version of every package of the corpus.

    Raises:
        UserError: for a package that is not installed.
    """
    found = {}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution) if distribution else platform.python_version()
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"embedded corpus: {distribution} is not installed; pip install -r requirements.txt"
            ) from None
    return found


@functools.cache  # seconds of parsing, and what prepares a dataset often makes the tasks next
def collect(processes: int = 1) -> tuple[Entry, ...]:
    """Every entry, without duplicates, in an order that depends on the installed files alone.

    Raises:
        UserError: for a package that is not installed.
    """
    versions()
    files = [(name, str(path)) for name in PACKAGES for path in _source_files(_root(name))]
    with WorkerPool(processes) as pool:
        found = pool.map(_read, files, chunk=64)
    first: dict[str, str] = {}  # text -> the package that has it first
    for (package, _), texts in zip(files, found, strict=True):
        for text in texts:
            first.setdefault(text, package)
    return tuple(Entry(package, text) for text, package in first.items())


def _root(package: str) -> Path:
    if package == "python":
        return Path(sysconfig.get_path("stdlib"))
    return Path(importlib.util.find_spec(package).origin).parent


def _source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _read(file: tuple[str, str]) -> list[str]:
    """The cleaned documentation strings of one source file."""
    source = Path(file[1]).read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        gc.disable()  # trees are many objects without a cycle: looking for some takes a quarter of the time
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return []  # templates and sources for other Python versions
        finally:
            gc.enable()
    texts = (inspect.cleandoc(text).strip() for text in _strings(tree))
    return [text for text in texts if len(text) >= MIN_CHARACTERS and not _SURROGATE.search(text)]


def _strings(node: ast.AST) -> Iterator[str]:
    """Documentation in source order: of the node, of calls that attach it, and of what is defined inside."""
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    for name in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, name, ()):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
                yield from _attached(child.value)
            elif not isinstance(child, ast.Expr):
                yield from _strings(child)


def _attached(call: ast.Call) -> Iterator[str]:
    """The last argument of `add_newdoc(place, name, text)`, where `text` may also be a pair `(name, text)`."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if not _ATTACHES.search(name) or not call.args:
        return
    last = call.args[-1]
    if isinstance(last, ast.Tuple) and last.elts:
        last = last.elts[-1]
    text = _constant(last)
    if text:
        yield text


def _constant(node: ast.expr) -> str:
    """String constants, their sums, and `text.format(...)` without what would be filled in; else an empty string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _constant(node.left) + _constant(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        braces = {"{{": "{", "}}": "}"}
        return _BRACES.sub(lambda match: braces.get(match[0], ""), _constant(node.func.value))
    return ""
