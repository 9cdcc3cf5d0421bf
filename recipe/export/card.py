"""The model card, README.md of an export: every number of it from the run's record or from the verification's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from recipe import records
from recipe.config import ExportConfig, TrainConfig
from recipe.cost.measures import tasks_in_words
from recipe.export.subject import Subject
from recipe.finetune.results import of_final_encoder
from recipe.finetune.scores import CONVENTION
from recipe.system import inert
from recipe.system.files import write_whole

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


def write(subject: Subject, config: ExportConfig, record: dict[str, Any], folder: Path) -> None:
    """Write README.md; `record` is the export's."""
    write_whole(folder / "README.md", render(subject, config, record))


def render(subject: Subject, config: ExportConfig, record: dict[str, Any]) -> str:
    checkpoint = subject.checkpoint
    run = None if checkpoint.run is None else records.read_record(checkpoint.run)
    final = of_final_encoder(checkpoint)
    glue = run["glue"] if run and final else None
    data = run["config"].get("data", {}) if run else {}
    text = data.get("path", "not recorded")
    tuned = subject.results["config"] if subject.results else {}
    return TEMPLATES.get_template("card.md.jinja").render(
        name=subject.called,
        model=checkpoint.model,
        form=config.format,
        pooling=config.pooling,
        what=subject.what,
        use=subject.use,
        auto=subject.auto,
        left_out=subject.left_out,
        objective=run["config"].get("objective", TrainConfig.objective) if run else None,
        usual=TrainConfig.objective,
        narrow=(run["config"].get("model", {}).get("narrow_layers") or 1) if run else 1,
        averaged=run.get("averaged_batches") if run and final else None,
        average=run["config"].get("average") if run else None,
        task=subject.task,
        sigmoid=subject.settings.get("problem_type") == "multi_label_classification",
        tuned=subject.results,
        files=[Path(file).name for split in ("train", "dev", "test") for file in tuned.get(split, [])],
        folder=Path(config.out).name,  # a card tells no path of this machine
        own_code=subject.row is not None and subject.row.code is not None,
        limit=checkpoint.max_length,
        longest=subject.longest,
        rotary=checkpoint.sizes is not None and checkpoint.sizes.positions == "rope",
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
