"""A ring of buffers between the thread that loads elements and the one that takes them."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import traceback
import weakref
from collections import deque
from typing import Any, Callable, Iterable, Iterator, Mapping, MutableMapping

import torch
from torch.overrides import TorchFunctionMode

from ._logging import logger
from ._run.structure import parser_of
from .enums import SharingStrategy
from .poptorch_core import createPoptorchError


class Stopped(Exception):
    """Nobody wants elements any more."""


class _Restart(Exception):
    """The consumer left the pass over the data that is being loaded."""


END = object()  # takes the place of an element: a pass over the data is complete


class _Slot:
    """The memory of one element."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.build: Callable[[list[torch.Tensor]], Any] | None = None

    def store(self, tensors: list[torch.Tensor], build: Callable[[list[torch.Tensor]], Any]) -> None:
        """Copies the tensors, into the memory of the last ones where they fit."""
        fits = [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in self.tensors]
        if fits:
            for mine, theirs in zip(self.tensors, tensors):
                mine.copy_(theirs)
        else:
            self.tensors = [tensor.detach().clone() for tensor in tensors]
        self.build = build


class Ring:
    """`take` gives views of a slot; the slot is written again once the next element has been taken."""

    def __init__(self, num_slots: int):
        self._changed = threading.Condition()
        self._free = deque(_Slot() for _ in range(num_slots))
        self._filled: deque[Any] = deque()
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
            if entry is END:
                return END
            self._taken = entry
            return entry.build(list(entry.tensors))

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

    def load(self, elements: Iterable[Any], flatten: Callable[[Any], Any], load_indefinitely: bool) -> None:
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

    def _wait(self, this_pass: int, condition: Callable[[], Any]) -> None:
        """Waits for the condition, the lock held or not; raises Stopped or _Restart instead of outwaiting
        them.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._wanted_pass != this_pass or condition())
            if self._stopped:
                raise Stopped
            if self._wanted_pass != this_pass:
                raise _Restart

    def _put_element(self, this_pass: int, tensors: list[torch.Tensor], build: Callable[..., Any]) -> None:
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

    def _put(self, this_pass: int, entry: Any) -> None:
        with self._changed:
            self._wait(this_pass, lambda: len(self._filled) < self._capacity)
            self._filled.append(entry)
            self._changed.notify_all()


# Elements as flat lists of tensors, and batches of one size from batches of any.

Build = Callable[[list], Any]


def flatten(element: Any) -> tuple[list[torch.Tensor], Build]:
    """(tensors, a function that builds such an element from tensors) of a tensor, a flat container, a custom
    type, or a dict, which may hold dicts and custom types (a graph and its labels). Other mappings stay what
    they are (transformers' BatchEncoding).
    """
    values, build = _parts(element)
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise createPoptorchError(
            "An AsynchronousDataAccessor needs elements that are a tensor, a flat list, tuple or dict of "
            "tensors, or of a type given to poptorch.registerCustomArgParser: "
            f"got {type(element)} of {sorted({type(value).__name__ for value in values})}"
        )
    return values, build


def _parts(element: Any) -> tuple[list[Any], Build]:
    parser = parser_of(element)
    if parser is not None:
        return list(parser.yieldTensors(element)), lambda tensors: parser.reconstruct(element, iter(tensors))
    if isinstance(element, Mapping):
        return _parts_of_mapping(element)
    if isinstance(element, (list, tuple)):
        kind = type(element)
        if hasattr(kind, "_fields"):  # a namedtuple takes its fields one by one
            return list(element), lambda tensors: kind(*tensors)
        return list(element), lambda tensors: kind(tensors)
    return [element], lambda tensors: tensors[0]


def _parts_of_mapping(element: Mapping[Any, Any]) -> tuple[list[Any], Build]:
    values: list[Any] = []
    builders: list[tuple[Any, int, Build]] = []  # by key: how many tensors, and what they make
    for key, part in element.items():
        nested = isinstance(part, Mapping) or parser_of(part) is not None
        parts, build = _parts(part) if nested else ([part], lambda tensors: tensors[0])
        values += parts
        builders.append((key, len(parts), build))

    def build_mapping(tensors: list[Any]) -> Mapping[Any, Any]:
        remaining = iter(tensors)
        items = {key: build([next(remaining) for _ in range(count)]) for key, count, build in builders}
        if isinstance(element, dict) or not isinstance(element, MutableMapping):
            return items
        made = copy.copy(element)
        made.update(items)
        return made

    return values, build_mapping


class Rebatched:
    """Joins a loader's batches [k, ...], of any k, into batches [size, ...]; the last may be dropped or
    shorter.
    """

    def __init__(self, loader: Any, size: int, drop_last: bool):
        self.loader = loader
        self._size = size
        self._drop_last = drop_last

    def __len__(self) -> int:
        # A torch loader says how many elements its batches have in all; anything else yields elements.
        elements = len(getattr(self.loader, "dataset", self.loader))
        return (elements if self._drop_last else elements + self._size - 1) // self._size

    def __iter__(self) -> Iterator[Any]:
        pending: list[list[torch.Tensor]] = []
        held = 0
        for batch in self.loader:
            tensors, build = flatten(batch)
            pending.append(tensors)
            held += len(tensors[0])
            if held < self._size:
                continue
            whole = [torch.cat(parts) for parts in zip(*pending)]
            while held >= self._size:
                yield build([tensor[: self._size] for tensor in whole])
                whole = [tensor[self._size :] for tensor in whole]
                held -= self._size
            pending = [whole] if held else []
        if held and not self._drop_last:
            yield build([torch.cat(parts) for parts in zip(*pending)])


# Random numbers of a data set that loads in a thread: a stream of their own.
#
# Without it they would come from the generator that the program and the device's runs draw from, at times
# that nobody knows. (PopTorch's worker is a process, which has generators of its own.)

_DRAWING = frozenset(
    "_sample_dirichlet _standard_gamma bernoulli bernoulli_ binomial cauchy_ exponential_ geometric_ "
    "log_normal_ multinomial normal normal_ poisson rand randint randn random_ randperm uniform_".split()
)
# Older PyTorchs draw these from the program's generator alone.
_LIKE = frozenset({"rand_like", "randint_like", "randn_like"})


class OwnDraws(TorchFunctionMode):
    """Stands around what one thread does: its calls that draw take a generator of its own, which begins with
    the seed that the program gave torch.manual_seed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(torch.initial_seed())
        self._process = os.getpid()  # processes forked inside have generators and seeds of their own
        self._drawing = _DRAWING
        with contextlib.suppress(TypeError):
            torch.rand_like(torch.empty(0), generator=torch.Generator())
            self._drawing |= _LIKE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draws = getattr(func, "__name__", "") in self._drawing and kwargs.get("generator") is None
        if draws and os.getpid() == self._process:
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


# Loading in the background, into a ring of buffers that are used again and again.

# A worker that a data set keeps waiting for longer than this is left to end by itself.
_JOIN_TIMEOUT_S = 5.0


class AsynchronousDataAccessor:
    """Iterates over a data set that a background worker reads ahead of the consumer.

    **The tensors of an element are overwritten once the next one has been taken: clone what you keep.**
    Elements are tensors, or flat lists, tuples or dicts of tensors. An exception of the data set is raised
    where its element would have been taken; before the first element, it is logged and the constructor
    raises poptorch.Error.

    The worker is a thread, so `miss_sleep_time_in_ms` (PopTorch polls) and `sharing_strategy` (PopTorch's
    worker is a process) change nothing. PyTorch's draws of a data set have a generator of their own; the ones
    of Python and NumPy are the program's.

    :param buffer_size: the elements that can wait, the one in use included.
    :param load_indefinitely: read the next pass ahead when one is complete.
    :param early_preload: fill the buffers at once, rather than at the first iteration.
    :param rebatched_size: join batches into batches of this size.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: int | None = None,
    ):
        if getattr(dataset, "_accessor", None) is not None:
            raise createPoptorchError(
                "The DataLoader already uses an AsynchronousDataAccessor internally. "
                "Use it as it is, or make it with mode=DataLoaderMode.Sync."
            )
        if rebatched_size is not None and rebatched_size <= 1:
            raise createPoptorchError("rebatched_size must be None or greater than 1")
        if buffer_size < 1:
            raise createPoptorchError(f"buffer_size must be at least 1: it is {buffer_size}")
        by_index = not hasattr(dataset, "__iter__") and hasattr(dataset, "__len__")
        elements = _Indexed(dataset) if by_index else dataset
        self._dataset = (
            elements if rebatched_size is None else Rebatched(elements, rebatched_size, drop_last=True)
        )
        self._load_indefinitely = load_indefinitely
        # Whether the pass that is being loaded has lost elements to an earlier iteration.
        self._begun = False
        self._ring = Ring(buffer_size)
        # The thread holds no reference to self: forgetting the accessor ends it, and so does leaving the
        # program.
        thread = threading.Thread(
            target=_load, args=(self._ring, self._dataset, load_indefinitely, OwnDraws()), daemon=True
        )
        self._end = weakref.finalize(self, _end_thread, self._ring, thread)
        thread.start()
        try:
            self._ring.wait_until_started()
        except Exception as error:
            self._end()
            # As text: a log that keeps its records would keep this accessor with the traceback.
            logger.error("The data set failed before its first element:\n%s", traceback.format_exc())
            raise createPoptorchError(
                "AsynchronousDataAccessor worker thread failed to start (Check above for details)"
            ) from error
        if early_preload:
            self._ring.open()

    def terminate(self) -> None:
        """Ends the worker; the accessor can't be used any more."""
        self._end()

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._ring.restart()
        self._begun = True
        self._ring.open()
        return self._elements()

    def _elements(self) -> Iterator[Any]:
        try:
            while (element := self._ring.take()) is not END:
                yield element
        except Stopped as stopped:
            raise createPoptorchError("The AsynchronousDataAccessor has been terminated") from stopped
        # Loading goes on with the next pass by itself, unless it waits to be asked.
        self._begun = not self._load_indefinitely


class _Indexed:
    """Iterates over a data set by index, up to its length: Python alone would wait for an IndexError."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (self._dataset[index] for index in range(len(self._dataset)))


def _load(ring: Ring, dataset: Any, load_indefinitely: bool, draws: OwnDraws) -> None:
    with draws:
        ring.load(dataset, flatten, load_indefinitely)
    # A torch loader with persistent workers keeps them until it goes itself. And where an exception keeps an
    # iterator that isn't shut down, processes forked later try to do it.
    loader = dataset.loader if isinstance(dataset, Rebatched) else dataset
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def _end_thread(ring: Ring, thread: threading.Thread) -> None:
    ring.stop()
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(_JOIN_TIMEOUT_S)
