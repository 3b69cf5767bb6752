"""Loading in the background, into a ring of buffers that are used again and again."""

from __future__ import annotations

import threading
import traceback
import weakref
from typing import Any, Iterator

from ._loading.draws import OwnDraws
from ._loading.elements import Rebatched, flatten
from ._loading.ring import EndOfPass, Ring, Stopped
from ._logging import logger
from .enums import SharingStrategy
from .poptorch_core import createPoptorchError

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
