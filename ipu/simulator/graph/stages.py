"""The pipeline's stages: what each computes forward, again and backward, and what it keeps meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Op


@dataclass(frozen=True)
class Stage:
    """One forward pipeline stage and the backward stage that belongs to it; both on the same IPU.

    :param recompute: forward operations that run again before the backward pass; empty in the last stage.
    :param stashed: ids of tensors that wait for the backward pass: the stage's inputs and its checkpoints.
    :param stash_slots: how many micro batches of `stashed` wait at once: 2(F-1-s)+1, 0 in the last stage.
    :param sends_forward: ids of tensors that go to another IPU; their gradients come back.
    """

    index: int
    ipu: int
    forward: tuple[Op, ...]
    recompute: tuple[Op, ...]
    backward: tuple[Op, ...]
    stashed: tuple[int, ...]
    stash_slots: int
    sends_forward: tuple[int, ...]
