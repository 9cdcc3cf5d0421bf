"""What ships with the project beside its code: YAML files, the price table, recorded runs. They are found from any folder."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parents[1]  # the checkout, or the folder that a wheel was installed into
FOLDERS = ("yamls", "benchmarks")


def find(path: str | Path) -> Path:
    """`path` as it stands from the current folder; where nothing is there, what ships under that name, if something does."""
    given = Path(path)
    shipped = HOME / given
    if given.exists() or given.is_absolute() or given.parts[:1] not in [(folder,) for folder in FOLDERS]:
        return given
    return shipped if shipped.exists() else given
