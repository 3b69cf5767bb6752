"""The configuration of inference: a model's sizes, and a placement of its layers."""

from __future__ import annotations

from typing import Any, Dict, Mapping

from config import Config
from ipu.placement import balanced_layers, minimum_gradient_accumulation
from model import TASKS, ModelConfig
from model.config import EncoderKeys

_LAYERS_OF_AN_IPU = 12  # of BERT Base: in float16, their weights take a fifth of its memory


def inference_config(
    model: ModelConfig, task: str, sequence_length: int, given: Mapping[str, object]
) -> Config:
    """A configuration for `model`, of which inference reads the keys of device, batch and answers.

    By default the layers are shared by as few IPUs as have _LAYERS_OF_AN_IPU layers of BERT Base's size.
    `given` are keys that a user chose. Raises ConfigError.
    """
    size = model.num_layers * (model.hidden_size / 768) ** 2
    ipus = min(max(1, -(-int(size) // _LAYERS_OF_AN_IPU)), model.num_layers)
    layers = given.get("layers_per_ipu", tuple(balanced_layers(model.num_layers, ipus)))
    assert isinstance(layers, tuple)
    values: Dict[str, Any] = {
        **{name: getattr(model, name) for name in EncoderKeys.__dataclass_fields__},
        "task": task,
        "model": "groupbert" if model.convolution else "bert",
        "glue_task": "csv" if task == "glue" else "mnli",
        "training_steps": 1,
        "learning_rate": 1.0,
        "micro_batch_size": 8,
        "mask_tokens": 1,
        "layers_per_ipu": layers,
        "ipus_per_replica": len(layers),
        "gradient_accumulation": minimum_gradient_accumulation(layers, TASKS[task].place),
        **given,
        "sequence_length": sequence_length,
    }
    if task != "pretraining":  # whose evaluations have no keys, and which the rules check
        values["validation_device_iterations"] = max(4, len(layers) + 1)
    return Config(**values)
