"""The model card, README.md of an export: every number of it from the run's record or from the verification's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from recipe import records
from recipe.config import ExportConfig
from recipe.cost.measures import tasks_in_words
from recipe.export.transformers_form import row_of
from recipe.finetune.results import of_final_encoder
from recipe.finetune.scores import CONVENTION
from recipe.system import inert
from recipe.system.files import write_whole
from recipe.training.checkpoint import Checkpoint

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # Markdown
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["plain"] = inert.markdown  # names and words of the run, which may be a stranger's
TEMPLATES.filters["literal"] = lambda text: json.dumps(text, ensure_ascii=True)  # in the code that is shown


def write(checkpoint: Checkpoint, config: ExportConfig, record: dict[str, Any], folder: Path) -> None:
    """Write README.md; `record` is the export's."""
    write_whole(folder / "README.md", render(checkpoint, config, record, folder))


def render(checkpoint: Checkpoint, config: ExportConfig, record: dict[str, Any], folder: Path) -> str:
    run = None if checkpoint.run is None else records.read_record(checkpoint.run)
    row = row_of(checkpoint)
    final = of_final_encoder(checkpoint)
    glue = run["glue"] if run and final else None
    data = run["config"].get("data", {}) if run else {}
    text = data.get("path", "not recorded")
    return TEMPLATES.get_template("card.md.jinja").render(
        name=checkpoint.name,
        model=checkpoint.model,
        form=config.format,
        pooling=config.pooling,
        folder=Path(config.out).name,  # a card tells no path of this machine
        own_code=row is not None and row.code is not None,
        limit=checkpoint.max_length,
        masked=checkpoint.mask_id is not None,
        int8=config.int8 is not None,
        batch=None if final else checkpoint.batch,
        run=run,
        data=data,
        text=Path(text).name if text.startswith(("/", "~")) else text,
        glue=glue,
        tasks=tasks_in_words(glue, list(glue["tasks"])) if glue else None,
        convention=CONVENTION,
        pairs=run.get("pairs") if run and final else None,
        record=record,
    )
