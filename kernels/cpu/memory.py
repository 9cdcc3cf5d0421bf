"""A process that keeps the memory that it frees: the next step's tensors need no new pages from the system."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER, _LARGEST = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Whether the C library could be told; another than glibc cannot, and then nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
