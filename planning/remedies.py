"""Remedies for a configuration that doesn't fit, each recomputed by the models that rejected it.

Changes are tried one at a time, and in pairs if no single change suffices. Times are compared for the same
number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Callable, Dict, Iterator, List, Mapping, Tuple

from config import Config, ConfigError
from ipu.placement import balanced_layers, divisors, machine_ipus

# The lowest value in a published recipe.
_LOWEST_PROPORTION = 0.05
_MOST_SLICES = 32
# How many of the changes that save most memory are tried in pairs.
_PAIRED = 4


@dataclass(frozen=True)
class Trial:
    """A changed configuration and its prediction: seconds per update, peak bytes of its fullest IPU."""

    changes: Mapping[str, Any]
    config: Config
    step_s: float
    peak_bytes: int
    fits: bool


Judge = Callable[[Config], Tuple[float, int, bool]]


def trials(config: Config, peak_bytes: int, judge: Judge) -> List[Trial]:
    """Changed configurations: first those that fit, from fastest to slowest; then those that save memory.

    :param peak_bytes: of the fullest IPU, as `config` is.
    :param judge: returns (step_s, peak bytes of the fullest IPU, fits) for a configuration.
    """
    single = [trial_of(config, changes, judge) for changes in changes_of(config)]
    useful = sorted(
        (trial for trial in single if trial is not None and (trial.fits or trial.peak_bytes < peak_bytes)),
        key=lambda trial: trial.peak_bytes,
    )
    if not any(trial.fits for trial in useful):
        for first, second in combinations(useful[:_PAIRED], 2):
            if not set(first.changes) & set(second.changes):
                both = trial_of(config, {**first.changes, **second.changes}, judge)
                if both is not None and both.fits:
                    useful.append(both)
    sequences = config.global_batch_size
    return sorted(
        useful,
        key=lambda trial: (
            not trial.fits,
            trial.step_s * sequences / trial.config.global_batch_size if trial.fits else trial.peak_bytes,
        ),
    )


def seconds_lost(before_s: float, config: Config, trial: Trial) -> float:
    """Additional seconds for the sequences of an update, compared with `before_s`; negative if faster."""
    return trial.step_s * config.global_batch_size / trial.config.global_batch_size - before_s


def words(changes: Mapping[str, Any]) -> str:
    """The changes as command-line flags."""
    flags = []
    for key, value in changes.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            flags.append(f"--{flag} " + " ".join(f"{entry:g}" for entry in value))
        else:
            flags.append(f"--{flag} {value}")
    return " ".join(flags)


def trial_of(config: Config, changes: Mapping[str, Any], judge: Judge) -> Any:
    try:
        changed = replace(config, **changes)
    except ConfigError:
        return None  # the change isn't legal here: too few IPUs, for example
    step_s, peak_bytes, fits = judge(changed)
    return Trial(changes, changed, step_s, peak_bytes, fits)


def changes_of(config: Config) -> Iterator[Dict[str, Any]]:
    # The other way round, on_chip helps if streaming memory is too small.
    yield {"optimizer_state": "off_chip" if config.optimizer_state == "on_chip" else "on_chip"}
    if config.replication_factor > 1 and not config.replicated_tensor_sharding:
        yield {"replicated_tensor_sharding": True}
    if not config.enable_half_first_order_momentum and config.optimizer != "sgd":
        yield {"enable_half_first_order_momentum": True}
    for share in (0.7, 0.4):
        lower = tuple(
            min(each, max(_LOWEST_PROPORTION, round(share * each, 2))) for each in config.matmul_proportion
        )
        if lower != config.matmul_proportion:
            yield {"matmul_proportion": lower}
    if any(config.matmul_proportion):
        yield {"matmul_proportion": (0.0,) * config.ipus_per_replica}  # Poplar: the least memory
    if config.task_facts.is_pretraining and not config.one_hot_masked_positions:
        yield {"one_hot_masked_positions": True}
    if config.head.shares_embeddings:
        factor = config.embedding_serialization_factor
        more = [slices for slices in divisors(config.vocab_size) if factor < slices < _MOST_SLICES]
        if more:
            yield {"embedding_serialization_factor": more[0]}
    samples = config.micro_batch_size * config.gradient_accumulation
    limits = (config.micro_batch_size // 2, config.micro_batch_size // 4)
    for size in sorted(
        {max(part for part in divisors(samples) if part <= limit) for limit in limits if limit}
    ):
        yield {"micro_batch_size": size, "gradient_accumulation": samples // size}
    if config.precision == "float32":
        yield {"precision": "float16"}
    if not config.recompute_checkpoint_every_layer:
        yield {"recompute_checkpoint_every_layer": True}
    balanced = tuple(balanced_layers(config.num_layers, config.ipus_per_replica))
    if balanced != config.layers_per_ipu:
        yield {"layers_per_ipu": balanced}
    yield from _other_replicas(config)
    yield from _more_ipus(config)


def _other_replicas(config: Config) -> Iterator[Dict[str, Any]]:
    """Twice and half the replicas with the same global batch: more of them share a sharded state, fewer have
    less code for collectives.
    """
    replicas, accumulation = config.replication_factor, config.gradient_accumulation
    if config.optimizer_state == "on_chip" and config.replicated_tensor_sharding and accumulation % 2 == 0:
        yield {"replication_factor": 2 * replicas, "gradient_accumulation": accumulation // 2}
    if replicas % 2 == 0:
        fewer: Dict[str, Any] = {
            "replication_factor": replicas // 2,
            "gradient_accumulation": 2 * accumulation,
        }
        if replicas == 2 and config.replicated_tensor_sharding:
            fewer["replicated_tensor_sharding"] = False
        yield fewer


def _more_ipus(config: Config) -> Iterator[Dict[str, Any]]:
    """Twice the IPUs per replica; if the machine is full, half the replicas with the same global batch."""
    ipus = 2 * config.ipus_per_replica
    machine = machine_ipus()[config.target]
    if ipus > machine:
        return
    wide: Dict[str, Any] = {
        "ipus_per_replica": ipus,
        "layers_per_ipu": tuple(balanced_layers(config.num_layers, ipus)),
        "matmul_proportion": (min(config.matmul_proportion),),
    }
    replicas = config.replication_factor
    if ipus * replicas > machine:
        if replicas % 2:
            return
        wide["replication_factor"] = replicas // 2
        wide["gradient_accumulation"] = 2 * config.gradient_accumulation
        if replicas == 2:
            wide["replicated_tensor_sharding"] = False
    yield wide
