"""The search for "auto" values of `config.AUTO_KEYS`; an entry of `layers_per_ipu` may also be -1, for any
number of layers.

It finds the fastest values that fit, by the cost model of `--dry-run`. The sequences of a weight update stay.
"""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, TextIO, Tuple

from ipu_simulator.cost import search as placement_search
from ipu_simulator.environment import Target, target
from ipu_simulator.report import sums

import config as configuration
import data.workers
from config import ANY, CONFIGS, Config, ConfigError
from ipu.placement import (
    balanced_layers,
    divisors,
    machine_ipus,
    minimum_gradient_accumulation,
    nearest_divisors,
)

from . import programs
from .dry_run import blocks_of, program_of

# The choices for each IPU if matmul_proportion is auto; published recipes range from 0.05 to 1, and 0 is the
# plan with the least memory.
PROPORTIONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8)
# Twice the largest micro batch of a published recipe.
_LARGEST_MICRO_BATCH = 64
_MOST_PLACEMENTS = 5000
# The most placements whose memory is evaluated: for a single micro batch size, or for each of several.
_JUDGED, _JUDGED_OF_A_SIZE = 300, 60
# Seconds between two lines of progress in a log.
_PROGRESS_S = 10.0


def load(
    name: str,
    *,
    path: Path = CONFIGS,
    overrides: Optional[Mapping[str, object]] = None,
    report: Callable[[str], None] = print,
) -> Config:
    """The recipe `name` with `overrides`, as from config.load, with values for the free keys.

    `report` gets lines that explain the choice. If micro_batch_size or replication_factor is free, the global
    batch size stays: gradient_accumulation is changed with it (in a recipe with micro_batch_size auto,
    gradient_accumulation is that of a micro batch of 1). gradient_accumulation auto is the one that keeps the
    recipe's sequences of an update. Raises ConfigError, also if nothing fits.
    """
    free = configuration.free_keys(name, Path(path), overrides)
    if not free:
        return configuration.load(name, path=path, overrides=overrides)
    recipe = configuration.read_recipe(name, Path(path))
    given = {**recipe, **(overrides or {})}
    layers = given.get("layers_per_ipu")
    start = configuration.load(
        name, path=path, overrides={**(overrides or {}), **_stand_ins(free, given, recipe)}
    )
    pattern = [ANY] * start.ipus_per_replica
    if "layers_per_ipu" in free and isinstance(layers, (list, tuple)):
        pattern = _checked_pattern(layers, start)
    found = search(start, free, pattern) if start.device == "simulator" else _apart(start, free, pattern)
    for line in found.lines:
        report(line)
    return found.config


def _apart(config: Config, free: Collection[str], pattern: Sequence[int]) -> Outcome:
    """`search` in a separate process: one process can't import Graphcore's poptorch and the simulator's."""
    with ProcessPoolExecutor(1, data.workers.SpawnContext(), initializer=_start_search) as child:
        with data.workers.signals_deferred():
            found = child.submit(search, config, free, pattern)
        return found.result()


def _start_search() -> None:
    data.workers.end_on_interrupts()
    data.workers.end_with_parent()


@dataclass(frozen=True)
class Outcome:
    """The configuration that a search found, and lines that explain the choice."""

    config: Config
    lines: Tuple[str, ...]


class Progress:
    """How far a search is: a line that is overwritten on a terminal, elsewhere a line every ten seconds."""

    def __init__(
        self, num_programs: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.done = 0
        self.best_s: Optional[float] = None
        self._num_programs = num_programs
        self._stream = stream
        self._clock = clock
        self._on_terminal = stream.isatty()
        self._every_s = 0.5 if self._on_terminal else _PROGRESS_S
        self._last_s = clock()
        self._width = 0

    def tick(self) -> None:
        """Shows the state, if it is time to."""
        now_s = self._clock()
        if now_s - self._last_s < self._every_s:
            return
        self._last_s = now_s
        best = "nothing fits yet"
        if self.best_s is not None:
            best = f"best so far {sums.human_seconds(self.best_s)}"
        line = f"placement search: {self.done} of {self._num_programs} programs, {best}"
        self._write(line)

    def close(self) -> None:
        """Clears the line on a terminal."""
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, line: str) -> None:
        if self._on_terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


class Searches:
    """Placement searches of configurations. Those of the same graph share what is known of it."""

    def __init__(self) -> None:
        self._of_graph: Dict[Any, Any] = {}
        self._of_settings: Dict[Any, Any] = {}

    def of(self, config: Config) -> Any:
        graph = programs.key_of(config)
        if graph not in self._of_graph:
            self._of_graph[graph] = search_over(config)
        known = self._of_graph[graph]
        settings = programs.with_options(known.settings, config)
        if (graph, settings) not in self._of_settings:
            self._of_settings[graph, settings] = known.with_settings(settings)
        return self._of_settings[graph, settings]


def search(config: Config, free: Collection[str], pattern: Sequence[int]) -> Outcome:
    """The fastest configuration that fits, with new values of the `free` keys.

    Raises ConfigError if none fits.

    :param pattern: encoder layers of each IPU, or ANY; used if layers_per_ipu is free.
    """
    best: Optional[Tuple[Config, Any]] = None
    looked_at: List[Tuple[Config, Any]] = []
    too_large: Optional[Config] = None
    largest: Optional[Config] = None
    searches = Searches()
    variants = list(variants_of(config, free))
    if len(variants) > 1:
        # First the recipe, then what is likely to be fast: what it finds rules out most of the others.
        variants.sort(
            key=lambda each: (
                each != config,
                searches.of(each).lower_bound_s(candidate_of(each, each.layers_per_ipu, False)),
            )
        )
    sizes_of = [list(micro_batches_of(variant, "micro_batch_size" in free)) for variant in variants]
    progress = Progress(sum(map(len, sizes_of)), sys.stderr)

    def look_at(sized: Config, max_judged: int) -> Any:
        nonlocal best
        limit_s = math.inf if best is None else best[1].step_s
        found = fastest_of(sized, free, pattern, limit_s, max_judged, searches, progress.tick)
        if found is not None:
            looked_at.append((sized, found))
            if found.best is not None:
                best = sized, found.best
                progress.best_s = found.best.step_s
        progress.done += 1
        progress.tick()
        return found

    for at, (sizes, variant) in enumerate(zip(sizes_of, variants), start=1):
        max_judged = _JUDGED if len(sizes) * len(variants) == 1 else _JUDGED_OF_A_SIZE
        own = next((place for place, sized in enumerate(sizes) if sized == variant), 0)
        # First larger micro batches until nothing fits, as memory grows with them; then smaller ones.
        for sized in sizes[own:]:
            found = look_at(sized, max_judged)
            if found is not None and found.best is None and found.nearest is not None:
                too_large, largest = sized, sizes[-1]
                break
        for sized in reversed(sizes[:own]):
            look_at(sized, max_judged)
        progress.done = sum(map(len, sizes_of[:at]))  # with those that were skipped
    progress.close()
    if best is None:
        misses = [(sized, found.nearest) for sized, found in looked_at]
        raise ConfigError(_nothing_fits(misses, sorted(free)))
    sized, chosen = best
    final = replace(
        sized,
        layers_per_ipu=_layers(chosen.ipu_of_block, sized),
        matmul_proportion=tuple(chosen.proportions),
    )
    # With several variants there is no one size from which on nothing fits.
    skipped = too_large if len(variants) == 1 and too_large not in (None, largest) else None
    return Outcome(
        final, tuple(_why(final, sorted(free), chosen, [found for _, found in looked_at], skipped))
    )


def fastest_of(
    sized: Config,
    free: Collection[str],
    pattern: Sequence[int],
    faster_than_s: float,
    max_judged: int,
    searches: Optional[Searches] = None,
    tick: Callable[[], None] = lambda: None,
) -> Any:
    """The search for one micro batch size; None if no placement's pipeline can be filled.

    `tick` is called for each placement that is evaluated.
    """
    placements = [sized.layers_per_ipu]
    if "layers_per_ipu" in free:
        placements = list(placements_of(sized.num_layers, pattern))
    placements = [
        each
        for each in placements
        if minimum_gradient_accumulation(each, sized.head) <= sized.gradient_accumulation
    ]
    if not placements:
        return None
    known = sized.layers_per_ipu in placements
    return (
        (searches or Searches())
        .of(sized)
        .fastest(
            [candidate_of(sized, each, "matmul_proportion" in free) for each in placements],
            max_judged=max_judged,
            known=candidate_of(sized, sized.layers_per_ipu, False) if known else None,
            faster_than_s=faster_than_s,
            tick=tick,
        )
    )


def _stand_ins(
    free: Collection[str], given: Mapping[str, object], recipe: Mapping[str, object]
) -> Dict[str, object]:
    """Placeholders for the free keys, so that the rest can be checked; the recipe's values if it has some."""
    ipus, layers = given.get("ipus_per_replica"), given.get("num_layers")
    values: Dict[str, object] = {}
    if "layers_per_ipu" in free and isinstance(ipus, int) and isinstance(layers, int):
        values["layers_per_ipu"] = balanced_layers(layers, max(1, ipus))
        own: Any = recipe.get("layers_per_ipu")
        concrete = isinstance(own, list) and all(isinstance(entry, int) and entry >= 0 for entry in own)
        if concrete and len(own) == ipus and sum(own) == layers:
            values["layers_per_ipu"] = own
    for key, otherwise in _OTHERWISE.items():
        if key in free:
            values[key] = (
                otherwise if recipe.get(key, configuration.AUTO) == configuration.AUTO else recipe[key]
            )
    if "gradient_accumulation" in free:
        values["gradient_accumulation"] = _accumulation({**given, **values}, recipe)
    return values


# Placeholders of free keys for which the recipe has no value.
_OTHERWISE: Dict[str, Any] = {
    "micro_batch_size": 1,
    "matmul_proportion": 0.25,
    "replication_factor": 1,
    "optimizer_state": "on_chip",
    "recompute_checkpoint_every_layer": True,
}


def _accumulation(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> int:
    """The accumulation with which an update has as many sequences as the recipe's. Raises ConfigError."""
    parts = [
        recipe.get(key, 1) for key in ("micro_batch_size", "gradient_accumulation", "replication_factor")
    ]
    if not all(isinstance(part, int) for part in parts):
        raise ConfigError(
            "gradient_accumulation is auto, but the recipe doesn't say how many sequences an update has: "
            "give it a micro_batch_size and a gradient_accumulation"
        )
    sequences = math.prod(parts)
    at_once = given["micro_batch_size"] * given.get("replication_factor", 1)
    if sequences % at_once:
        legal = " or ".join(map(str, nearest_divisors(sequences, at_once)))
        raise ConfigError(
            f"gradient_accumulation is auto, but the recipe's {sequences} sequences of an update can't be "
            f"made of {at_once} at a time (micro_batch_size x replication_factor): make that {legal}"
        )
    return int(sequences // at_once)


def _checked_pattern(layers: Sequence[Any], config: Config) -> List[int]:
    ipus = config.ipus_per_replica
    if len(layers) != ipus:
        raise ConfigError(
            f"layers_per_ipu {_words(layers)} is for {len(layers)} IPUs, but ipus_per_replica is {ipus}"
        )
    bad = [entry for entry in layers if not isinstance(entry, int) or entry < ANY]
    if bad:
        raise ConfigError(
            f"layers_per_ipu {_words(layers)}: {bad[0]!r} is neither a number of layers nor {ANY} (any)"
        )
    fixed = sum(entry for entry in layers if entry != ANY)
    if fixed > config.num_layers:
        raise ConfigError(
            f"layers_per_ipu {_words(layers)} fixes {fixed} layers, {fixed - config.num_layers} more than "
            f"num_layers {config.num_layers}"
        )
    return list(layers)


def placements_of(layers: int, pattern: Sequence[int]) -> Iterator[Tuple[int, ...]]:
    """All placements of `layers` layers on the IPUs of a pattern.

    If there are too many (24 layers on 8 IPUs: 2.6 million), a free IPU has at most one layer more than an
    even split gives the fullest one: the busiest IPU determines a pipeline's time.
    """
    free = pattern.count(ANY)
    rest = layers - sum(entry for entry in pattern if entry != ANY)
    most = rest
    if free and math.comb(rest + free - 1, free - 1) > _MOST_PLACEMENTS:
        most = -(-rest // free) + 1
    return _ways(layers, pattern, most)


def _ways(layers: int, pattern: Sequence[int], most: int) -> Iterator[Tuple[int, ...]]:
    if not pattern:
        if layers == 0:
            yield ()
        return
    if pattern[0] != ANY:
        counts = range(pattern[0], pattern[0] + 1)
    else:
        fixed = sum(entry for entry in pattern if entry != ANY)
        rest_is_fixed = ANY not in pattern[1:]
        counts = range(layers - fixed if rest_is_fixed else 0, min(most, layers - fixed) + 1)
    for count in counts:
        for others in _ways(layers - count, pattern[1:], most):
            yield (count, *others)


def variants_of(config: Config, free: Collection[str]) -> Iterator[Config]:
    """The configuration, then it with other values of the free keys that aren't searched otherwise.

    The replicas are those that the machine has IPUs for and that keep the sequences of an update.
    """
    places = ("on_chip", "off_chip") if "optimizer_state" in free else (config.optimizer_state,)
    kept = config.recompute_checkpoint_every_layer
    checkpoints = (True, False) if "recompute_checkpoint_every_layer" in free else (kept,)
    micro_batches = config.gradient_accumulation * config.replication_factor
    most = machine_ipus()[config.target] // config.ipus_per_replica
    replicas = [config.replication_factor]
    if "replication_factor" in free:
        replicas = [count for count in divisors(micro_batches) if count <= most]
    found = []
    for count in replicas:
        for place in places:
            for every_layer in checkpoints:
                changed: Dict[str, Any] = {
                    "replication_factor": count,
                    "gradient_accumulation": micro_batches // count,
                    "replicated_tensor_sharding": config.replicated_tensor_sharding and count > 1,
                    "optimizer_state": place,
                    "recompute_checkpoint_every_layer": every_layer,
                }
                try:
                    found.append(replace(config, **changed))
                except ConfigError:
                    continue  # too few micro batches to fill the pipeline
    yield from sorted(found, key=lambda variant: variant != config)


def micro_batches_of(config: Config, free: bool) -> Iterator[Config]:
    """The configuration with every micro batch size that divides a replica's sequences per update."""
    if not free:
        yield config
        return
    sequences = config.micro_batch_size * config.gradient_accumulation
    least = minimum_gradient_accumulation(config.layers_per_ipu, config.head)
    for size in divisors(sequences):
        if size <= _LARGEST_MICRO_BATCH and sequences // size >= least:
            yield replace(config, micro_batch_size=size, gradient_accumulation=sequences // size)


def search_over(config: Config, machine: Optional[Target] = None) -> Any:
    """A search over placements of this configuration's layers, on its target or on another machine."""
    layers = config.num_layers
    graph, settings = program_of(config, layers_per_ipu=[0] + [1] * layers)
    return placement_search.PlacementSearch(graph, settings, machine or target(config.target))


def candidate_of(config: Config, layers_per_ipu: Sequence[int], free_proportions: bool) -> Any:
    blocks = blocks_of(config, layers_per_ipu)
    choices: List[Tuple[float, ...]] = [(share,) for share in config.matmul_proportion]
    if free_proportions:
        choices = [tuple(sorted({*PROPORTIONS, share})) for share in config.matmul_proportion]
    return placement_search.Candidate(tuple(blocks), tuple(choices))


def _layers(ipu_of_block: Sequence[int], config: Config) -> Tuple[int, ...]:
    of_layers = ipu_of_block[1 : 1 + config.num_layers]
    return tuple(of_layers.count(ipu) for ipu in range(config.ipus_per_replica))


def _why(
    config: Config, free: Sequence[str], chosen: Any, searches: Sequence[Any], skipped: Optional[Config]
) -> Iterator[str]:
    accumulation = f"gradient_accumulation {config.gradient_accumulation}"
    values = {
        "layers_per_ipu": _words(config.layers_per_ipu),
        "micro_batch_size": f"{config.micro_batch_size} ({accumulation})",
        "gradient_accumulation": str(config.gradient_accumulation),
        "replication_factor": f"{config.replication_factor} ({accumulation})",
        "matmul_proportion": _words(config.matmul_proportion),
        "optimizer_state": config.optimizer_state,
        "recompute_checkpoint_every_layer": "yes" if config.recompute_checkpoint_every_layer else "no",
    }
    yield "auto: " + ", ".join(f"{key} {values[key]}" for key in free)
    yield (
        f"auto: a weight update takes {sums.human_seconds(chosen.step_s)} (predicted); IPU "
        f"{chosen.busiest_ipu} is the busiest, IPU {chosen.fullest_ipu} the fullest, with "
        f"{sums.human_bytes(chosen.headroom_bytes)} of headroom"
    )
    gap = 1 - min(found.unjudged_s for found in searches) / chosen.step_s
    best = "none is faster and fits" if gap <= 0 else f"none is more than {gap:.1%} faster"
    candidates, judged = (
        sum(getattr(found, each) for found in searches) for each in ("candidates", "judged")
    )
    yield f"auto: memory was evaluated for {judged} of {candidates} placements: {best}"
    if skipped is not None:
        size = skipped.micro_batch_size
        yield f"auto: micro batches larger than {size}, where nothing faster fits, were skipped"
    misses = next(found.faster for found in searches if found.best is chosen)
    if misses:
        miss = misses[0]
        yield (
            f"auto: {_words(_layers(miss.ipu_of_block, config))} would take "
            f"{sums.human_seconds(miss.step_s)}, but IPU {miss.fullest_ipu} lacks "
            f"{sums.human_bytes(-miss.headroom_bytes)}"
        )


def _nothing_fits(misses: Sequence[Tuple[Config, Any]], free: Sequence[str]) -> str:
    tried = f"no value of {', '.join(free)} makes the program fit"
    with_nearest = [(config, near) for config, near in misses if near is not None]
    if not with_nearest:
        return f"{tried}: no placement fills the pipeline; raise gradient_accumulation"
    config, near = max(with_nearest, key=lambda pair: pair[1].headroom_bytes)
    return (
        f"{tried}; the nearest, layers_per_ipu {_words(_layers(near.ipu_of_block, config))} with "
        f"micro_batch_size {config.micro_batch_size}, lacks {sums.human_bytes(-near.headroom_bytes)} on IPU "
        f"{near.fullest_ipu}. Use more ipus_per_replica, a smaller micro_batch_size, or see the remedies of "
        "--dry-run with concrete values"
    )


def _words(values: Sequence[Any]) -> str:
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
