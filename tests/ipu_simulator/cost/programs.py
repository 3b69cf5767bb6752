"""Captured programs of published configurations, one capture per process."""

from __future__ import annotations

import functools

from planning import dry_run


@functools.cache
def program(
    model,
    *,
    target="bow-pod16",
    sequence_length=128,
    mask_tokens=20,
    micro_batch_size=2,
    gradient_accumulation=16,
    replication_factor=2,
    layers_per_ipu=(0, 2, 3, 3),
    optimizer_state="off_chip",
    replicated_tensor_sharding=True,
    matmul_proportion=(0.2, 0.2, 0.2, 0.2),
    embedding_serialization_factor=1,
):
    """(graph, settings) of a pretraining program."""
    return dry_run.program_of_row(
        model,
        target=target,
        sequence_length=sequence_length,
        mask_tokens=mask_tokens,
        micro_batch_size=micro_batch_size,
        gradient_accumulation=gradient_accumulation,
        replication_factor=replication_factor,
        layers_per_ipu=layers_per_ipu,
        optimizer_state=optimizer_state,
        replicated_tensor_sharding=replicated_tensor_sharding,
        matmul_proportion=matmul_proportion,
        embedding_serialization_factor=embedding_serialization_factor,
    )
