"""Annotates a model for IPUs: pipeline blocks, recomputation, serialised vocabulary projection, loss."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import ipu
from ipu.placement import EMBEDDING, StagesError, device_ipus, layer_block, nearest_divisors, placement

from .heads import TaskModel, one_hot_positions


class Annotations:
    """The changes that `annotate` made to a model; `undo` reverts them."""

    def __init__(self) -> None:
        self._steps: List[Callable[[], Any]] = []

    def add(self, undo_step: Callable[[], Any]) -> None:
        self._steps.append(undo_step)

    def undo(self) -> None:
        """Reverts all changes; weights stay. A second call does nothing."""
        while self._steps:
            self._steps.pop()()


def annotate(
    model: TaskModel,
    layers_per_ipu: Sequence[float],
    *,
    embedding_serialization_factor: int = 1,
    recompute_checkpoint_every_layer: bool = True,
    one_hot_masked_positions: bool = False,
    on_device: bool = False,
) -> Annotations:
    """Annotates `model` in place, for PopTorch. Parameters and state dict keys don't change.

    Each block of `ipu.placement.placement` begins at its module (PreNorm's last LayerNorm belongs to the last
    layer's block). With `recompute_checkpoint_every_layer` each layer's output is stored for the backward
    pass instead of recomputed. `embedding_serialization_factor` is the number of slices of the vocabulary
    projection. `one_hot_masked_positions` picks the positions of a pretraining model's loss by a product.
    `on_device` numbers IPUs as `ipu.placement.device_ipus` does. The model's loss is marked as PopTorch's
    final loss. Raises StagesError before any change.
    """
    blocks = placement(model.config.num_layers, layers_per_ipu, model.place)
    projection = model.vocabulary_projection
    if projection is None and embedding_serialization_factor != 1:
        raise StagesError(
            f"embedding_serialization_factor is {embedding_serialization_factor}, but a {model.task} model "
            "has no vocabulary projection: it must be 1"
        )
    _check_serialization(embedding_serialization_factor, model.config.vocab_size)

    poptorch = ipu.poptorch
    indices = device_ipus(layers_per_ipu) if on_device else list(range(len(layers_per_ipu)))
    annotations = Annotations()
    modules: Dict[str, Any] = {EMBEDDING: model.encoder.embeddings, model.place.block: model.head}
    for index, layer in enumerate(model.encoder.layers):
        modules[layer_block(index)] = layer
        modules[layer_block(index, second_half=True)] = layer.second_half
    for name, stage in blocks:
        poptorch.BeginBlock(modules[name], user_id=name, ipu_id=indices[stage])
    annotations.add(functools.partial(poptorch.removeBlocks, model))
    if recompute_checkpoint_every_layer:
        for layer in model.encoder.layers:
            annotations.add(layer.register_forward_hook(_recomputation_checkpoint).remove)
    if projection is not None and embedding_serialization_factor > 1:
        projection.serialized_matmul = functools.partial(
            _serialized_matmul, factor=embedding_serialization_factor
        )
        annotations.add(functools.partial(setattr, projection, "serialized_matmul", None))
    if one_hot_masked_positions:
        heads: Any = model.head
        heads.gather, gather = one_hot_positions, heads.gather
        annotations.add(functools.partial(setattr, heads, "gather", gather))
    annotations.add(model.register_forward_hook(_final_loss).remove)
    return annotations


def _recomputation_checkpoint(_module: Any, _inputs: Any, output: Any) -> Any:
    return ipu.poptorch.recomputationCheckpoint(output)


def _serialized_matmul(lhs: Any, rhs: Any, *, factor: int) -> Any:
    poptorch = ipu.poptorch
    return poptorch.serializedMatMul(lhs, rhs, poptorch.MatMulSerializationMode.OutputChannels, factor)


def _final_loss(_module: Any, _inputs: Any, outputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
    if outputs[0].dim() != 0:
        return outputs  # logits: without labels there is no loss
    return (ipu.poptorch.identity_loss(outputs[0], reduction="none"), *outputs[1:])


def _check_serialization(factor: int, vocab_size: int) -> None:
    if isinstance(factor, int) and factor >= 1 and vocab_size % factor == 0:
        return
    nearest = ", ".join(map(str, nearest_divisors(vocab_size, factor)))
    raise StagesError(
        f"embedding_serialization_factor is {factor}, but must divide the vocabulary of {vocab_size} "
        f"into equal slices (nearest: {nearest})"
    )
