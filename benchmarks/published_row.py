"""A measurement of ours as a row of the file of published measurements, which `validate` reads."""

from __future__ import annotations

from typing import Dict, Sequence

import ipu
import model as models
from config import Config


def published_row(name: str, config: Config, device: ipu.DeviceChoice, step_s: float) -> Dict[str, object]:
    """Column -> value, in the file's order; `step_s`: seconds of a weight update, compilation excluded.

    A simulator's row says in `source` that it is none of an IPU.
    """
    source = f"acceptance test, {name}"
    if device.name != "ipu":
        source += f"; {device.name} on a host, NOT AN IPU"
    return {
        "id": f"acceptance-{name}",
        "target": config.target,
        "framework": "PopTorch",
        "sdk": device.version,
        "model": _model_name(config),
        "sequence_length": config.sequence_length,
        "packed": 0,
        "mask_tokens": config.mask_tokens,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation": config.gradient_accumulation,
        "replication_factor": config.replication_factor,
        "layers_per_ipu": _words(config.layers_per_ipu),
        "optimizer_state": config.optimizer_state,
        "replicated_tensor_sharding": int(config.replicated_tensor_sharding),
        "matmul_proportion": _words(config.matmul_proportion),
        "embedding_serialization_factor": config.embedding_serialization_factor,
        "step_s": round(step_s, 6),
        "source": source,
    }


def _words(values: Sequence[object]) -> str:
    return " ".join(str(value) for value in values)


def _model_name(config: Config) -> str:
    """Family and size of a published size, such as bert-base; else family, layers and hidden size."""
    for name, preset in models.PRESETS.items():
        sizes = (preset.hidden_size, preset.num_layers, preset.num_heads)
        if name.startswith(f"{config.model}_") and sizes == (
            config.hidden_size,
            config.num_layers,
            config.num_heads,
        ):
            return name.replace("_", "-")
    return f"{config.model}-{config.num_layers}x{config.hidden_size}"
