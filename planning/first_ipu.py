"""What the first IPU does beside its layers, and how published placements allow for it.

The search puts more layers on IPU 0 than published recipes do. This section of docs/accuracy.md shows what it
counts there, how much it could have missed, and what the published placements balance.
"""

from __future__ import annotations

from collections import defaultdict
from typing import DefaultDict, List, Sequence

from ipu_simulator.cost.constants import constants

from .fit_constants import MeasuredRow


def as_markdown(rows: Sequence[MeasuredRow]) -> List[str]:
    """The section, for rows of which IPU 0 has the embedding and the heads."""
    lines = [
        "## The first IPU",
        "",
        "IPU 0 has the embedding, the gathering of masked positions, the projection on the vocabulary and",
        "their gradients. In layers: what it does beside its layers, in time; what it holds beside them,",
        "in weights; and how many layers fewer than another IPU it has.",
        "",
        "| row | model | layers on IPUs | other work | other weights | layers fewer |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "The layers that published placements spare IPU 0, of which MLPerf's were tuned by hand in halves",
        "of a layer, follow the weights that it holds beside them, not the time: its memory was full.",
        "Where a model's layers leave memory free there, as GroupBERT Base's do, nothing in these rows",
        "speaks against layers on it. With three layers on each IPU, GroupBERT Base is faster than with",
        "four on three of them as long as the other work on IPU 0 takes less than one layer's time, 3.6",
        "times what is counted. A copy of the whole word table into another layout for the lookup, and",
        "one more for its gradient, in each micro batch, would add a twentieth of a layer. They aren't",
        "counted: PopART ties the lookup to the projection's layout.",
        "",
    ]
    return lines


def _line(measured: MeasuredRow) -> str:
    row = measured.row
    times: DefaultDict[int, float] = defaultdict(float)
    for work in measured.program.work(measured.target, constants()):
        times[work.ipu] += work.forward_s + work.backward_s
    layers = row.layers_per_ipu
    other = [held[0] / (held[1] / layers[1]) - layers[0] for held in (times, measured.weights)]
    places = ", ".join(f"{count:g}" for count in layers)
    fewer = max(layers) - layers[0]
    return f"| {row.id} | {row.model} | {places} | {other[0]:.1f} | {other[1]:.1f} | {fewer:g} |"
