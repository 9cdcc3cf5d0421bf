"""The entry point: write a draft beside `out`, verify it in a process of its own, and only then give it its name."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipe.config import ExportConfig, run_main
from recipe.errors import UserError, end
from recipe.export import card, verify
from recipe.export.finding import find_subject
from recipe.export.formats import FORMATS
from recipe.settings import check_values
from recipe.system.files import DISK_FULL, write_whole_folder
from recipe.system.quiet import quiet_libraries


def export(config: ExportConfig) -> Path:
    """Export one encoder or fine-tuned model; returns the folder, `config.out`.

    Raises:
        UserError: whatever cannot be exported or differs from the run; then nothing is written.
    """
    check_values(config)
    form, out = FORMATS[config.format], Path(config.out)
    form.check(config)
    if (out / verify.FILE_NAME).is_file() and verify.holds(out, find_subject(config.checkpoint), config):
        print(f"{out} holds this export already; nothing to do", flush=True)
        return out
    check_out(out)
    if missing := [package for package in form.packages if find_spec(package) is None]:
        raise UserError(
            f"format={config.format} is verified with {missing[0]}, which is not installed; "
            "pip install --no-deps -r requirements-export.txt"
        )
    subject = find_subject(config.checkpoint)
    subject.refuse(config)
    print(f"{subject.title} -> {out}, {form.title}", flush=True)
    record: dict[str, Any] = {}

    def write(draft: Path) -> None:
        form.write(subject, config, draft)
        print("  written; verifying it in a process of its own, with the network off", flush=True)
        record.update(verify.verify(subject, config, draft))
        card.write(subject, config, record, draft)

    try:
        write_whole_folder(out, write)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(f"out={out}: no space left on the disk; nothing was written") from None
        raise
    for line in verify.in_words(record):
        print(f"  {line}", flush=True)
    print(f"done: {out}; README.md there says how to load it", flush=True)
    return out


def check_out(out: Path) -> None:
    """Raise a `UserError` where an export would lie over something else."""
    if out.is_file():
        raise UserError(f"out={out} is a file; choose a folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out} is not empty; choose another folder, or remove that one")
    above = next(place for place in out.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"out={out}: {above} cannot be written to; choose another folder")


def main(config: ExportConfig) -> None:
    """The entry point's own part: a clean terminal, then `export`."""
    quiet_libraries()
    export(config)


if __name__ == "__main__":
    end(lambda: run_main(ExportConfig, main, first=["checkpoint"]))
