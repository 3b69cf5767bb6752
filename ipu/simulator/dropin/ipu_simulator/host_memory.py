"""This host's memory, kept from one micro batch to the next.

Large tensors come and go with every micro batch. glibc gives each back to the system and fetches it anew,
page by page, which takes a tenth to a quarter of a small model's step.
"""

from __future__ import annotations

import ctypes
import functools
import os

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

# Fetched at once where the heap has to grow: few calls, and less than a small model's activations.
_TOP_PAD_BYTES = 64 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """From now on what this process frees stays its own; True where that could be arranged.

    Left alone: an allocator that isn't glibc's, and one that the user has set up (MALLOC_...,
    GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No mappings of single tensors, and no heap that shrinks (-1: never).
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return [mallopt(parameter, value) for parameter, value in settings] == [1] * len(settings)
