"""AsynchronousDataAccessor: prefetches elements of a data set in a background thread, into a ring buffer.

Also flattening of elements, rebatching, and a separate random generator for the thread. Without that, a data
set would draw from the generator of the program and the device's runs, at unpredictable times. (PopTorch's
worker is a process with separate generators.)
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import threading
import traceback
import weakref
from typing import Any, Iterator, Mapping, MutableMapping, Sequence

import torch
from ipu_simulator import variables
from torch.overrides import TorchFunctionMode

from ._logging import logger
from ._run.ring import Build, EndOfPass, Ring, Stopped
from ._run.structure import made_of, parser_of
from .enums import SharingStrategy
from .poptorch_core import createPoptorchError


def flatten(element: Any) -> tuple[list[torch.Tensor], Build]:
    """(tensors, a function that rebuilds the element from tensors).

    An element is a tensor, a flat list or tuple of tensors, a custom type, or a mapping, which may hold
    mappings and custom types (a graph and its labels). Mutable mappings keep their type (transformers'
    BatchEncoding). Raises poptorch.Error for anything else.
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
    builders: list[tuple[Any, int, Build]] = []  # (key, number of tensors, function that rebuilds the value)
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
    """Rebatches a loader's batches [k, ...], of any k, to [size, ...]; the last is dropped or shorter."""

    def __init__(self, loader: Any, size: int, drop_last: bool) -> None:
        self.loader = loader
        self._size = size
        self._drop_last = drop_last

    def __len__(self) -> int:
        # The number of elements: of a torch loader's data set; other loaders yield single elements.
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


# Functions that draw random numbers.
_DRAWING = frozenset(
    "_sample_dirichlet _standard_gamma bernoulli bernoulli_ binomial cauchy_ exponential_ geometric_ "
    "log_normal_ multinomial normal normal_ poisson rand randint randn random_ randperm uniform_".split()
)
# Older PyTorch has no `generator` argument for these.
_LIKE = frozenset({"rand_like", "randint_like", "randn_like"})


class OwnDraws(TorchFunctionMode):
    """Function mode for one thread: its random draws use a separate generator, seeded with the seed of
    torch.manual_seed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(torch.initial_seed())
        self._process = os.getpid()  # forked worker processes have separate generators and seeds
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


# At most this long, `terminate` waits for a worker that is blocked in the data set; its thread is a daemon.
_JOIN_TIMEOUT_S = 5.0


class AsynchronousDataAccessor:
    """Iterates over a data set that a background worker prefetches.

    **The tensors of an element are overwritten once the next one has been taken: clone those that you keep.**
    Elements are tensors, flat lists or tuples of tensors, dicts, and custom types. An exception of the data
    set is raised when its element is taken; before the first element, it is logged and the constructor raises
    poptorch.Error.

    The worker is a thread, so `miss_sleep_time_in_ms` (PopTorch polls) and `sharing_strategy` (PopTorch's
    worker is a process) have no effect. A data set's PyTorch random numbers come from a separate generator,
    those of Python and NumPy from the program's.

    :param buffer_size: number of elements in the ring buffer, including the one in use.
    :param load_indefinitely: prefetch the next pass over the data when one is complete.
    :param early_preload: start to fill the buffer immediately instead of at the first iteration.
    :param rebatched_size: rebatch to batches of this size, above 1.

    Raises poptorch.Error for an asynchronous DataLoader, for an invalid `buffer_size` or `rebatched_size`,
    and, with IPU_SIMULATOR_STRICT=1, for a data set that PopTorch's worker process couldn't be given.
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
                "Use it directly, or create it with mode=DataLoaderMode.Sync."
            )
        if rebatched_size is not None and rebatched_size <= 1:
            raise createPoptorchError("rebatched_size must be None or greater than 1")
        if buffer_size < 1:
            raise createPoptorchError(f"buffer_size must be at least 1: it is {buffer_size}")
        if variables.strict() and sharing_strategy is not SharingStrategy.Fork:
            _check_picklable(dataset)
        by_index = not hasattr(dataset, "__iter__") and hasattr(dataset, "__len__")
        elements = _Indexed(dataset) if by_index else dataset
        self._dataset = (
            elements if rebatched_size is None else Rebatched(elements, rebatched_size, drop_last=True)
        )
        self._load_indefinitely = load_indefinitely
        # Whether an earlier iteration has consumed elements of the pass that is being loaded.
        self._begun = False
        self._ring = Ring(buffer_size)
        # The thread holds no reference to self: it ends when the accessor is garbage-collected, or at exit.
        thread = threading.Thread(
            target=_load, args=(self._ring, self._dataset, load_indefinitely, OwnDraws()), daemon=True
        )
        self._end = weakref.finalize(self, _end_thread, self._ring, thread)
        thread.start()
        try:
            self._ring.wait_until_started()
        except Exception as error:
            self._end()
            # As text: a log handler that keeps records would keep the accessor alive through the traceback.
            logger.error("The data set failed before its first element:\n%s", traceback.format_exc())
            raise createPoptorchError(
                "AsynchronousDataAccessor worker thread failed to start (Check above for details)"
            ) from error
        if early_preload:
            self._ring.open()

    def terminate(self) -> None:
        """Stops the worker; iterating afterwards raises poptorch.Error."""
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
        # With load_indefinitely, the next pass is already being loaded; otherwise a restart requests it.
        self._begun = not self._load_indefinitely


# What PopTorch's worker process gets of a torch loader.
_PARTS_OF_LOADER = ("dataset", "batch_sampler", "collate_fn", "worker_init_fn")


def _check_picklable(dataset: Any) -> None:
    """Raises poptorch.Error if the data set, or a part of a loader, can't be pickled."""
    loader = dataset.loader if isinstance(dataset, Rebatched) else dataset
    parts = {"data set": loader}
    if isinstance(loader, torch.utils.data.DataLoader):
        parts = {name: getattr(loader, name) for name in _PARTS_OF_LOADER}
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as error:
            raise createPoptorchError(
                f"The {name} of type {type(part).__name__} can't be pickled ({error}). PopTorch's worker is "
                "a process, which gets it by pickling, unless sharing_strategy is SharingStrategy.Fork; "
                f"without {variables.STRICT} the simulator's worker is a thread."
            ) from error


class _Indexed:
    """Iterates over a data set by index up to its length; Python's protocol would rely on IndexError."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (self._dataset[index] for index in range(len(self._dataset)))


def _load(ring: Ring, dataset: Any, load_indefinitely: bool, draws: OwnDraws) -> None:
    with draws:
        ring.load(dataset, flatten, load_indefinitely)
    # A torch loader keeps persistent workers until it is garbage-collected. And if an exception keeps an
    # iterator alive that isn't shut down, processes forked later try to shut it down.
    loader = dataset.loader if isinstance(dataset, Rebatched) else dataset
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def _end_thread(ring: Ring, thread: threading.Thread) -> None:
    ring.stop()
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(_JOIN_TIMEOUT_S)
