"""This host's memory, kept from one micro batch to the next.

Large tensors come and go with every micro batch. glibc gives each back to the system and fetches it anew,
page by page, which takes a tenth to a quarter of a small model's step.
"""

from __future__ import annotations

import ctypes
import functools

from . import variables

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

# Fetched at once where the heap has to grow: few calls, and less than a small model's activations.
_TOP_PAD_BYTES = 64 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, memory that this process frees isn't returned to the system; True if the allocator obeys.

    Left alone: an allocator that isn't glibc's, and one that the user has set up (MALLOC_...,
    GLIBC_TUNABLES).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in variables.names()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No mappings of single tensors, and no heap that shrinks (-1: never).
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return [mallopt(parameter, value) for parameter, value in settings] == [1] * len(settings)
