"""What ships with the project beside its code: YAML files, the price table, recorded runs. They are found from any folder."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parents[1]  # the checkout, or the folder that a wheel was installed into
FOLDERS = ("yamls", "benchmarks")
# For one release, the old names of files that moved are answered with the new ones.
_BOOKS = {
    "data/books": "data",
    "pretrain/books-tiny": "tiny",
    "pretrain/books-base": "base",
    "glue/books": "glue",
    "glue/books-base": "glue-base",
    "sweep/books": "sweep",
    "sweep/books-tiny": "sweep-tiny",
    "sweep/books-tiny-bert": "sweep-tiny-bert",
}
MOVED = {f"yamls/{old}.yaml": f"benchmarks/books/{new}.yaml" for old, new in _BOOKS.items()} | {
    "yamls/pretrain/books-small.yaml": "yamls/pretrain/small.yaml",
    "yamls/glue/demo.yaml": "yamls/pairs/demo.yaml, for recipe.pairs",
}


def find(path: str | Path) -> Path:
    """`path` as it stands from the current folder; where nothing is there, what ships under that name, if something does."""
    given = Path(path).expanduser()
    shipped = HOME / given
    if given.exists() or given.is_absolute() or given.parts[:1] not in [(folder,) for folder in FOLDERS]:
        return given
    return shipped if shipped.exists() else given


def moved(path: str) -> str | None:
    """What to say of a path where a file once stood that has another name now; None for any other."""
    new = next((new for old, new in MOVED.items() if path == old or path.endswith(f"/{old}")), None)
    return new and f"is now {new}"
