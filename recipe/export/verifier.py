"""The verifying process: `python -m recipe.export.verifier REQUEST`, which `recipe.export.verify` starts."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import NoReturn

import torch

from recipe.config import ExportConfig
from recipe.errors import UserError, class_and_line, end, exit_status
from recipe.export.checks import Different, Exported
from recipe.export.finding import find_subject
from recipe.export.formats import FORMATS
from recipe.system.quiet import quiet_libraries


def answer(request: Path) -> None:
    """Compare what the file names, and write what was found beside it."""
    asked = json.loads(request.read_text("utf-8"))
    config = ExportConfig(**asked["config"])
    exported = Exported(find_subject(config.checkpoint), Path(asked["folder"]), request.parent)
    different = None
    try:
        FORMATS[config.format].verify(exported, config)
    except Different as error:
        different = str(error)
    found = {"different": different, "verified": exported.verified, "facts": exported.facts}
    request.with_name("answer.json").write_text(json.dumps(found), "utf-8")


def no_network(*arguments: object, **settings: object) -> NoReturn:
    raise OSError("the network is off while an export is verified")


def main(request: Path) -> None:
    quiet_libraries()
    logging.getLogger("transformers").setLevel(
        logging.ERROR
    )  # a new head's "newly initialized", which is looked at here
    socket.socket.connect = no_network  # type: ignore[method-assign]
    torch.manual_seed(0)
    try:
        answer(request)
    except UserError:
        raise
    except Exception as error:  # of any library that loads the folder: the last line is what the user sees
        raise UserError(class_and_line(error)) from error


if __name__ == "__main__":
    end(lambda: exit_status(lambda: main(Path(sys.argv[1]))))
