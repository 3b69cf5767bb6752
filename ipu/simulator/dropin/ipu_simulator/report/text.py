"""The verdict as a table for terminals, at most 110 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from ..cost.verdict import IpuMemory, Overflow, Verdict
from .sums import (
    Share,
    busiest_ipu,
    by_kind,
    by_module,
    cycle_name,
    flags,
    fullest,
    human_bytes,
    human_count,
    human_flop,
    human_rate,
    human_seconds,
    near_edge,
    percent,
    samples_per_step,
    step_name,
)

_BAR_WIDTH = 30
_WIDTH = 110
_SHARES_SHOWN = 6
_PARTS_WIDTH = 100
_BUFFERS_SHOWN = 12
# Width of a buffer's name and module together, and minimum width of the module.
_BUFFER_WIDTH, _MODULE_WIDTH = 68, 20


def text(verdict: Verdict) -> str:
    """The table that a dry run prints; ends with a newline."""
    sections = [_headline(verdict)]
    if verdict.near_edge:
        sections.append(near_edge(verdict))
    if verdict.details.lacking_ipus:
        sections.append(_lacking_ipus(verdict))
    if verdict.details.overflows:
        sections.append("\n".join(_proofs(verdict)))
    if verdict.remedies:
        sections.append("\n".join(_remedies(verdict)))
    sections += ["\n".join(lines(verdict)) for lines in (_memory, _time, _where)]
    if verdict.details.bounds:
        sections.append("\n".join(_bounds(verdict)))
    sections.append("\n".join(_origin(verdict)))
    return "\n\n".join(sections) + "\n"


def summary(verdict: Verdict, measured_host_s: float) -> str:
    """The verdict in five lines, for the end of a run on the simulator.

    :param measured_host_s: mean seconds per weight update on this host.
    """
    ratio = measured_host_s / verdict.step_s
    compared = f"{ratio:,.1f} times as long" if ratio >= 1 else f"{percent(ratio)} of that time"
    lines = (
        f"{_headline(verdict)}\n"
        f"  weight update on target  {human_seconds(verdict.step_s)} (predicted): "
        f"{human_rate(verdict.samples_per_s)} samples/s, utilisation {percent(verdict.utilisation)}\n"
        f"  weight update on host    {human_seconds(measured_host_s)} (measured): {compared}\n"
    )
    if not verdict.training_steps:
        return lines
    whole = human_seconds(verdict.time_to_train_s)
    return f"{lines}  whole training           {whole} (predicted): {_steps(verdict)}\n"


def _headline(verdict: Verdict) -> str:
    worst = fullest(verdict)
    headroom = worst.usable_bytes - worst.peak_bytes
    what = "headroom" if headroom >= 0 else "over"
    return (
        f"{verdict.config} on {verdict.target}: {'FITS' if verdict.fits else 'DOES NOT FIT'} (predicted)\n"
        f"  IPU {worst.ipu} is the fullest, at {percent(worst.filled)}: {human_bytes(abs(headroom))} {what}"
    )


def _lacking_ipus(verdict: Verdict) -> str:
    return (
        f"too few IPUs: {verdict.target} has {verdict.details.lacking_ipus} fewer than the replicas need, of "
        f"{len(verdict.ipus)} IPUs each; use fewer replicas or a larger machine"
    )


def _proofs(verdict: Verdict) -> Iterator[str]:
    """The proof for the IPU that is furthest over; the others on one line."""
    worst, *others = sorted(verdict.details.overflows, key=lambda overflow: -overflow.over_bytes)
    yield from _proof(worst)
    if others:
        named = ", ".join(f"{other.memory} by {human_bytes(other.over_bytes)}" for other in others)
        yield f"also over: {named} (report.html has their buffers)"


def _proof(overflow: Overflow) -> Iterator[str]:
    total = human_bytes(sum(buffer.bytes for buffer in overflow.buffers))
    number = len(overflow.buffers)
    which = "this buffer alone exceeds" if number == 1 else f"these {number} buffers alone exceed"
    moment = f" in {overflow.moment}" if overflow.m2000 is None else ""
    kind = "proof" if overflow.is_proof else "estimate"
    yield f"{kind}: {overflow.memory} lacks {human_bytes(overflow.over_bytes)}{moment}"
    yield f"  {total:>10}  in total: {which} its memory"
    for buffer in overflow.buffers[:_BUFFERS_SHOWN]:
        where = _shortened(buffer.module, max(_BUFFER_WIDTH - len(buffer.name), _MODULE_WIDTH))
        place = f" in {where}" if where else ""
        yield f"  {human_bytes(buffer.bytes):>10}  {_spoken(buffer.component):<21}  {buffer.name}{place}"
    rest = overflow.buffers[_BUFFERS_SHOWN:]
    if rest:
        size = human_bytes(sum(buffer.bytes for buffer in rest))
        yield f"  {size:>10}  in {len(rest)} smaller ones: see report.html"


def _remedies(verdict: Verdict) -> Iterator[str]:
    yield "remedies (each recomputed by the model; bytes on the fullest IPU, time per weight update)"
    for remedy in verdict.remedies:
        outcome = "fits" if remedy.fits else "does not fit yet"
        sign = "+" if remedy.costs_s >= 0 else ""
        share = remedy.costs_s / verdict.step_s if verdict.step_s else 0.0
        costs = f"{sign}{human_seconds(remedy.costs_s)}"
        head = f"  {outcome:<16}  saves {human_bytes(remedy.saves_bytes):>10}  {share:>+8.1%}  {costs:>10}  "
        first, *others = _wrapped(remedy.change, _WIDTH - len(head))
        yield head + first
        yield from (" " * len(head) + other for other in others)


def _wrapped(change: str, width: int) -> list[str]:
    """Lines that break before a flag."""
    lines: list[str] = []
    for flag in flags(change):
        if lines and len(lines[-1]) + 1 + len(flag) <= width:
            lines[-1] += f" {flag}"
        else:
            lines.append(flag)
    return lines


def _memory(verdict: Verdict) -> Iterator[str]:
    capacity = human_bytes(verdict.ipus[0].capacity_bytes)
    yield f"peak memory in a step (predicted), of {capacity} of SRAM per IPU, unevenly filled"
    for memory in verdict.ipus:
        headroom = memory.usable_bytes - memory.peak_bytes
        what = "headroom" if headroom >= 0 else "over    "
        yield (
            f"  IPU {memory.ipu:<2} [{_bar(memory)}] {percent(memory.filled):>6}  "
            f"{human_bytes(memory.peak_bytes):>10}  {what} {human_bytes(abs(headroom)):>9}  "
            f"always live {human_bytes(memory.always_live_bytes):>9}"
        )
    for memory in verdict.ipus:
        yield f"  IPU {memory.ipu:<2} {_largest_parts(memory)}"


def _largest_parts(memory: IpuMemory) -> str:
    """The largest components, as many as fit on the line."""
    parts = sorted(memory.components.items(), key=lambda item: -item[1])
    line = ""
    for name, size in parts:
        longer = f"{line}, {_spoken(name)} {human_bytes(size)}".removeprefix(", ")
        if not size or len(longer) > _PARTS_WIDTH:
            break
        line = longer
    return line


def _bar(memory: IpuMemory) -> str:
    """'#' always live, '=' live at the peak only, '.' free; '!' at the end: over capacity."""
    scale = _BAR_WIDTH / memory.usable_bytes
    always = min(_BAR_WIDTH, round(memory.always_live_bytes * scale))
    peak = min(_BAR_WIDTH, max(always, round(memory.peak_bytes * scale)))
    bar = "#" * always + "=" * (peak - always) + "." * (_BAR_WIDTH - peak)
    return bar[:-1] + "!" if memory.filled > 1 else bar


def _time(verdict: Verdict) -> Iterator[str]:
    pipeline = verdict.pipeline
    yield f"time (predicted{_error(verdict)})"
    yield (
        f"  {cycle_name(verdict):<17} {human_seconds(pipeline.cycle_s):>12}   "
        f"{_waits_for(verdict)}; {pipeline.pipeline_cycles_per_update:,} per {step_name(verdict)}, "
        f"bubble {percent(pipeline.bubble_fraction)}"
    )
    parts = sorted(verdict.details.update_parts_s.items(), key=lambda item: -item[1])
    named = ", ".join(f"{_spoken(name)} {human_seconds(seconds)}" for name, seconds in parts if seconds)
    if verdict.update_s:
        yield f"  update            {human_seconds(verdict.update_s):>12}   {named}".rstrip()
    yield (
        f"  host              {human_seconds(verdict.host_s):>12}   "
        "call overhead, work on samples, and inputs that take longer than computing"
    )
    if step_name(verdict) == "call":
        yield (
            f"  latency           {human_seconds(verdict.latency_s):>12}   "
            "of a micro batch: from its input on the host to its outputs"
        )
    yield (
        f"  {f'one {step_name(verdict)}':<17} {human_seconds(verdict.step_s):>12}   "
        f"{samples_per_step(verdict):,} samples: {', '.join(_rates(verdict))}"
    )
    yield (
        f"  utilisation       {percent(verdict.utilisation):>12}   of the float16 peak of all IPUs, for "
        f"{human_flop(verdict.flops_per_sample)} per sample"
    )
    if verdict.training_steps:
        yield f"  time to train     {human_seconds(verdict.time_to_train_s):>12}   {_steps(verdict)}"


def _waits_for(verdict: Verdict) -> str:
    if verdict.pipeline.pipelined:
        return f"bounded by IPU {busiest_ipu(verdict)}"
    return "stages run one after another"


def _where(verdict: Verdict) -> Iterator[str]:
    busiest = busiest_ipu(verdict)
    yield f"where the cycles of a micro batch go{'':24}all IPUs   IPU {busiest} (busiest)"
    for shares in (by_kind(verdict), by_module(verdict)):
        yield from (_share(share) for share in shares[:_SHARES_SHOWN])
        rest = shares[_SHARES_SHOWN:]
        if rest:
            yield _share(
                Share(
                    f"{len(rest)} more",
                    0,
                    sum(share.of_all for share in rest),
                    sum(share.of_busiest for share in rest),
                )
            )
        yield ""
    yield f"model: {human_count(verdict.parameters)} parameters"


def _share(share: Share) -> str:
    return (
        f"  {_shortened(share.name, 54):<54}{percent(share.of_all):>11}{percent(share.of_busiest):>11}"
    ).rstrip()


def _bounds(verdict: Verdict) -> Iterator[str]:
    yield "operations without a cost rule, counted with an upper bound (total cycles)"
    for bound in verdict.details.bounds:
        module = _shortened(bound.module, 48)
        yield f"  {bound.op:<24} {bound.count:>5} in {module:<48} {bound.cycles:>14,.0f}"


def _origin(verdict: Verdict) -> Iterator[str]:
    counts: dict[str, int] = {}
    for assumption in verdict.details.assumptions:
        counts[assumption.origin] = counts.get(assumption.origin, 0) + 1
    named = ", ".join(f"{count} {origin}" for origin, count in sorted(counts.items()))
    yield "Every figure above is predicted by a model of the machine; none was measured on an IPU."
    total = len(verdict.details.assumptions)
    yield f"It rests on {total} numbers ({named}): report.html has their sources."


def _error(verdict: Verdict) -> str:
    error = verdict.details.expected_time_error
    if error is not None:
        return f"; off by {percent(error)} on published rows left out of the fit"
    kind = verdict.details.kind
    return f"; no published time of {kind} was at hand" if kind else ""


def _rates(verdict: Verdict) -> Iterator[str]:
    yield f"{human_rate(verdict.samples_per_s)} samples/s"
    if verdict.packs_per_s != verdict.samples_per_s:
        yield f"{human_rate(verdict.packs_per_s)} packs/s"
    if verdict.tokens_per_s:
        yield f"{human_rate(verdict.tokens_per_s)} tokens/s"


def _steps(verdict: Verdict) -> str:
    return f"{verdict.training_steps:,} weight updates"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _shortened(name: str, width: int) -> str:
    """The end of a long module path, which says more than its start; cut after a dot if possible."""
    if len(name) <= width:
        return name
    end = name[3 - width :]
    return "..." + (end.partition(".")[2] or end)
