"""Leaves the terminal to a program's own lines."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def quiet_libraries() -> None:
    """Silence the libraries' advice; their errors still come through."""
    warnings.filterwarnings("ignore", module=r"(composer|streaming|torch|torchmetrics)\b")
    for name in ("composer", "streaming", "torch.distributed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what is written to the process's standard output, by C++ too: Gloo counts its connections there, whatever the log
    level. Errors are raised, or written to standard error."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
