"""A ring buffer between the prefetch thread, which loads elements, and the consumer."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Iterable, Sequence, Union

import torch

Build = Callable[[Sequence[torch.Tensor]], Any]  # rebuilds an element from its tensors


class Stopped(Exception):
    """The ring was stopped."""


class _Restart(Exception):
    """The consumer abandoned the pass that is being loaded."""


class EndOfPass:
    """Sentinel: a pass over the data is complete."""


END = EndOfPass()


class _Slot:
    """The memory of one element."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._build: Build = list

    def element(self) -> Any:
        """The element stored last; its tensors are the slot's memory."""
        return self._build(list(self.tensors))

    def store(self, tensors: Sequence[torch.Tensor], build: Build) -> None:
        """Copies the tensors into the slot; reuses its memory if shapes and dtypes are the same."""
        fits = [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in self.tensors]
        if fits:
            for mine, theirs in zip(self.tensors, tensors):
                mine.copy_(theirs)
        else:
            self.tensors = [tensor.detach().clone() for tensor in tensors]
        self._build = build


_Entry = Union[_Slot, EndOfPass]


class Ring:
    """Bounded buffer. `take` returns a slot's memory, which is overwritten after the next `take`."""

    def __init__(self, num_slots: int) -> None:
        self._changed = threading.Condition()
        self._free = deque(_Slot() for _ in range(num_slots))
        self._filled: deque[_Entry] = deque()
        self._taken: _Slot | None = None
        self._capacity = num_slots
        # Passes over the data are numbered, so that elements of an abandoned pass can be discarded.
        self._wanted_pass = 0
        self._stopped = False
        self._is_open = False
        self._failure: BaseException | None = None

    # ---- the consumer's side

    def wait_until_started(self) -> None:
        """Waits for the first element; re-raises an exception of the loading thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._filled or self._failure or self._stopped)
            if not self._filled:
                self._raise_failure()

    def open(self) -> None:
        """Lets loading continue after the first element."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def restart(self) -> None:
        """Abandons the pass that is being loaded and requests a new one."""
        with self._changed:
            self._wanted_pass += 1
            self._release_taken()
            self._free.extend(entry for entry in self._filled if isinstance(entry, _Slot))
            self._filled.clear()
            self._changed.notify_all()

    def take(self) -> Any:
        """The next element, or END. Re-raises an exception of the loading thread; Stopped after stop()."""
        with self._changed:
            self._release_taken()
            self._changed.wait_for(lambda: self._filled or self._failure or self._stopped)
            if self._stopped:
                raise Stopped
            if not self._filled:
                self._raise_failure()
            entry = self._filled.popleft()
            self._changed.notify_all()
            if isinstance(entry, EndOfPass):
                return entry
            self._taken = entry
            return entry.element()

    def stop(self) -> None:
        """Stops both threads' use of the ring."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        # Drop the reference: its traceback would keep the consumer's frames and their locals alive.
        failure, self._failure = self._failure, None
        if failure is not None:
            self._stopped = True
            raise failure

    def _release_taken(self) -> None:
        if self._taken is not None:
            self._free.append(self._taken)
            self._taken = None
            self._changed.notify_all()

    # ---- the loading thread's side

    def load(
        self,
        elements: Iterable[Any],
        flatten: Callable[[Any], tuple[Sequence[torch.Tensor], Build]],
        load_indefinitely: bool,
    ) -> None:
        """Loads pass after pass of `elements` into the ring until it is stopped.

        Never raises: `take` re-raises an exception in the consumer's thread.
        """
        try:
            while True:
                this_pass = self._wanted_pass
                try:
                    for element in elements:
                        self._put_element(this_pass, *flatten(element))
                        self._wait(this_pass, lambda: self._is_open)
                    self._put(this_pass, END)
                    if not load_indefinitely:
                        self._wait(this_pass, lambda: False)
                except _Restart:
                    continue
        except Stopped:
            return
        except BaseException as exception:  # re-raised in the consumer's thread
            with self._changed:
                self._failure = exception
                self._changed.notify_all()

    def _wait(self, this_pass: int, condition: Callable[[], object]) -> None:
        """Waits for the condition; raises Stopped or _Restart if that comes first. The lock is reentrant."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._wanted_pass != this_pass or condition())
            if self._stopped:
                raise Stopped
            if self._wanted_pass != this_pass:
                raise _Restart

    def _put_element(self, this_pass: int, tensors: Sequence[torch.Tensor], build: Build) -> None:
        with self._changed:
            self._wait(this_pass, lambda: self._free)
            slot = self._free.popleft()
        slot.store(tensors, build)
        try:
            self._put(this_pass, slot)
        except _Restart:
            with self._changed:
                self._free.append(slot)
            raise

    def _put(self, this_pass: int, entry: _Entry) -> None:
        with self._changed:
            self._wait(this_pass, lambda: len(self._filled) < self._capacity)
            self._filled.append(entry)
            self._changed.notify_all()
