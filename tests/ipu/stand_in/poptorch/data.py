"""poptorch.DataLoader: combined batches; in asynchronous mode from a process that runs PyTorch's loader."""

from __future__ import annotations

import os
import queue
import signal
import time

import torch
import torch.multiprocessing

from .options import DataLoaderMode
from .poptorch_core import Error, record

# So long PopTorch waits for its process, and that for its workers; enough on a busy machine.
PATIENCE_S = 60


class DataLoader(torch.utils.data.DataLoader):
    def __init__(
        self,
        options,
        dataset,
        batch_size=1,
        shuffle=None,
        num_workers=0,
        drop_last=True,
        persistent_workers=None,
        auto_distributed_partitioning=True,
        mode=DataLoaderMode.Sync,
        async_options=None,
        rebatched_worker_size=None,
        batch_sampler=None,
        **kwargs,
    ):
        assert not auto_distributed_partitioning and batch_sampler is None and async_options is None
        assert isinstance(mode, DataLoaderMode), mode
        options.freeze()
        self._accessor = None
        combined = batch_size * options.device_iterations * options.replication_factor
        combined *= options.Training.gradient_accumulation
        super().__init__(
            dataset,
            batch_size=combined,
            shuffle=shuffle,
            num_workers=num_workers,
            drop_last=drop_last,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **kwargs,
        )
        if mode is not DataLoaderMode.Sync:
            words = {
                "num_workers": num_workers,
                "drop_last": drop_last,
                "persistent_workers": num_workers > 0,
            }
            loader = torch.utils.data.DataLoader(dataset, batch_size=combined, **words, **kwargs)
            self._accessor = Accessor(loader)

    def __iter__(self):
        return super().__iter__() if self._accessor is None else iter(self._accessor)

    def terminate(self):
        if self._accessor is not None:
            self._accessor.terminate()


class Accessor:
    """The batches of a loader that another process iterates over. A batch is overwritten by the next one."""

    def __init__(self, loader):
        context = torch.multiprocessing.get_context("forkserver")
        self._batches, self._stop = context.Queue(maxsize=2), context.Event()
        self._process = context.Process(target=_load, args=(loader, self._batches, self._stop), daemon=False)
        self._process.start()
        record("accessor", pid=self._process.pid)

    def __iter__(self):
        previous = ()
        while True:
            try:
                batch = self._batches.get(timeout=0.02)
            except queue.Empty:
                if not self._process.is_alive():
                    raise Error("The data accessor's process has ended") from None
                continue
            if batch is None:
                return
            for tensor in previous:
                tensor.fill_(-7)
            previous = batch
            yield batch

    def terminate(self):
        self._stop.set()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)
            self._process.join()


def _load(loader, batches, stop):
    iterator = iter(loader)
    stall_at = int(os.environ.get("STAND_IN_STALL_AT", "0"))
    for number, batch in enumerate(iterator, 1):
        while number == stall_at and not stop.is_set():
            time.sleep(0.05)
        while not stop.is_set():
            try:
                batches.put(batch, timeout=0.05)
                break
            except queue.Full:
                pass
        if stop.is_set():
            break
    else:
        batches.put(None)
        stop.wait()
    batches.cancel_join_thread()
    for worker in getattr(iterator, "_workers", ()):
        worker.terminate()
    for worker in getattr(iterator, "_workers", ()):
        worker.join(PATIENCE_S)
        if worker.is_alive():
            raise RuntimeError("a loader's worker survived SIGTERM")
