"""DataLoader, which yields one combined batch per call of a model."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Sized, cast

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from ._logging import logger
from ._run.structure import joined
from .accessor import AsynchronousDataAccessor, Rebatched
from .enums import DataLoaderMode
from .options import Options
from .poptorch_core import createPoptorchError


def _length(dataset: Dataset[Any]) -> int:
    # torch's Dataset doesn't declare __len__, but a map-style one has it.
    return len(cast(Sized, dataset))


class _SubDataset(Dataset[Any]):
    """One process's part of a data set: a contiguous slice, after a shuffle shared by all processes.

    `step` is the combined batch size of one process. Without drop_last the last process's slice may be
    shorter. With drop_last all processes have the same number of whole steps; so that the remainder isn't
    always the same elements, in every other epoch all slices start that many elements later.
    """

    def __init__(
        self, dataset: Dataset[Any], opts: Options, step: int, drop_last: bool, shuffle: bool = False
    ):
        num_elements = _length(dataset)
        processes = opts.Distributed.numProcesses
        if drop_last:
            length = step * (num_elements // (step * processes))
            self._leftovers = num_elements - length * processes
            self._length = length
        else:
            length = (num_elements + processes - 1) // processes
            self._leftovers = 0
            self._length = max(0, min(length, num_elements - length * opts.Distributed.processId))
        self._dataset = dataset
        self._offset = length * opts.Distributed.processId
        self._seed = opts.random_seed if shuffle else None
        # In shared memory: persistent worker processes hold a copy of this object.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        self._order: tuple[int, torch.Tensor] | None = None

    def next_epoch(self) -> None:
        """Moves the window and reshuffles; the first call starts epoch 0."""
        self._epoch += 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(f"Invalid index {index}: this process's part has {self._length} elements")
        epoch = max(0, int(self._epoch))
        window = self._leftovers if epoch % 2 else 0
        return self._dataset[self._element(epoch, self._offset + window + index)]

    def _element(self, epoch: int, position: int) -> int:
        if self._seed is None:
            return position
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            self._order = (epoch, torch.randperm(_length(self._dataset), generator=generator))
        return int(self._order[1][position])


class _Indices(list[int]):
    """The indices of one of the batch sampler's batches."""


class _Batches(Dataset[Any]):
    """A data set that also gives whole batches of samples, by their `_Indices`.

    Its attributes are the original's: a program's worker_init_fn may set them.
    """

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_dataset", dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, _Indices):
            return self._dataset[index]
        several = getattr(self._dataset, "__getitems__", None)
        return [self._dataset[i] for i in index] if several is None else several(list(index))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)


class _CollateEach:
    """Collates each of the batch sampler's batches, and concatenates the results."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, batches: list[list[Any]]) -> Any:
        return joined([self._collate(samples) for samples in batches])


class _SeveralBatches(Sampler[list[_Indices]]):
    """Yields lists of `factor` successive batches of a batch sampler."""

    def __init__(self, batches: Any, factor: int, drop_last: bool):
        self._batches = batches
        self._factor = factor
        self._drop_last = drop_last

    def __len__(self) -> int:
        rounding = 0 if self._drop_last else self._factor - 1
        return (len(self._batches) + rounding) // self._factor

    def __iter__(self) -> Iterator[list[_Indices]]:
        several: list[_Indices] = []
        for batch in self._batches:
            several.append(_Indices(batch))
            if len(several) == self._factor:
                yield several
                several = []
        if several and not self._drop_last:
            yield several


class _SyncLoader(torch.utils.data.DataLoader[Any]):
    """torch's loader; each iteration starts a new epoch of a _SubDataset."""

    def __iter__(self) -> Any:
        if isinstance(self.dataset, _SubDataset):
            self.dataset.next_epoch()
        return super().__iter__()


def _batches_per_call(options: Options) -> int:
    """Micro batches per call in each input: device iterations * input groups * gradient accumulation."""
    groups = options.replication_factor // options.input_group_size
    return options.device_iterations * groups * options.Training.gradient_accumulation


class DataLoader(_SyncLoader):
    """Yields combined batches: batch_size * device iterations * replicas (or groups) * gradient accumulation.

    Freezes the options. `drop_last` is True by default, unlike torch's: a compiled model refuses a short
    batch. With several processes (options.Distributed) each gets its part of the data set, unless
    `auto_distributed_partitioning` is False. Further keyword arguments are torch's.

    Asynchronous modes prefetch in the background: see AsynchronousDataAccessor, which gets `async_options`.
    `rebatched_worker_size` is the workers' batch size in AsyncRebatched mode. `collate_fn` is called for each
    of a `batch_sampler`'s batches, whose results are concatenated to a combined batch; otherwise once.

    Raises poptorch.Error for a `batch_sampler` with batch_size, shuffle or partitioning, AssertionError for
    partitioning of an IterableDataset, and for a partitioned shuffle without options.randomSeed.
    """

    def __init__(
        self,
        options: Options,
        dataset: Dataset[Any],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: bool | None = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: dict[str, Any] | None = None,
        rebatched_worker_size: int | None = None,
        batch_sampler: Any = None,
        **kwargs: Any,
    ):
        assert isinstance(options, Options), "Expected poptorch.Options"
        options._freeze()
        batches_per_call = _batches_per_call(options)
        distributed = options.Distributed.numProcesses > 1 and auto_distributed_partitioning
        if batch_sampler is not None:
            _check_batch_sampler(batch_size, shuffle, distributed)
            combined = None
            if getattr(batch_sampler, "batch_size", None) is not None:
                combined = batch_sampler.batch_size * batches_per_call
        else:
            combined = None if batch_size is None else batch_size * batches_per_call

        if mode == DataLoaderMode.Async and not drop_last and batch_size is not None:
            # Otherwise the last batch of each worker would be short.
            mode = DataLoaderMode.AsyncRebatched
        rebatched = mode == DataLoaderMode.AsyncRebatched

        if isinstance(dataset, IterableDataset):
            _check_iterable(num_workers, kwargs.get("worker_init_fn"), distributed)
        elif distributed and combined is not None:
            dataset = _partition(dataset, options, combined, drop_last, bool(shuffle))
            if shuffle:
                shuffle = None
        if not drop_last and combined is not None and not isinstance(dataset, IterableDataset):
            _warn_of_remainder(_length(dataset), combined)

        loading = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0 if persistent_workers is None else persistent_workers,
            **kwargs,
        }
        if batch_sampler is not None:
            loading["batch_sampler"] = _SeveralBatches(batch_sampler, batches_per_call, drop_last)
            collate = loading.get("collate_fn") or torch.utils.data.default_collate
            loading["collate_fn"] = _CollateEach(collate)
            if not isinstance(dataset, IterableDataset):  # which PyTorch refuses together with a sampler
                dataset = _Batches(dataset)
        else:
            worker_size = rebatched_worker_size if rebatched and rebatched_worker_size else combined
            loading.update(batch_size=worker_size, shuffle=shuffle)
            # torch refuses drop_last without a batch size.
            loading["drop_last"] = drop_last and combined is not None and not rebatched
        super().__init__(dataset, **loading)

        self._options = options
        self._combined_batch_size = combined
        self._accessor: AsynchronousDataAccessor | None = None
        if mode != DataLoaderMode.Sync:
            # The background worker gets a separate loader, so that it doesn't keep this one alive, with a
            # separate generator, so that the random numbers don't depend on timing.
            if loading.get("generator") is None:
                seed = int(torch.empty((), dtype=torch.int64).random_())
                loading["generator"] = torch.Generator().manual_seed(seed)
            loader = _SyncLoader(dataset, **loading)
            batches = Rebatched(loader, combined, drop_last) if rebatched and combined else loader
            self._accessor = AsynchronousDataAccessor(batches, **(async_options or {}))

    @property
    def combinedBatchSize(self) -> int | None:
        """The number of elements per combined batch; None without automatic batching."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options, frozen."""
        return self._options

    def terminate(self) -> None:
        """Stops the background worker of an asynchronous loader."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __len__(self) -> int:
        return super().__len__() if self._accessor is None else len(self._accessor)

    def __iter__(self) -> Any:
        return super().__iter__() if self._accessor is None else iter(self._accessor)


def _check_batch_sampler(batch_size: int | None, shuffle: bool | None, distributed: bool) -> None:
    if batch_size not in (1, None) or shuffle:
        raise createPoptorchError("`batch_sampler` option is mutually exclusive with batch_size, shuffle.")
    if distributed:
        raise createPoptorchError(
            "`batch_sampler` option is mutually exclusive with auto_distributed_partitioning=True."
        )


def _check_iterable(
    num_workers: int, worker_init_fn: Callable[[int], None] | None, distributed: bool
) -> None:
    assert not distributed, (
        "auto_distributed_partitioning=True does not work with IterableDataset: partition the data set "
        "yourself and pass auto_distributed_partitioning=False"
    )
    if num_workers > 0 and worker_init_fn is None:
        logger.warning(
            "Each of the %d workers reads the whole IterableDataset: pass a worker_init_fn that gives each "
            "its part",
            num_workers,
        )


def _partition(
    dataset: Dataset[Any], options: Options, combined: int, drop_last: bool, shuffle: bool
) -> _SubDataset:
    if shuffle:
        assert options.exists("random_seed"), (
            "When using auto_distributed_partitioning you must set poptorch.Options.randomSeed() so that "
            "every process shuffles the data set in the same way"
        )
    return _SubDataset(dataset, options, combined, drop_last, shuffle)


def _warn_of_remainder(num_elements: int, combined: int) -> None:
    remainder = num_elements % combined
    if remainder:
        logger.warning(
            "The number of elements in the data set (%d) isn't a multiple of the combined batch size (%d): "
            "with drop_last=False the last batch has %d elements, which a model compiled for %d refuses",
            num_elements,
            combined,
            remainder,
            combined,
        )
