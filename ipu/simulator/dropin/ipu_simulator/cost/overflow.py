"""The proof that an IPU's memory doesn't suffice."""

from __future__ import annotations

from typing import Iterable

from ..report.verdict import Buffer, Overflow


def overflow(ipu: int, moment: str, live: Iterable[Buffer], usable_bytes: int) -> Overflow:
    """The fewest of the buffers that are `live` at one moment and together exceed `usable_bytes`.

    Taking the largest first gives the fewest. They must exceed it all together.
    """
    buffers = sorted(live, key=lambda buffer: -buffer.bytes)
    over_bytes = sum(buffer.bytes for buffer in buffers) - usable_bytes
    assert over_bytes > 0, f"{buffers} fit into {usable_bytes}"
    taken: list[Buffer] = []
    taken_bytes = 0
    for buffer in buffers:
        taken.append(buffer)
        taken_bytes += buffer.bytes
        if taken_bytes > usable_bytes:
            break
    return Overflow(ipu, moment, over_bytes, tuple(taken))
