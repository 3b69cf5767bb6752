"""Loading in the background, into a ring of buffers that are used again and again."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import traceback
import weakref
from typing import Any, Iterator, Mapping, MutableMapping, Sequence

import torch
from torch.overrides import TorchFunctionMode

from ._logging import logger
from ._run.ring import Build, EndOfPass, Ring, Stopped
from ._run.structure import made_of, parser_of
from .enums import SharingStrategy
from .poptorch_core import createPoptorchError

# Elements as flat lists of tensors, and batches of one size from batches of any.


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
        return list(element), lambda tensors: made_of(type(element), tensors)
    return [element], lambda tensors: tensors[0]


def _parts_of_mapping(element: Mapping[Any, Any]) -> tuple[list[Any], Build]:
    values: list[Any] = []
    builders: list[tuple[Any, int, Build]] = []  # by key: how many tensors, and what they make
    for key, part in element.items():
        nested = isinstance(part, Mapping) or parser_of(part) is not None
        parts, build = _parts(part) if nested else ([part], lambda tensors: tensors[0])
        values += parts
        builders.append((key, len(parts), build))

    def build_mapping(tensors: Sequence[Any]) -> Mapping[Any, Any]:
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

    def __init__(self, loader: Any, size: int, drop_last: bool) -> None:
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
            while not isinstance(element := self._ring.take(), EndOfPass):
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
