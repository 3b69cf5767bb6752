"""What a program wants to be called before and after each compilation.

The hooks are the process's, as in PopTorch; they may be registered and removed while another thread compiles.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, Callable

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
