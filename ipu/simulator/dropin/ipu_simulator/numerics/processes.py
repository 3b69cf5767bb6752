"""Replicas in several processes: gradients meet in a sum over torch.distributed."""

from __future__ import annotations

import atexit
import time
from typing import List, Optional, Sequence

import torch

from .. import variables

Gradients = List[Optional[torch.Tensor]]

# Gloo's threads get this long to free what they hold before the process group goes.
_LETTING_GO_S = 0.1


class Processes:
    """All processes that train one model together; `index` is this one's, counted from 0.

    Every process has the same number of replicas. Sums go over Gloo: through the default group if the
    program has made one, else through one made here from the environment that torchrun sets.

    Raises ValueError where there is no way to the others, or another number of them than `count`.
    """

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count
        self._group: Optional[torch.distributed.ProcessGroup] = _gloo_group(count) if count > 1 else None

    def sum_gradients(self, weights: Sequence[torch.Tensor], gradients: Gradients) -> Gradients:
        """The gradients summed over all processes; one that only others have counts as zeros here."""
        if self.count == 1:
            return gradients
        present = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.int32)
        torch.distributed.all_reduce(present, group=self._group)
        summed = [
            (torch.zeros_like(weight) if gradient is None else gradient.contiguous()) if count else None
            for weight, gradient, count in zip(weights, gradients, present.tolist())
        ]
        works = [
            torch.distributed.all_reduce(gradient, group=self._group, async_op=True)
            for gradient in summed
            if gradient is not None
        ]
        for work in works:
            work.wait()
        return summed


def _gloo_group(count: int) -> Optional[torch.distributed.ProcessGroup]:
    if not torch.distributed.is_available():
        raise ValueError(f"{count} processes train together, but this PyTorch has no torch.distributed.")
    if not torch.distributed.is_initialized():
        absent = [n for n in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE") if not variables.is_set(n)]
        if absent:
            raise ValueError(
                f"{count} processes train together, but there is no way to the others: {', '.join(absent)} "
                "not set. Start the processes with torchrun, or call "
                "torch.distributed.init_process_group('gloo') before the model is compiled; or use "
                "replicationFactor for replicas in one process, and Options.Distributed.disable()."
            )
        torch.distributed.init_process_group("gloo")
        # Gloo's threads abort a process that ends while they are running.
        atexit.register(_leave)
    found = torch.distributed.get_world_size()
    if found != count:
        raise ValueError(
            f"Options.Distributed says {count} processes, torch.distributed has {found}. Give "
            "Options.Distributed.configureProcessId(rank, world size) those of torch.distributed."
        )
    if torch.distributed.get_backend() == "gloo":
        # The default group by no reference of ours: who holds one to the end keeps it from closing.
        return None
    return torch.distributed.new_group(backend="gloo")


def _leave() -> None:
    if torch.distributed.is_initialized():
        # torch 2.0 joins Gloo's threads while holding the GIL, which they need to free tensors: deadlock.
        time.sleep(_LETTING_GO_S)
        torch.distributed.destroy_process_group()
