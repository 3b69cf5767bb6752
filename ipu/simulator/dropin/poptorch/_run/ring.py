"""A ring of buffers between the thread that loads elements and the one that takes them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Iterable, Sequence, Union

import torch

Build = Callable[[Sequence[torch.Tensor]], Any]  # makes an element of its tensors


class Stopped(Exception):
    """Nobody wants elements any more."""


class _Restart(Exception):
    """The consumer left the pass over the data that is being loaded."""


class EndOfPass:
    """Takes the place of an element: a pass over the data is complete."""


END = EndOfPass()


class _Slot:
    """The memory of one element."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._build: Build = list

    def element(self) -> Any:
        """What was stored last, in the slot's memory."""
        return self._build(list(self.tensors))

    def store(self, tensors: Sequence[torch.Tensor], build: Build) -> None:
        """Copies the tensors, into the memory of the last ones where they fit."""
        fits = [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in self.tensors]
        if fits:
            for mine, theirs in zip(self.tensors, tensors):
                mine.copy_(theirs)
        else:
            self.tensors = [tensor.detach().clone() for tensor in tensors]
        self._build = build


_Entry = Union[_Slot, EndOfPass]


class Ring:
    """`take` gives views of a slot; the slot is written again once the next element has been taken."""

    def __init__(self, num_slots: int) -> None:
        self._changed = threading.Condition()
        self._free = deque(_Slot() for _ in range(num_slots))
        self._filled: deque[_Entry] = deque()
        self._taken: _Slot | None = None
        self._capacity = num_slots
        # Passes over the data are numbered, so that what was loaded for an abandoned one can be told.
        self._wanted_pass = 0
        self._stopped = False
        self._is_open = False
        self._failure: BaseException | None = None

    # ---- the consumer's side

    def wait_until_started(self) -> None:
        """Waits for the first element; raises what loading raised before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._filled or self._failure or self._stopped)
            if not self._filled:
                self._raise_failure()

    def open(self) -> None:
        """Lets loading go on beyond the first element."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def restart(self) -> None:
        """Gives up the pass that is being loaded, and asks for a new one."""
        with self._changed:
            self._wanted_pass += 1
            self._release_taken()
            self._free.extend(entry for entry in self._filled if isinstance(entry, _Slot))
            self._filled.clear()
            self._changed.notify_all()

    def take(self) -> Any:
        """The next element, or END. Raises what loading raised in its place, and Stopped after stop()."""
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
        """Ends both sides."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        # Raised once and forgotten: its traceback will hold the consumer's frames, and all that they hold.
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
        """Puts pass after pass over `elements` into the ring until it is stopped. Never raises."""
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
        except BaseException as exception:  # the consumer's to raise, whatever it is
            with self._changed:
                self._failure = exception
                self._changed.notify_all()

    def _wait(self, this_pass: int, condition: Callable[[], object]) -> None:
        """Waits for the condition, the lock held or not; raises Stopped or _Restart instead of outwaiting
        them.
        """
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
