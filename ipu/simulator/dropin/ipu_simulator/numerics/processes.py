"""Replicas in several processes: gradients are summed with torch.distributed."""

from __future__ import annotations

import atexit
import time
from typing import List, Optional, Sequence

import torch

from .. import variables

Gradients = List[Optional[torch.Tensor]]

# Gloo's threads get this long to free their tensors before the process group is destroyed.
_LETTING_GO_S = 0.1


class Processes:
    """All processes that train one model together; `index` is that of this process, from 0.

    Every process has the same number of replicas. Sums use Gloo: the default process group if the program has
    created one, otherwise one created here from torchrun's environment variables.

    Raises ValueError if the process group can't be created, or if its size isn't `count`.
    """

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count
        self._group: Optional[torch.distributed.ProcessGroup] = _gloo_group(count) if count > 1 else None

    def sum_gradients(self, weights: Sequence[torch.Tensor], gradients: Gradients) -> Gradients:
        """The gradients summed over all processes; a gradient missing in this process counts as zeros."""
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
                f"{count} processes train together, but torch.distributed can't be initialised: "
                f"{', '.join(absent)} not set. Start the processes with torchrun, or call "
                "torch.distributed.init_process_group('gloo') before the model is compiled; or use "
                "replicationFactor for replicas in one process, and Options.Distributed.disable()."
            )
        torch.distributed.init_process_group("gloo")
        # If Gloo's threads are still running at exit, they abort the process.
        atexit.register(_leave)
    found = torch.distributed.get_world_size()
    if found != count:
        raise ValueError(
            f"Options.Distributed says {count} processes, torch.distributed has {found}. Call "
            "Options.Distributed.configureProcessId(rank, world size) with those of torch.distributed."
        )
    if torch.distributed.get_backend() == "gloo":
        # Use the default group without keeping a reference, which would prevent it from being destroyed.
        return None
    group: torch.distributed.ProcessGroup = torch.distributed.new_group(backend="gloo")
    return group


def _leave() -> None:
    if torch.distributed.is_initialized():
        # torch 2.0 joins Gloo's threads while holding the GIL, which they need to free tensors: deadlock.
        time.sleep(_LETTING_GO_S)
        torch.distributed.destroy_process_group()
