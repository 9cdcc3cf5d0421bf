"""`python -m recipe`: the commands of this project, a line each, as the first line of each module's docstring has it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

from recipe.errors import end

COMMANDS = (
    "recipe.prepare",
    "recipe.train",
    "recipe.glue",
    "recipe.finetune",
    "recipe.predict",
    "recipe.retrieve",
    "recipe.pairs",
    "recipe.pareto",
    "recipe.plan",
    "recipe.export",
    "benchmarks.demo",
    "benchmarks.profile",
    "benchmarks.throughput",
    "benchmarks.trainer",
    "benchmarks.kernels",
    "benchmarks.data",
    "benchmarks.predict",
    "benchmarks.convert_tasks",
    "kernels.backends",
)


def summary(module: str) -> str:
    """What a command is for, read from its source: importing them all would take half a minute."""
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations:  # of a package the entry point is a file inside it
        spec = importlib.util.find_spec(f"{module}.__main__")
    source = Path(spec.origin).read_text(encoding="utf-8")
    first = ast.get_docstring(ast.parse(source)).splitlines()[0]
    text = re.sub(r"^`[^`]*`: ", "", first).rstrip(".")
    return text[0].lower() + text[1:]


def main() -> None:
    print("usage: python -m COMMAND --help\n")
    for module in COMMANDS:
        print(f"  {module:<22} {summary(module)}")


if __name__ == "__main__":
    end(main)
