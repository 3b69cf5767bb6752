"""What a bar, a point or a slice of report.html stands for: operation, module, bytes and cycles, in lines.

A hint is the element's <title>, which browsers show as a tooltip and screen readers read; the page's script
shows it beside the charts, for the pointer and the keyboard.
"""

from __future__ import annotations

from collections import defaultdict

from ..cost.verdict import LivenessPoint, Verdict, Work
from .schedule import Slice
from .sums import human_bytes, human_seconds

# Operations of a slice that are named.
_NAMED = 3


class Hints:
    """The hints of one verdict."""

    def __init__(self, verdict: Verdict) -> None:
        details = verdict.details
        self._verdict = verdict
        self._buffers: dict[tuple[int, str], list[str]] = defaultdict(list)
        for ipu, buffer in details.largest_buffers:
            where = f", in {buffer.module}" if buffer.module else ""
            self._buffers[ipu, buffer.component].append(f"{human_bytes(buffer.bytes)}: {buffer.name}{where}")
        self._of_operation: dict[tuple[int, str, str], tuple[float, int]] = {}
        self._of_stage: dict[tuple[int, int, str], list[Work]] = defaultdict(list)
        for work in details.work:
            label = f"{work.op} in {work.module}" if work.module else work.op
            cycles, count = self._of_operation.get((work.ipu, work.phase, label), (0.0, 0))
            self._of_operation[work.ipu, work.phase, label] = (cycles + work.cycles, count + work.count)
            self._of_stage[work.ipu, work.stage, work.phase].append(work)
        self._most: dict[tuple[int, str], int] = {}
        for point in details.liveness:
            key = (point.ipu, point.phase)
            self._most[key] = max(point.live_bytes, self._most.get(key, 0))

    def component(self, ipu: int, name: str, size: int, when: str) -> str:
        """Of a component in an IPU's memory bar; `when`: "at the peak" or "always"."""
        lines = [f"{name.replace('_', ' ')}: {human_bytes(size)} on IPU {ipu}, {when} ({size:,} B)"]
        moment = self._verdict.details.peak_moments.get(ipu)
        if when != "always":
            if moment is not None:
                lines.append(f"the peak is in {moment}{self._cycles_at(ipu, moment)}")
            found = self._buffers[ipu, name]
            lines += ["largest buffers:", *found] if found else []
        return "\n".join(lines)

    def _cycles_at(self, ipu: int, moment: str) -> str:
        phase, _, label = moment.partition(": ")
        cycles, count = self._of_operation.get((ipu, phase, label), (0.0, 0))
        return f", {cycles / count:,.0f} cycles" if count else ""

    def point(self, point: LivenessPoint) -> str:
        """Of a point of the liveness curve: the bytes live during an operation."""
        operation, _, module = point.label.partition(" in ")
        lines = [f"{human_bytes(point.live_bytes)} live on IPU {point.ipu} ({point.live_bytes:,} B)"]
        lines.append(f"operation: {operation}, {point.phase}")
        if module:
            lines.append(f"module: {module}")
        cycles, count = self._of_operation.get((point.ipu, point.phase, point.label), (0.0, 0))
        if count:
            times = f", {count} times in a cycle" if count > 1 else ""
            lines.append(f"cycles: {cycles / count:,.0f}{times}")
        return "\n".join(lines)

    def slice(self, slice_: Slice) -> str:
        """Of a part of a stage in the pipeline."""
        which = f", micro batch {slice_.micro_batch}" if slice_.micro_batch >= 0 else ""
        first = f"{slice_.part}, stage {slice_.stage}{which}: {human_seconds(slice_.duration_s)}"
        clock_hz = self._verdict.details.clock_hz
        if clock_hz:
            first += f", {slice_.duration_s * clock_hz:,.0f} cycles"
        lines = [first]
        most = self._most.get((slice_.ipu, slice_.part))
        if most is not None:
            lines.append(f"at most {human_bytes(most)} live on IPU {slice_.ipu} in {slice_.part}")
        for work in self._costliest(slice_):
            where = f" in {work.module}" if work.module else ""
            lines.append(f"{work.op}{where}: {work.cycles:,.0f} cycles")
        return "\n".join(lines)

    def _costliest(self, slice_: Slice) -> list[Work]:
        found = self._of_stage.get((slice_.ipu, slice_.stage, slice_.part), [])
        return sorted(found, key=lambda work: -work.cycles)[:_NAMED]
