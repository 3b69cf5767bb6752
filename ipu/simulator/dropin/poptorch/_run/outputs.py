"""A model's outputs: plain tensors that are told from others, since backward() can't be called on them.

The mark isn't on the tensors themselves: what they are saved, pickled and copied with stays PyTorch's own.
"""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..poptorch_core import createPoptorchError

_outputs = WeakTensorKeyDictionary()


def mark(tensor: torch.Tensor) -> None:
    """From now on the tensor refuses backward(), with poptorch.Error."""
    _outputs[tensor] = True


def check_backward(tensor: torch.Tensor) -> None:
    """Raise poptorch.Error for a model's output."""
    if tensor in _outputs:
        raise createPoptorchError(
            "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a "
            "trainingModel, the backwards pass is performed automatically when invoking the model. If you're "
            "using an inferenceModel, you should use a trainingModel instead."
        )
