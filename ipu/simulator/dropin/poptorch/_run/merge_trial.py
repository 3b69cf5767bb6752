"""The trial that decides whether a program's micro batches can be merged (merging.py)."""

from __future__ import annotations

import contextlib
import textwrap
from typing import Any, Callable, ContextManager, Sequence

import torch
from ipu_simulator import numerics
from ipu_simulator.graph.operations import schema_of
from ipu_simulator.host import free_memory_bytes
from ipu_simulator.op_table import row_of
from torch.utils._pytree import tree_flatten

from .._trace.replay import Replay
from .merged_draws import Draw, MergedDraws, UnknownDraw, draw_of, draws

# Bytes that the forward of merged micro batches may make. Merging saves the overhead of each operation, and
# the traffic of weights and their gradients; beyond this there is little left to save.
MOST_BYTES = 512 << 20
# Share of free memory that merged micro batches may need, for the tensors of forward and backward pass.
_SHARE_OF_MEMORY, _PASSES = 0.5, 2
# Relative to a norm. Orders of float32 sums differ by some 5e-7, mistakes by far more.
_TOLERANCE = 3e-6
_NARROW = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class NotMerged(Exception):
    """Why micro batches run one by one."""


class Trial:
    """The first two micro batches of a program, run alone and merged.

    :param calls: the replay of the forward.
    :param trainable: the weights.
    :param lasting: by storage, names of the tensors that outlive a micro batch: weights, buffers and inputs.
    :param before_write: called with each tensor that the forward is about to write to.
    :param running: the context of forwards and their backward passes.
    :param overwrites: whether in-place operations inside it overwrote tensors that gradients need.
    """

    def __init__(
        self,
        calls: Replay,
        trainable: Sequence[torch.Tensor],
        lasting: dict[int | None, str],
        before_write: Callable[[torch.Tensor], None],
        running: Callable[[], ContextManager[None]],
        overwrites: Callable[[], bool],
    ) -> None:
        self._running = running
        self._overwrites = overwrites
        self._calls = calls
        self._trainable = [weight for weight in trainable if weight.requires_grad]
        self._watch = _Watch(lasting, before_write)

    def run(
        self,
        inputs: Sequence[list[torch.Tensor]],
        stacked: list[torch.Tensor],
        seeds: Sequence[int],
        count: int,
    ) -> tuple[list[Draw], int]:
        """The random numbers of a micro batch, and how many of `count` to run together: 1 if merging gains
        nothing.

        `inputs`: of the first two micro batches; `stacked`: the same as [2, ...] each; `seeds`: their seeds.
        Raises NotMerged.
        """
        losses: list[torch.Tensor] = []
        shapes: list[tuple[torch.Size, torch.dtype]] = []
        gradients: list[torch.Tensor] = []
        merged_gradients: list[torch.Tensor] = []
        size = 0
        for own, seed in zip(inputs, seeds):
            torch.default_generator.manual_seed(seed)
            with self._running():
                with contextlib.nullcontext() if size else self._watch:
                    loss, outputs = self._calls(own)
                size = size or self._size(count)
                if size == 1 or loss is None or not loss.requires_grad:
                    return [], 1
                if self._watch.reason:
                    raise NotMerged(self._watch.reason)
                self._add_gradients(loss, gradients)
            losses.append(loss.detach())
            shapes = [(tensor.shape, tensor.dtype) for tensor in outputs]
        if self._overwrites():
            raise NotMerged("an in-place operation overwrites what a gradient needs")
        with self._running():
            together, outputs = run_merged(self._calls, self._watch.drawn, stacked, seeds)
            if [(tensor.shape[1:], tensor.dtype) for tensor in outputs] != shapes or together is None:
                raise NotMerged("torch.func.vmap gives its outputs other shapes or types")
            _compare("losses", [torch.stack(losses)], [together.detach()])
            try:
                self._add_gradients(together, merged_gradients)
            except numerics.FloatingPointException:
                raise
            except Exception as error:
                raise _not_merged(error) from error
        _compare("gradients", gradients, merged_gradients)
        return self._watch.drawn, size

    def _size(self, count: int) -> int:
        """The most micro batches to run together, of `count`."""
        own = max(self._watch.made_bytes, 1)
        size = min(count, MOST_BYTES // own)
        free = free_memory_bytes()
        if free is not None:
            size = min(size, int(free * _SHARE_OF_MEMORY / (_PASSES * own)))
        return max(size, 1)

    def _add_gradients(self, loss: torch.Tensor, sums: list[torch.Tensor]) -> None:
        """Adds the gradients of a loss, or of several, to `sums`; if it is empty, they are the first ones."""
        found = torch.autograd.grad(loss, self._trainable, torch.ones_like(loss), allow_unused=True)
        for index, (weight, gradient) in enumerate(zip(self._trainable, found)):
            own = torch.zeros_like(weight) if gradient is None else gradient.to_dense()
            if index < len(sums):
                sums[index] = sums[index] + own
            else:
                sums.append(own)


def _compare(what: str, alone: list[torch.Tensor], merged: list[torch.Tensor]) -> None:
    """Raises NotMerged if they differ by more than the order of sums explains; NaN and infinity agree."""
    size = sum(float(tensor.double().square().sum()) for tensor in alone) ** 0.5
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(alone, merged)) ** 0.5
    if off > _TOLERANCE * size:
        raise NotMerged(f"its {what} would differ by {off / size if size else off:.1g}")


def run_merged(
    calls: Replay, drawn: Sequence[Draw], inputs: list[torch.Tensor], seeds: Sequence[int]
) -> numerics.Results:
    """(losses, outputs), each [K, ...], of inputs [K, ...] or 0-d. Raises NotMerged.

    `drawn`: the random numbers that a single micro batch draws, in order.
    """
    try:
        with MergedDraws(drawn, seeds) if drawn else contextlib.nullcontext():
            return calls.merged(inputs, draws=bool(drawn))
    except numerics.FloatingPointException:
        raise
    except Exception as error:
        raise _not_merged(error) from error


def _not_merged(error: Exception) -> NotMerged:
    line = next(filter(None, str(error).splitlines()), "")
    return NotMerged(textwrap.shorten(f"{type(error).__name__}: {line}", 160))


class _Watch(numerics.OperationMode):
    """What the forward of one micro batch does: `reason` says why it can't be merged, if it can't.

    `drawn`: its random numbers; `made_bytes`: of all tensors that its operations make.
    """

    def __init__(self, lasting: dict[int | None, str], before_write: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._lasting = lasting
        self._before_write = before_write
        self.reason = ""
        self.drawn: list[Draw] = []
        self.made_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for written in _written(func, args, kwargs):
            self._before_write(written)
            name = self._lasting.get(numerics.storage_of(written))
            if name is not None:
                self._refuse(f"its forward changes {name}")
        result = func(*args, **kwargs)
        used = {numerics.storage_of(leaf) for leaf in tree_flatten((args, kwargs))[0] if _is_tensor(leaf)}
        for tensor in filter(_is_tensor, tree_flatten(result)[0]):
            if tensor.dtype in _NARROW:
                self._refuse(f"its forward computes in {_NARROW[tensor.dtype]}")
            if numerics.storage_of(tensor) not in used:
                self.made_bytes += tensor.numel() * tensor.element_size()
        if draws(func):
            try:
                self.drawn.append(draw_of(func, args, kwargs, result))
            except UnknownDraw as error:
                self._refuse(str(error))
        return result

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes to."""
    schema = schema_of(func)
    given = schema.bind(args, kwargs)
    if not given.attributes.get("training", True):  # a norm that only reads its running statistics
        return []
    also = [args[place] for place in row_of(schema.name).also_writes if place < len(args)]
    return given.written + [tensor for tensor in also if isinstance(tensor, torch.Tensor)]
