"""Leaves the terminal to a program's own lines."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence the libraries' advice; their errors still come through."""
    warnings.filterwarnings("ignore", module=r"(composer|streaming|torch|torchmetrics)\b")
    for name in ("composer", "streaming", "torch.distributed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
