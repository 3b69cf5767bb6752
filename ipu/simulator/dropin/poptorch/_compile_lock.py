"""Processes that train one model take turns to compile it: one fills the cache, the others read it."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Iterator

from ._logging import logger


@contextlib.contextmanager
def compile_lock(model: Any, options: Any) -> Iterator[None]:
    """Inside, no other process compiles this model; only where several run and the options name a cache.

    The lock is a file in the cache's folder, named after the model. Nothing that waits for another process
    may happen inside.
    """
    if options.Distributed.numProcesses == 1:
        yield
        return
    folder = options._Popart.options.get("cachePath")
    if not folder or not options._Popart.options.get("enableEngineCaching"):
        logger.warning(
            "%d processes compile the same model, each for itself: options.enableExecutableCaching lets one "
            "compile it for all",
            options.Distributed.numProcesses,
        )
        yield
        return
    import fcntl  # not on Windows, where nobody has several processes

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    name = hashlib.md5(repr(model).encode(), usedforsecurity=False).hexdigest()
    with (path / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
