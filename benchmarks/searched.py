"""GroupBERT Base as published beside the placements that a search finds, at equal sequences of an update."""

from __future__ import annotations

from typing import Dict, Iterator, List, Tuple

from config import AUTO, Config
from planning import dry_run, placement

SEARCHED = ("groupbert_base_128_pod16", "groupbert_base_512_pod16")
_MACHINES = ("pod16", "bow-pod16")
_PLACEMENT: Dict[str, object] = {"layers_per_ipu": AUTO, "matmul_proportion": AUTO}
# What is left to the search: a name for the table, and the keys.
_FREE: Tuple[Tuple[str, Dict[str, object]], ...] = (
    ("published", {}),
    ("layers, proportions", _PLACEMENT),
    ("micro batch too", {**_PLACEMENT, "micro_batch_size": AUTO}),
)
_HEADINGS = (
    "recipe",
    "machine",
    "searched",
    "layers per IPU",
    "memory proportions",
    "micro batch x accumulation",
    "s/update",
    "less time",
    "fullest tile",
)


def searched_page() -> List[str]:
    """Lines of the section in the page of verdicts."""
    lines = [f"| {' | '.join(_HEADINGS)} |", f"|{'---|' * len(_HEADINGS)}"]
    for name in SEARCHED:
        for machine in _MACHINES:
            lines += [f"| {' | '.join(cells)} |" for cells in _rows(name, machine)]
    return [
        "## GroupBERT Base as the search places it",
        "",
        "`--layers-per-ipu auto --matmul-proportion auto`, then also `--micro-batch-size auto`, at the",
        "recipe's sequences of an update. `groupbert_base_128_pod16_fast` is the first of them. *Near the",
        "edge*: a quarter more code than is assumed wouldn't fit.",
        "",
        *lines,
        "",
        "Distrust the gain until an IPU has confirmed it. It comes from IPU 0, which also has the",
        "embeddings, the heads and the tied projection: the search gives it as many layers as the others,",
        "where GroupBERT's authors gave it one or none. No measurement shows what IPU 0 takes or holds in a",
        "GroupBERT, so the models may count too little there; [accuracy.md](accuracy.md#the-first-ipu) says",
        "how much too little would undo the gain. Should IPU 0 run out of memory or be the slowest, go back",
        "to the published placement: the weights of a checkpoint don't depend on it.",
        "",
    ]


def _rows(name: str, machine: str) -> Iterator[List[str]]:
    published_s = 0.0
    for searched, free in _FREE:
        given = {"target": machine, "device": "simulator", **free}
        config: Config = placement.load(name, overrides=given, report=lambda line: None)
        verdict = dry_run.assess(config, name, dry_run.program_of(config))
        published_s = published_s or verdict.step_s
        fullest = f"{max(memory.filled for memory in verdict.ipus):.0%}"
        yield [
            name,
            machine,
            searched,
            " ".join(map(str, config.layers_per_ipu)),
            " ".join(f"{share:g}" for share in config.matmul_proportion),
            f"{config.micro_batch_size} x {config.gradient_accumulation}",
            f"{verdict.step_s:.3f}",
            f"{1 - verdict.step_s / published_s:.1%}" if free else "",
            f"{fullest}, near the edge" if verdict.near_edge else fullest,
        ]
