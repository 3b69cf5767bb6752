"""Puts a model on IPUs: pipeline blocks, recomputation, the serialised vocabulary projection, the final
loss."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import torch

import ipu

from .heads import ClassificationModel, PretrainingModel, SquadModel

_SECOND_HALF = " second half"
_HEADS = {"pretraining": "Classifier", "squad": "QA Outputs", "glue": "Classifier"}


class StagesError(ValueError):
    """A placement or a serialisation that the model doesn't allow."""


class Annotations:
    """What `annotate` did to a model, to be undone."""

    def __init__(self) -> None:
        self._steps: List[Callable[[], Any]] = []

    def add(self, undo_step: Callable[[], Any]) -> None:
        self._steps.append(undo_step)

    def undo(self) -> None:
        """Gives the model back as it was, weights aside. A second call does nothing."""
        while self._steps:
            self._steps.pop()()


def placement(
    num_layers: int, layers_per_ipu: Sequence[float], head: str = "pretraining"
) -> List[Tuple[str, int]]:
    """The pipeline blocks in running order and the IPU of each.

    Embeddings stand on IPU 0. So do pretraining heads, beside the word embeddings that they share (as in
    every published recipe); the others ("squad", "glue") stand on the last IPU that has layers. A count may
    end in .5: the layer's second half (`EncoderLayer.second_half`) then begins the next IPU, as a block of
    its own. Raises StagesError.
    """
    for stage, count in enumerate(layers_per_ipu):
        if not isinstance(count, (int, float)) or isinstance(count, bool) or count < 0 or count * 2 % 1:
            raise StagesError(
                f"layers_per_ipu has {count!r} for IPU {stage}, but must have counts of 0 and more, in halves"
            )
    total = sum(layers_per_ipu)
    if total != num_layers:
        difference = f"{abs(total - num_layers):g} too {'many' if total > num_layers else 'few'}"
        raise StagesError(
            f"layers_per_ipu {list(layers_per_ipu)} places {total:g} encoder layers, but the model has "
            f"{num_layers} ({difference}): its entries must add up to num_layers"
        )
    of_halves = [stage for stage, count in enumerate(layers_per_ipu) for _ in range(round(2 * count))]
    blocks = [("Embedding", 0)]
    for layer in range(num_layers):
        first, second = of_halves[2 * layer : 2 * layer + 2]
        blocks.append((f"Encoder{layer}", first))
        if second != first:
            blocks.append((f"Encoder{layer}{_SECOND_HALF}", second))
    blocks.append((_HEADS[head], 0 if head == "pretraining" else of_halves[-1]))
    return blocks


def annotate(
    model: Union[PretrainingModel, SquadModel, ClassificationModel],
    layers_per_ipu: Sequence[float],
    *,
    embedding_serialization_factor: int = 1,
    recompute_checkpoint_every_layer: bool = True,
) -> Annotations:
    """Annotates `model` in place, for PopTorch. Parameters and state dict keys stay as they are.

    The blocks of `placement` begin at their modules (PreNorm's last LayerNorm stays with the last layer).
    With `recompute_checkpoint_every_layer` the output of each layer is kept for the backward pass instead
    of computed again. `embedding_serialization_factor` is the number of slices of the vocabulary
    projection. The model's loss becomes PopTorch's one final loss. Raises StagesError before it changes
    anything.
    """
    task, head = _head(model)
    blocks = placement(model.config.num_layers, layers_per_ipu, task)
    if task != "pretraining" and embedding_serialization_factor != 1:
        raise StagesError(
            f"embedding_serialization_factor is {embedding_serialization_factor}, but a "
            f"{'SQuAD' if task == 'squad' else 'GLUE'} model has no vocabulary projection: it must be 1"
        )
    _check_serialization(embedding_serialization_factor, model.config.vocab_size)

    poptorch = ipu.poptorch
    annotations = Annotations()
    modules: Dict[str, Any] = {"Embedding": model.encoder.embeddings, _HEADS[task]: head}
    for index, layer in enumerate(model.encoder.layers):
        modules[f"Encoder{index}"] = layer
        modules[f"Encoder{index}{_SECOND_HALF}"] = layer.second_half
    for name, stage in blocks:
        poptorch.BeginBlock(modules[name], user_id=name, ipu_id=stage)
    annotations.add(functools.partial(poptorch.removeBlocks, model))
    if recompute_checkpoint_every_layer:
        for layer in model.encoder.layers:
            annotations.add(layer.register_forward_hook(_recomputation_checkpoint).remove)
    if isinstance(model, PretrainingModel) and embedding_serialization_factor > 1:
        masked_lm = model.heads.masked_lm
        masked_lm.serialized_matmul = functools.partial(
            _serialized_matmul, factor=embedding_serialization_factor
        )
        annotations.add(functools.partial(setattr, masked_lm, "serialized_matmul", None))
    annotations.add(model.register_forward_hook(_final_loss).remove)
    return annotations


def _head(model: Union[PretrainingModel, SquadModel, ClassificationModel]) -> Tuple[str, torch.nn.Module]:
    """The task, and the module with which the head's block begins."""
    if isinstance(model, SquadModel):
        return "squad", model.span
    return ("glue", model.pooler) if isinstance(model, ClassificationModel) else ("pretraining", model.heads)


def _recomputation_checkpoint(_module: Any, _inputs: Any, output: Any) -> Any:
    return ipu.poptorch.recomputationCheckpoint(output)


def _serialized_matmul(lhs: Any, rhs: Any, *, factor: int) -> Any:
    poptorch = ipu.poptorch
    return poptorch.serializedMatMul(lhs, rhs, poptorch.MatMulSerializationMode.OutputChannels, factor)


def _final_loss(_module: Any, _inputs: Any, outputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
    if outputs[0].dim() != 0:
        return outputs  # logits: no positions were given, so there's no loss
    return (ipu.poptorch.identity_loss(outputs[0], reduction="none"), *outputs[1:])


def _check_serialization(factor: int, vocab_size: int) -> None:
    if isinstance(factor, int) and factor >= 1 and vocab_size % factor == 0:
        return
    small = [divisor for divisor in range(1, math.isqrt(vocab_size) + 1) if vocab_size % divisor == 0]
    divisors = small + [vocab_size // divisor for divisor in reversed(small)]
    below = [divisor for divisor in divisors if divisor < factor]
    above = [divisor for divisor in divisors if divisor > factor]
    nearest = ", ".join(map(str, below[-1:] + above[:1]))
    raise StagesError(
        f"embedding_serialization_factor is {factor}, but must divide the vocabulary of {vocab_size} "
        f"into equal slices (nearest: {nearest})"
    )
