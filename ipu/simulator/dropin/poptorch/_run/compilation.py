"""What a program wants to be called before and after each compilation.

The hooks are the process's, as in PopTorch; they may be registered and removed while another thread compiles.
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
    """Hooks of one kind, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._hooks: dict[int, Hook] = {}
        self._keys = itertools.count()
        self._lock = threading.Lock()

    def register(self, hook: Hook) -> RemovableHook:
        """Raises RuntimeError if the hook can't be called."""
        if not callable(hook):
            raise RuntimeError(f"{self._kind} hook must be callable")
        with self._lock:
            key = next(self._keys)
            self._hooks[key] = hook
        return RemovableHook(self, key)

    def remove(self, key: int) -> None:
        """No-op for one that was removed before."""
        with self._lock:
            self._hooks.pop(key, None)

    def call(self) -> None:
        """Calls those that are registered now."""
        with self._lock:
            hooks = list(self._hooks.values())
        for hook in hooks:
            hook()


class RemovableHook:
    """Takes a hook off again."""

    def __init__(self, hooks: CompileHooks, key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """The hook isn't called any more."""
        self._hooks.remove(self._key)


pre_compile = CompileHooks("Pre-compile")
post_compile = CompileHooks("Post-compile")


def registerPreCompileHook(hook: Hook) -> RemovableHook:
    """Call `hook()` before every compilation; the handle's remove() ends it. RuntimeError if not callable."""
    return pre_compile.register(hook)


def registerPostCompileHook(hook: Hook) -> RemovableHook:
    """Call `hook()` after every compilation; the handle's remove() ends it. RuntimeError if not callable."""
    return post_compile.register(hook)


# The folder of Options.enableExecutableCaching: what a compilation leaves there, and who may compile.
#
# Compiling takes the simulator no time, so there is nothing to read back: a note of what was compiled stands
# for PopART's executable, under a name that is the same for the same program and options. Processes that
# train one model take turns to compile it: one fills the cache, the others read it.


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
