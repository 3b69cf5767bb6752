"""The folder of Options.enableExecutableCaching: what a compilation leaves there, and who may compile.

Compiling takes the simulator no time, so there is nothing to read back: a note of what was compiled stands
for PopART's executable, under a name that is the same for the same program and options. Processes that train
one model take turns to compile it: one fills the cache, the others read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Iterator

import torch

from .._logging import logger
from .._options.popart import Obeyed
from ..poptorch_core import usesIpuModel

if TYPE_CHECKING:
    from ..options import Options


def leave_note(options: Options, ir: str) -> None:
    """Writes the note if the options ask for a cache, unless it is there already."""
    folder = Obeyed(options._Popart).cache_folder
    if folder is None or usesIpuModel(options._values):
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"options": repr(options), "graph": json.loads(ir)})
    note = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.popef"
    if not note.exists():
        partial = note.with_suffix(".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(note)


@contextlib.contextmanager
def compile_lock(model: torch.nn.Module, options: Options) -> Iterator[None]:
    """Inside, no other process compiles this model; only where several run and the options name a cache.

    The lock is a file in the cache's folder, named after the model. Nothing that waits for another process
    may happen inside.
    """
    if options.Distributed.numProcesses == 1:
        yield
        return
    folder = Obeyed(options._Popart).cache_folder
    if folder is None:
        logger.warning(
            "%d processes compile the same model, each for itself: options.enableExecutableCaching lets one "
            "compile it for all",
            options.Distributed.numProcesses,
        )
        yield
        return
    import fcntl  # not on Windows, where nobody has several processes

    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.md5(repr(model).encode(), usedforsecurity=False).hexdigest()
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
