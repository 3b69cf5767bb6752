"""Moves a captured program's blocks to other IPUs, without capturing it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Sequence

from .ir import Graph


def restage(graph: Graph, ipu_of_block: Sequence[int]) -> Graph:
    """The graph that would have been captured with these blocks on these IPUs.

    :param graph: captured with every block as a stage of its own: each on another IPU than the one before.
    :param ipu_of_block: for each stage of `graph`, the IPU to put it on. Blocks that follow each other on the
        same IPU become one stage.
    """
    assert len(ipu_of_block) == len(graph.stage_ipus), (ipu_of_block, graph.stage_ipus)
    checkpoints_of_block = Counter(
        graph.producers[graph.owner(number).id].stage
        for number in graph.checkpoints
        if graph.owner(number).id in graph.producers
    )
    stage_ipus: list[int] = []
    places: list[tuple[int, int, int]] = []  # of each block: stage, IPU, checkpoints before it in its stage
    segment = 0
    for block, ipu in enumerate(ipu_of_block):
        if not stage_ipus or stage_ipus[-1] != ipu:
            stage_ipus.append(ipu)
            segment = 0
        places.append((len(stage_ipus) - 1, ipu, segment))
        segment += checkpoints_of_block[block]
    ops = []
    for op in graph.ops:
        stage, ipu, before = places[op.stage]
        ops.append(replace(op, stage=stage, ipu=ipu, segment=before + op.segment))
    return replace(graph, ops=tuple(ops), stage_ipus=tuple(stage_ipus))
