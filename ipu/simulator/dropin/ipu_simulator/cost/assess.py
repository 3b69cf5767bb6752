"""Computes the verdict: time and memory of a captured program on a machine."""

from __future__ import annotations

from ..environment import Target
from ..graph.ir import Graph
from ..graph.stages import stages_of
from .aliases import materialised
from .constants import assumptions_of, constants, memory_constants
from .kinds import expected_time_error, kind_of
from .memory import memory_of
from .settings import Settings
from .time import time_of
from .verdict import Details, Verdict


def assess(
    graph: Graph,
    settings: Settings,
    target: Target,
    *,
    name: str,
    sequence_length: int = 0,
    training_steps: int = 0,
) -> Verdict:
    """The verdict on a program, without remedies.

    :param name: of the configuration or script.
    :param sequence_length: tokens per sample, for tokens_per_s; 0 if samples have none.
    :param training_steps: weight updates of the whole run; 0 if unknown.
    """
    stages, sizes = stages_of(graph, settings), materialised(graph)
    time = time_of(graph, stages, settings, target, constants(), sizes)
    memory = memory_of(graph, stages, settings, target, memory_constants(), sizes=sizes)
    micro_batches = settings.gradient_accumulation if graph.training else settings.device_iterations
    packs = settings.micro_batch_size * micro_batches * settings.replicas
    flops_per_pack = time.flops_per_micro_batch / settings.micro_batch_size
    num_ipus = graph.num_ipus * settings.replicas
    lacking_ipus = max(0, num_ipus - target.num_ipus)
    # For the utilisation's peak, and the check that the machine has enough IPUs.
    numbers = {"half_macs_per_cycle", *(["num_ipus"] if num_ipus > 1 else [])}
    peak_flops_per_s = target.peak_flops_per_s * num_ipus
    samples = packs * settings.samples_per_sequence
    return Verdict(
        config=name,
        device="simulator",
        target=target.name,
        fits=memory.fits and not lacking_ipus,
        parameters=sum(parameter.elements for parameter in graph.parameters),
        ipus=memory.ipus,
        pipeline=time.pipeline,
        step_s=time.step_s,
        update_s=time.update_s,
        host_s=time.host_s,
        samples_per_s=samples / time.step_s,
        packs_per_s=packs / time.step_s,
        tokens_per_s=packs * sequence_length / time.step_s,
        flops_per_sample=flops_per_pack / settings.samples_per_sequence,
        utilisation=packs * flops_per_pack / time.step_s / peak_flops_per_s,
        training_steps=training_steps,
        time_to_train_s=training_steps * time.step_s,
        remedies=(),
        details=Details(
            stages=time.stages,
            work=time.work,
            liveness=memory.liveness,
            update_parts_s=time.update_parts_s,
            overflows=memory.overflows,
            bounds=time.bounds,
            assumptions=assumptions_of(time.numbers | memory.numbers | numbers, target),
            expected_time_error=expected_time_error(graph, settings),
            kind=kind_of(graph),
            lacking_ipus=lacking_ipus,
            input_s=time.input_s,
            largest_buffers=memory.largest_buffers,
            peak_moments=memory.peak_moments,
            clock_hz=target.clock_hz,
        ),
    )
