"""The verdict on a configuration before anything runs: does it fit, how fast is it, and why.

The program is built as in a run (model, stages, options, optimiser), but without allocating memory for its
weights; the simulator captures its graph and estimates its cost. Needs no IPU and no SDK, for any device.
"""

from __future__ import annotations

import contextlib
import gc
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ipu_simulator import report
from ipu_simulator.cost import assess as assemble
from ipu_simulator.cost.verdict import Remedy
from ipu_simulator.cost.verdict import Verdict as Verdict  # re-exported
from ipu_simulator.environment import target
from ipu_simulator.graph.repeat import Unequal, repeated
from ipu_simulator.graph.stages import restage

import ipu
from config import Config, ConfigError, nearest
from config.recipes import Problem
from ipu.placement import balanced_layers, placement
from planning import programs, remedies

if TYPE_CHECKING:
    from ipu_simulator.cost.settings import Settings
    from ipu_simulator.graph.ir import Graph

    from model import ModelConfig, TaskModel

    Captured = Tuple[Graph, Settings]
    Capture = Callable[[Config], Captured]


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run: its verdict, and the folder with verdict.json, report.html and trace.json."""

    output: Path
    verdict: Verdict

    @property
    def fits(self) -> bool:
        return self.verdict.fits


def dry_run(
    config: Config, name: str, output: Path, *, instances: int = 1, inference: bool = False
) -> DryRun:
    """Predicts a run, prints the verdict and writes it to `output`, with the configuration.

    `inference`: the verdict is on the trained model's forward pass alone.

    Files of a training run in `output` don't change, including resolved.yml.
    """
    with _without_collector():
        return _dry_run(config, name, output, instances, inference)


def _dry_run(config: Config, name: str, output: Path, instances: int, inference: bool) -> DryRun:
    from training.folder import hold_folder, step_folders, write_atomically

    with hold_folder(output):
        if inference:
            verdict = inference_verdict_of(config, name)
        else:
            verdict = verdict_of(config, name, instances=instances, capture=kept_program_of)
        report.write(verdict, output)
        if not step_folders(output):
            write_atomically(output / "resolved.yml", config.to_yaml())
    print(report.shown(report.text(verdict), sys.stdout))
    if config.packed_data:
        print(_packs(config))
    if instances > 1 and config.replicated_tensor_sharding:
        local = config.replication_factor // instances
        if local > 1:
            print(f"{instances} instances: the optimiser state is sharded over the {local} replicas of each")
        else:
            print(f"{instances} instances of one replica each: Poplar doesn't shard the optimiser state")
    print(f"report {output / 'report.html'}, trace {output / 'trace.json'}")
    return DryRun(output, verdict)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Inside, Python's garbage collector is off.

    A graph and the modules that a capture imports are many small objects that stay. The collector would
    traverse them again and again: a fifth of a dry run's CPU time, for 4% less memory.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _packs(config: Config) -> str:
    """The rows and sequences of an update, and the source of their ratio."""
    packs, ratio = config.global_batch_size, config.sequences_per_row
    source = "published for Wikipedia" if config.packing_factor is None else "packing_factor"
    return (
        f"packing: an update has {packs:,} packs of up to {config.pack_depth} sequences, about "
        f"{packs * ratio:,.0f} sequences at {ratio:g} in a pack ({source}; a run counts them)"
    )


def verdict_beside(
    config: Config, name: str, output: Path, *, measured_host_s: float, instances: int = 1
) -> None:
    """At the end of a run on the simulator: the same verdict, with an update's measured time on this host."""
    verdict = verdict_of(config, name, instances=instances)
    report.write(verdict, output)
    print(report.shown(report.summary(verdict, measured_host_s), sys.stdout))


def verdict_of(
    config: Config, name: str, *, instances: int = 1, capture: Optional[Capture] = None
) -> Verdict:
    """The verdict on a run of `config`, on the machine that its `target` names.

    `instances` is the number of processes that drive the replicas: the optimiser state is sharded over those
    of one. Selects the simulator as this process's device; raises ipu.DeviceError if another one is already
    in use. `capture` is used instead of program_of, if given.
    """
    capture = capture or program_of
    graph, settings = capture(config)
    program = graph, replace(settings, instances=instances)
    verdict = assess(config, name, program)
    if verdict.fits:
        return verdict
    return replace(verdict, remedies=_remedies(config, program, verdict, capture))


def kept_program_of(config: Config) -> Captured:
    """As program_of, from the cache folder if the same graph was captured before."""
    found = programs.kept(config)
    if found is None:
        found = program_of(config)
        programs.keep(config, found)
    return found


# A fine-tuned model's inputs without labels: tokens, mask and types.
_WITHOUT_LABELS = 3


def inference_verdict_of(config: Config, name: str) -> Verdict:
    """The verdict on inference: latency of a micro batch, throughput, memory. It has no remedies.

    The model runs in the configuration's placement and micro batches, with `ipu.options.inference_options`:
    a fine-tuned model without labels, a pretraining model with those of an evaluation.
    """
    ipu.select_device("simulator")
    import torch
    from poptorch import simulator

    import model as models
    from ipu.options import DevicePlan, inference_options

    with simulator.without_memory():
        model = _model(config, config.num_layers).eval()
        if config.precision == "float16":
            model.half()
        models.annotate(
            model,
            config.layers_per_ipu,
            embedding_serialization_factor=config.embedding_serialization_factor,
            recompute_checkpoint_every_layer=False,
            one_hot_masked_positions=config.one_hot_masked_positions,
        )
        shapes = config.input_shapes(config.micro_batch_size)
        if not config.task_facts.is_pretraining:
            shapes = shapes[:_WITHOUT_LABELS]
        inputs = tuple(torch.zeros(shape, dtype=torch.int32) for shape in shapes)
    plan = config.section(DevicePlan)
    one = replace(plan, replication_factor=1, replicated_tensor_sharding=False)
    graph = simulator.capture(model, inputs, {}, inference_options(one), training=False)
    settings = simulator.settings_of(inference_options(plan), None, micro_batch_size=config.micro_batch_size)
    program = (
        graph,
        replace(
            settings,
            matmul_proportions=config.matmul_proportion,
            samples_per_sequence=config.sequences_per_row,
        ),
    )
    return replace(assess(config, name, program), training_steps=0, time_to_train_s=0.0)


def assess(config: Config, name: str, program: Captured) -> Verdict:
    """The verdict, without remedies, on a program captured by program_of."""
    graph, settings = program
    return assemble.assess(
        graph,
        settings,
        target(config.target),
        name=name,
        sequence_length=config.sequence_length,
        training_steps=config.training_steps or _training_steps(config),
    )


def _remedies(config: Config, program: Captured, verdict: Verdict, capture: Capture) -> Tuple[Remedy, ...]:
    captured = {programs.key_of(config): program}
    instances = program[1].instances

    def judge(changed: Config, instances: int = instances) -> Tuple[float, int, bool]:
        key = programs.key_of(changed)
        if key not in captured:
            captured[key] = capture(changed)
        graph, settings = captured[key]
        if changed.replication_factor % instances:
            return math.inf, sys.maxsize, False  # such instances can't be started
        settings = replace(programs.with_options(settings, changed), instances=instances)
        judged = assess(changed, "", (graph, settings))
        return judged.step_s, _fullest_bytes(judged), judged.fits

    before_bytes = _fullest_bytes(verdict)
    found = [
        Remedy(
            change=remedies.words(trial.changes),
            saves_bytes=before_bytes - trial.peak_bytes,
            costs_s=remedies.seconds_lost(verdict.step_s, config, trial),
            fits=trial.fits,
        )
        for trial in remedies.trials(config, before_bytes, judge)
    ]
    if instances > 1 and config.replicated_tensor_sharding:
        step_s, peak_bytes, fits = judge(config, 1)
        change = "--instances 1 (one instance a host)"
        found.insert(0, Remedy(change, before_bytes - peak_bytes, step_s - verdict.step_s, fits))
    return tuple(sorted(found, key=lambda remedy: not remedy.fits))


def _fullest_bytes(verdict: Verdict) -> int:
    """Peak memory of the fullest IPU."""
    return max(memory.peak_bytes for memory in verdict.ipus)


def _training_steps(config: Config) -> int:
    """Weight updates of the epochs over the published training set, whatever `train_data` is.

    SQuAD has some more windows than examples, so its updates are slightly too few. Raises ConfigError.
    """
    task = config.task_facts
    data = None if task.dataset_key is None else getattr(config, task.dataset_key)
    if data not in task.training_examples:
        raise ConfigError(
            [
                Problem(
                    "epochs",
                    f"the size of {data or task.task}'s training set isn't known; set training_steps",
                )
            ]
        )
    examples = task.training_examples[data]
    return math.ceil((config.epochs or 0) * examples / config.global_batch_size)


def program_of(config: Config, *, layers_per_ipu: Optional[Sequence[float]] = None) -> Tuple[Graph, Settings]:
    """The captured graph of one micro batch of training, and its settings.

    `layers_per_ipu`, if given, replaces the configuration's and may have half layers. Of a model with many
    layers three are captured, and the second one is repeated.
    """
    places = config.layers_per_ipu if layers_per_ipu is None else layers_per_ipu
    whole = all(float(count).is_integer() for count in places)
    if not whole or config.num_layers <= _CAPTURED_LAYERS:
        return _captured(config, config.num_layers, places)
    graph, settings = _captured(config, _CAPTURED_LAYERS, [0] + [1] * _CAPTURED_LAYERS)
    try:
        graph = repeated(graph, "encoder.layers", config.num_layers - _CAPTURED_LAYERS)
    except Unequal:
        return _captured(config, config.num_layers, places)
    return restage(graph, blocks_of(config, places)), settings


# The first and the last may differ from those between them, in what they are given and what follows.
_CAPTURED_LAYERS = 3


def blocks_of(config: Config, layers_per_ipu: Sequence[float]) -> List[int]:
    """The IPU of each block; a head that doesn't share the embeddings belongs to the last layer's block."""
    blocks = [ipu for _, ipu in placement(config.num_layers, layers_per_ipu, config.head)]
    return blocks if config.head.shares_embeddings else blocks[:-1]


def _model(config: Config, num_layers: int) -> TaskModel:
    model_config = replace(config.model_config(), num_layers=num_layers)
    return config.task_model.build(model_config, seed=None, labels=config.class_names)


def _captured(config: Config, num_layers: int, layers_per_ipu: Sequence[float]) -> Tuple[Graph, Settings]:
    """The captured graph of a model with this number of layers, and the settings of the configuration."""
    ipu.select_device("simulator")
    import torch
    from poptorch import simulator

    import model as models
    import training
    from ipu.options import DevicePlan, training_options

    with simulator.without_memory():
        model = _model(config, num_layers)
        if config.precision == "float16":
            model.half()
        models.annotate(
            model,
            layers_per_ipu,
            embedding_serialization_factor=config.embedding_serialization_factor,
            recompute_checkpoint_every_layer=config.recompute_checkpoint_every_layer,
            one_hot_masked_positions=config.one_hot_masked_positions,
        )
        shapes = config.input_shapes(config.micro_batch_size)
        inputs = [torch.zeros(shape, dtype=torch.int32) for shape in shapes]
        if getattr(model, "is_regression", False):
            inputs[-1] = inputs[-1].float()
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    plan = config.section(DevicePlan)
    fills = 2 * len(layers_per_ipu) + 3  # a pipeline with a stage on each IPU, and the head's
    # One replica is enough, and avoids the limit of 64 IPUs per process.
    captured = replace(
        plan,
        replication_factor=1,
        replicated_tensor_sharding=False,
        gradient_accumulation=max(plan.gradient_accumulation, fills),
    )
    graph = simulator.capture(model, tuple(inputs), {}, training_options(captured), training=True)
    settings = simulator.settings_of(
        training_options(plan), optimizer, micro_batch_size=config.micro_batch_size
    )
    return graph, replace(
        settings,
        matmul_proportions=config.matmul_proportion,
        samples_per_sequence=config.sequences_per_row,
    )


def program_of_row(
    model: str,
    *,
    target: str,
    sequence_length: int,
    mask_tokens: int,
    micro_batch_size: int,
    gradient_accumulation: int,
    replication_factor: int,
    layers_per_ipu: Sequence[float],
    optimizer_state: str,
    replicated_tensor_sharding: bool,
    matmul_proportion: Sequence[float],
    embedding_serialization_factor: int,
) -> Tuple[Graph, Settings]:
    """The program of a published measurement: pretraining with LAMB, float16 and half partials.

    `model` is a family and a size, such as "bert-large" or "bert-6x512" (layers x hidden size, heads of size
    64); `layers_per_ipu` may have half layers. The vocabulary is padded to a multiple of the serialization
    factor, as in the published runs. Everything else is as in the recipes: dropout 0.1, except in the
    attention, for BERT and none for GroupBERT. Raises ConfigError.
    """
    preset = _model_of_row(model)
    factor = embedding_serialization_factor
    if factor > preset.vocab_size:
        problem = f"{factor} is more than the vocabulary of {preset.vocab_size}"
        raise ConfigError([Problem("embedding_serialization_factor", problem)])
    family = "groupbert" if preset.convolution else "bert"
    values: Dict[str, Any] = {
        "model": family,
        "hidden_size": preset.hidden_size,
        "num_layers": preset.num_layers,
        "num_heads": preset.num_heads,
        "vocab_size": -(-preset.vocab_size // factor) * factor,
        "max_position_embeddings": max(preset.max_position_embeddings, sequence_length),
        "hidden_dropout": preset.hidden_dropout,
        "training_steps": 1,
        "sequence_length": sequence_length,
        "mask_tokens": mask_tokens,
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation": gradient_accumulation,
        "replication_factor": replication_factor,
        "optimizer": "lamb",
        "learning_rate": 0.001,
        "target": target,
        "ipus_per_replica": len(layers_per_ipu),
        "layers_per_ipu": tuple(balanced_layers(preset.num_layers, len(layers_per_ipu))),  # a placeholder
        "matmul_proportion": tuple(matmul_proportion),
        "embedding_serialization_factor": factor,
        "replicated_tensor_sharding": replicated_tensor_sharding,
        "optimizer_state": optimizer_state,
    }
    return program_of(Config(**values), layers_per_ipu=layers_per_ipu)


def _model_of_row(name: str) -> ModelConfig:
    """The preset that a row names, or one of its family with another number of layers and hidden size."""
    from model.config import PRESETS

    key = name.replace("-", "_")
    if key in PRESETS:
        return PRESETS[key]
    known = [preset.replace("_", "-") for preset in PRESETS]
    sizes = re.fullmatch(r"(bert|groupbert)_(\d{1,3})x(\d{1,5})", key)
    if sizes is None:
        raise ConfigError(f"model {name!r} is unknown; {nearest(name, known)}")
    family, layers, hidden = sizes[1], int(sizes[2]), int(sizes[3])
    like = PRESETS[f"{family}_base"]
    if not layers or hidden < like.head_size or hidden % like.head_size:
        raise ConfigError(
            f"model {name!r} has no layers, or its hidden size is not a multiple of {like.head_size}"
        )
    return replace(like, num_layers=layers, hidden_size=hidden, num_heads=hidden // like.head_size)
