"""The rules of overlapped input and output: set_overlap_for_input and set_overlap_for_output.

On an IPU they name a stream between host and device, whose transfers I/O tiles carry while the other tiles
compute. So they take an input as the forward got it, or give an output as it is returned, and nothing else
may use that tensor. PopTorch allows it under sharded execution only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, NamedTuple

import torch

from ..enums import OverlapMode
from ..poptorch_core import createBackendError
from . import callers

if TYPE_CHECKING:
    from ..options import Options

Sources = Mapping[int, list[torch.Tensor]]  # by id: the tensors that a tensor was computed from


class _Marked(NamedTuple):
    """A tensor, its overlapped equal, and the program's FILE:LINE."""

    tensor: torch.Tensor
    overlapped: torch.Tensor
    where: str | None


class Overlaps:
    """The overlapped inputs and outputs of one forward.

    :param inputs: the forward's tensors, by identity.
    """

    def __init__(self, options: Options, inputs: list[torch.Tensor]) -> None:
        self._options = options
        self._given = inputs
        self._inputs: list[_Marked] = []
        self._outputs: list[_Marked] = []

    def add_input(self, tensor: torch.Tensor, overlapped: torch.Tensor, mode: OverlapMode) -> None:
        """Raises poptorch.Error if `tensor` is no input, or options don't allow an overlap."""
        if not any(tensor is given for given in self._given):
            raise createBackendError(
                "poptorch.set_overlap_for_input applied on a node which is not a tensor input to the model: "
                "apply it to an argument of forward, before any other operation."
            )
        self._check_options("input", mode)
        self._inputs.append(_Marked(tensor, overlapped, callers.place(in_program=True)))

    def add_output(self, tensor: torch.Tensor, overlapped: torch.Tensor, mode: OverlapMode) -> None:
        """Raises poptorch.Error if options don't allow an overlap; whether it is returned, `check` finds."""
        self._check_options("output", mode)
        self._outputs.append(_Marked(tensor, overlapped, callers.place(in_program=True)))

    def _check_options(self, what: str, mode: OverlapMode) -> None:
        if mode is OverlapMode.NoOverlap:
            return
        asked = f"poptorch.set_overlap_for_{what}(..., poptorch.OverlapMode.{mode.name})"
        if self._options._execution_strategy._is_pipelined:
            raise createBackendError(
                f"{asked} isn't supported by poptorch.PipelinedExecution, the default strategy. If you use "
                "only one IPU, switch to poptorch.ShardedExecution."
            )
        if not self._options.TensorLocations.exists("numIOTiles"):
            raise createBackendError(
                f"{asked}: no IO tiles allocated. Allocate at least 32 with "
                "poptorch.Options().TensorLocations.numIOTiles(num_tiles)."
            )

    def check(self, outputs: list[torch.Tensor], sources: Sources) -> None:
        """At the forward's end: raises poptorch.Error if an overlapped tensor is used in another way too."""
        for marked in self._inputs:
            taken = _is_used(marked.tensor, sources, but_for=marked.overlapped)
            if taken or any(marked.tensor is output for output in outputs):
                raise createBackendError(
                    f"poptorch.set_overlap_for_input applied{_at(marked)} on a tensor which is used "
                    "elsewhere too: use its result instead of the argument everywhere."
                )
        for marked in self._outputs:
            times = sum(marked.overlapped is output for output in outputs)
            if _is_used(marked.overlapped, sources) or not times:
                raise createBackendError(
                    f"poptorch.set_overlap_for_output applied{_at(marked)} on a node which is not a tensor "
                    "output of the model, or is used elsewhere too: forward must return its result, and "
                    "nothing else may use it."
                )
            if times > 1:
                raise createBackendError(
                    f"poptorch.set_overlap_for_output applied{_at(marked)} on a tensor which is returned "
                    f"{times} times: return it once."
                )


def _at(marked: _Marked) -> str:
    return f" at {marked.where}" if marked.where else ""


def _is_used(tensor: torch.Tensor, sources: Sources, but_for: torch.Tensor | None = None) -> bool:
    """Whether another tensor was computed from this one; conversions that return it itself don't count."""
    harmless = {id(tensor), id(but_for)}
    return any(
        any(source is tensor for source in found) for made, found in sources.items() if made not in harmless
    )
