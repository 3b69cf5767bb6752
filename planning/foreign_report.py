"""What the cost model says of published measurements of other programs, as part of docs/accuracy.md."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from ipu_simulator.cost.constants import Constants, constants
from ipu_simulator.cost.kinds import kind_of

from .foreign_rows import ForeignRow, foreign_row

# Samples of a weight update, in rows that state samples a second.
_UNITS = ("s/update", "samples/s")
# The case that the next power of two of "largest that ran" is presumed to be.
_NEXT = {"M15": "M15+"}
_WHY_NOT = {"M10": "its source has no sizes of the network"}
# Known not to fit; its layout and a size that its source leaves out were assumed knowing so.
_ASSUMED_WITH_THE_ANSWER = {"M5"}


@dataclass(frozen=True)
class TimeRow:
    """A published step time of another program, and its prediction with the shipped constants."""

    id: str
    what: str
    row: ForeignRow
    kind: str
    published_s: float

    def error(self, values: Constants) -> float:
        return self.row.step_s(values) / self.published_s - 1


@dataclass(frozen=True)
class MemoryRow:
    """A case that ran or didn't. `published`: bytes of the fullest tile, where they are known."""

    id: str
    what: str
    fits: bool
    predicted: bool
    filled: Tuple[float, ...]
    published: str
    bytes_error: float | None


def time_rows(rows: Sequence[Mapping[str, str]]) -> List[TimeRow]:
    """The rows of evidence.csv with step times or rates that have programs."""
    found = []
    for row in rows:
        made = foreign_row(row["id"]) if row["kind"] in ("throughput", "throughput+fits") else None
        if made is not None:
            assert row["unit"] in _UNITS, row
            measured, settings = float(row["measured"]), made.settings
            samples = settings.micro_batch_size * settings.gradient_accumulation * settings.replicas
            seconds = measured if row["unit"] == "s/update" else samples / measured
            what = f"{row['model']}, {row['machine']}"
            found.append(TimeRow(row["id"], what, made, kind_of(made.graph), seconds))
    return found


def errors_by_kind(rows: Sequence[TimeRow]) -> Dict[str, List[float]]:
    errors: Dict[str, List[float]] = {}
    for row in rows:
        errors.setdefault(row.kind, []).append(abs(row.error(constants())))
    return errors


def times(rows: Sequence[Mapping[str, str]], left_out: Mapping[str, Constants]) -> List[str]:
    """Tables of times. `left_out`: constants fitted without a group of published rows, by the group."""
    found = time_rows(rows)
    lines = [
        "## Other programs",
        "",
        "No constant is fitted to these rows; `planning/foreign_rows.yml` has the options of their runs, and",
        "what their sources don't say. The last column has the errors with constants fitted without each",
        "group of the rows above, from the lowest to the highest. No row at hand is of fine-tuning on SQuAD.",
        "",
        "| row | program | framework | published s | predicted s | error | groups left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        errors = [row.error(values) for values in left_out.values()]
        lines.append(
            f"| {row.id} | {row.what} | {row.row.settings.framework} | {row.published_s:.4f} | "
            f"{row.row.step_s(constants()):.4f} | {row.error(constants()):+.1%} | "
            f"{min(errors):+.1%} to {max(errors):+.1%} |"
        )
    lines += ["", "| kind | rows | mean | max | target |", "|---|---|---|---|---|"]
    for kind, sizes in errors_by_kind(found).items():
        mean = statistics.mean(sizes)
        lines.append(f"| {kind} | {len(sizes)} | {mean:.1%} | {max(sizes):.1%} | 15%, none beyond 35% |")
    return [*lines, "", *_ratios(rows), *_assumptions(rows)]


def _ratios(rows: Sequence[Mapping[str, str]]) -> List[str]:
    """Rates of one program on several machines, over the first of them."""
    lines = [
        "Rates of one program over that of its first row; its sizes and options are assumed, so that only",
        "ratios are compared:",
        "",
        "| row | program | published ratio | predicted | error |",
        "|---|---|---|---|---|",
    ]
    first: Tuple[float, float] | None = None
    for row in rows:
        made = foreign_row(row["id"]) if row["kind"] == "throughput (ratios)" else None
        if made is not None:
            published, predicted = float(row["measured"]), 1 / made.step_s(constants())
            first = first or (published, predicted)
            ratios = published / first[0], predicted / first[1]
            lines.append(
                f"| {row['id']} | {row['model']}, {row['machine']} | {ratios[0]:.3f} | {ratios[1]:.3f} | "
                f"{ratios[1] / ratios[0] - 1:+.1%} |"
            )
    return [*lines, ""]


def _assumptions(rows: Sequence[Mapping[str, str]]) -> List[str]:
    assumed: Dict[str, List[str]] = {}
    for row in rows:
        made = foreign_row(row["id"])
        if made is not None and made.assumed:
            assumed.setdefault(made.assumed, []).append(row["id"])
    return ["Assumed:", "", *(f"- {', '.join(ids)}: {what}." for what, ids in assumed.items()), ""]


def memory_rows(rows: Sequence[Mapping[str, str]]) -> List[MemoryRow]:
    """The cases of evidence.csv that ran or didn't and that have programs."""
    found = []
    for row in rows:
        for name, fits in _cases(row):
            made = foreign_row(name)
            if made is None:
                continue
            verdict = made.verdict
            fullest = max(memory.fullest_tile_bytes for memory in verdict.ipus)
            published = float(row["measured"]) if "bytes" in row["kind"] else None
            found.append(
                MemoryRow(
                    name,
                    f"{row['model']}, {row['config']}",
                    fits,
                    verdict.fits,
                    tuple(memory.filled for memory in verdict.ipus),
                    "" if published is None else f"{published:,.0f} B",
                    None if published is None else fullest / published - 1,
                )
            )
    return found


def _cases(row: Mapping[str, str]) -> List[Tuple[str, bool]]:
    """(name of a program, whether it fits) for what a row says."""
    kind = row["kind"]
    if not kind.startswith("memory"):
        return [(row["id"], True)] if kind in ("throughput", "throughput+fits") else []
    if row["id"] in _NEXT:
        return [(row["id"], True), (_NEXT[row["id"]], False)]
    return [(row["id"], "OOM" not in kind)]


def memory(rows: Sequence[Mapping[str, str]]) -> List[str]:
    found = memory_rows(rows)
    counts = Counter((each.fits, each.predicted) for each in found if each.id not in _ASSUMED_WITH_THE_ANSWER)
    return [
        "## Memory",
        "",
        "Cases that no constant of memory was chosen on. [verdicts.md](verdicts.md) has those that code",
        "sizes and the tile's imbalance were chosen on, so its confusion matrix is in sample.",
        "",
        "| out of sample | judged to fit | judged not to fit |",
        "|---|---|---|",
        *(
            f"| {title} | {counts[known, True]} | {counts[known, False]} |"
            for title, known in (("ran", True), ("ran out of memory, or presumed so", False))
        ),
        "",
        "| row | program | known | predicted | fullest tile of each IPU | published bytes | error |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {each.id} | {each.what} | {_word(each.fits)} | {_word(each.predicted)} | "
            f"{' '.join(f'{share:.0%}' for share in each.filled)} | {each.published} | "
            f"{'' if each.bytes_error is None else f'{each.bytes_error:+.1%}'} |"
            for each in found
        ),
        "",
        "M15+ is the next power of two, which the source doesn't show. M11 to M13 and N1 to N4 were at hand",
        "when exchange code of collectives was made to follow those of an update; no constant changed.",
        "M5's matrices are assumed to lie in order over the tiles: poplin copies each into the layout of its",
        "product's plan, and the copy lies beside the original while the product runs. That and m3's size",
        "were assumed knowing the answer, so M5 isn't counted above: laid out as the plan wants them, the",
        "same matrices would fit. M15 speaks for it: larger matrices, laid out by the plan at the same",
        "memory proportion, ran.",
        "",
        "On the fullest tile are the working set that a product's plan gives it, the code, which every tile",
        "has, and a share of all else, times an assumed imbalance. In a trial, each small tensor had its 128",
        "bytes (poputil's least on a tile) on the first tiles. That explains an imbalance of 1.03 for",
        "BERT and ViT, but groupbert_large_128_pod16_adam_tf1, which ran, would fill 102%.",
        "",
    ]


def _word(fits: bool) -> str:
    return "fits" if fits else "does not fit"


def not_predicted(rows: Sequence[Mapping[str, str]]) -> List[str]:
    """A list of the rows without a program; products have their own section."""
    names = [
        f"- {row['id']} ({row['kind']}, {row['model']}): {_WHY_NOT.get(row['id'], 'no program of it here')}."
        for row in rows
        if not re.match("dense product", row["kind"]) and foreign_row(row["id"]) is None
    ]
    return ["Not predicted:", "", *names, ""] if names else []
