"""Compile hooks, and the executable cache's folder with its compile lock.

Hooks are global to the process, as in PopTorch, and thread-safe: a thread may register or remove hooks while
another compiles.

The simulator compiles in no time, so it reads nothing back from the cache of Options.enableExecutableCaching.
Instead of PopART's executable it writes a note there, named by a hash of program and options. Processes that
train the same model compile it one after another under a file lock, as PopTorch's do: the first fills the
cache, the others find the note.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator

import torch

from .._logging import logger
from .._options.popart import Obeyed
from ..poptorch_core import usesIpuModel

if TYPE_CHECKING:
    from ..options import Options


Hook = Callable[[], Any]


class CompileHooks:
    """Hooks of one kind, in order of registration."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._hooks: dict[int, Hook] = {}
        self._keys = itertools.count()
        self._lock = threading.Lock()

    def register(self, hook: Hook) -> RemovableHook:
        """Adds a hook. Raises RuntimeError if it isn't callable."""
        if not callable(hook):
            raise RuntimeError(f"{self._kind} hook must be callable")
        with self._lock:
            key = next(self._keys)
            self._hooks[key] = hook
        return RemovableHook(self, key)

    def remove(self, key: int) -> None:
        """Removes a hook; no-op if it was removed before."""
        with self._lock:
            self._hooks.pop(key, None)

    def call(self) -> None:
        """Calls every registered hook."""
        with self._lock:
            hooks = list(self._hooks.values())
        for hook in hooks:
            hook()


class RemovableHook:
    """Handle of a registered hook."""

    def __init__(self, hooks: CompileHooks, key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Unregisters the hook."""
        self._hooks.remove(self._key)


pre_compile = CompileHooks("Pre-compile")
post_compile = CompileHooks("Post-compile")


def registerPreCompileHook(hook: Hook) -> RemovableHook:
    """Calls `hook()` before each compilation until the handle's remove(). RuntimeError if not callable."""
    return pre_compile.register(hook)


def registerPostCompileHook(hook: Hook) -> RemovableHook:
    """Calls `hook()` after each compilation until the handle's remove(). RuntimeError if not callable."""
    return post_compile.register(hook)


def leave_note(options: Options, ir: str) -> None:
    """Writes the note into the cache's folder, if the options name one and the note isn't there yet."""
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
    """Holds the compile lock: a file in the cache's folder, named by a hash of the model.

    No-op for a single process, and without a cache folder (with a warning). Code under the lock must not
    wait for another process: that would deadlock.
    """
    if options.Distributed.numProcesses == 1:
        yield
        return
    folder = Obeyed(options._Popart).cache_folder
    if folder is None:
        logger.warning(
            "%d processes compile the same model separately: options.enableExecutableCaching lets one "
            "compile it for all",
            options.Distributed.numProcesses,
        )
        yield
        return
    import fcntl  # POSIX only; runs with several processes aren't supported on Windows

    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.md5(repr(model).encode(), usedforsecurity=False).hexdigest()
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
