"""`python -m benchmarks.convert_tasks clinc150|cranfield FILE... OUT`: two distributions of their own form as JSON lines.

    clinc150 DATA_FULL.JSON[.gz] OUT                clinc150-{train,dev,test}.jsonl, with `text` and `intent`
    cranfield CRAN.ALL.1400 CRAN.QRY CRANQREL OUT   cranfield-{documents,queries,judgements}.jsonl

Cranfield's codes are turned round, so that more is better: 1, a complete answer, to 4, of minimum interest, become 4 to 1; its
-1, which the collection does not explain and which stands once for each query, is no relevance.

CLINC150's out-of-scope queries become the label `oos` in the split that they belong to. Cranfield's queries are numbered 1 to
225 in their order, as its judgements number them, whatever their own `.I` says.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from recipe.errors import UserError, end, exit_status
from recipe.system.files import write_whole

GRADES = {"1": 4, "2": 3, "3": 2, "4": 1}
SPLITS = {"train": "train", "val": "dev", "test": "test"}


def clinc150(source: Path, out: Path) -> list[Path]:
    """The distribution's lists of [text, intent], by split."""
    packed = source.read_bytes()
    found = json.loads(gzip.decompress(packed) if source.suffix == ".gz" else packed)
    if missing := [name for name in SPLITS if name not in found or f"oos_{name}" not in found]:
        raise UserError(
            f"{source}: no `{missing[0]}`, or no `oos_{missing[0]}` in it; give the full distribution's file"
        )
    return [
        _write(
            out / f"clinc150-{ours}.jsonl",
            ({"text": text, "intent": intent} for text, intent in [*found[name], *found[f"oos_{name}"]]),
        )
        for name, ours in SPLITS.items()
    ]


def cranfield(documents: Path, queries: Path, judgements: Path, out: Path) -> list[Path]:
    """The collection's three files, in SMART's form."""
    texts = (
        {"id": record["I"], "title": record.get("T", ""), "text": record.get("W", "")} for record in smart(documents)
    )
    asked = ({"id": str(number), "text": record["W"]} for number, record in enumerate(smart(queries), 1))
    rows = (line.split() for line in judgements.read_text("utf-8").splitlines() if line.strip())
    graded = (
        {"query": query, "document": document, "grade": GRADES.get(code, 0)} for query, document, code, *_ in rows
    )
    return [
        _write(out / f"cranfield-{name}.jsonl", records)
        for name, records in (("documents", texts), ("queries", asked), ("judgements", graded))
    ]


def smart(file: Path) -> Iterator[dict[str, str]]:
    """Records of `.I NUMBER` and fields that begin with `.LETTER` on a line of its own, their lines joined by spaces."""
    record: dict[str, list[str]] = {}
    field: list[str] = []
    for line in file.read_text("utf-8", errors="replace").splitlines():
        if line.startswith(".I "):
            if record:
                yield {name: " ".join(" ".join(lines).split()) for name, lines in record.items()}
            record = {"I": [line[3:].strip()]}
        elif len(line.rstrip()) == 2 and line[0] == "." and line[1].isupper():
            field = record.setdefault(line[1], [])
        else:
            field.append(line)
    if record:
        yield {name: " ".join(" ".join(lines).split()) for name, lines in record.items()}


def _write(file: Path, records: Iterable[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return file


CONVERSIONS = {"clinc150": (clinc150, 2), "cranfield": (cranfield, 4)}


def main(words: list[str]) -> None:
    name, *paths = words or [""]
    if name not in CONVERSIONS or len(paths) != CONVERSIONS[name][1]:
        raise UserError("usage: clinc150 FILE OUT, or cranfield DOCUMENTS QUERIES JUDGEMENTS OUT")
    convert, _ = CONVERSIONS[name]
    for path in paths[:-1]:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    for file in convert(*map(Path, paths)):
        print(f"{file}: {sum(1 for _ in file.open(encoding='utf-8')):,} lines")


if __name__ == "__main__":
    end(lambda: exit_status(lambda: main(sys.argv[1:])))
