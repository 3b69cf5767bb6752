"""A model's outputs: plain tensors that are told from others, since backward() can't be called on them.

The mark isn't on the tensors themselves: what they are saved, pickled and copied with stays PyTorch's own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..poptorch_core import createPoptorchError

_outputs = WeakTensorKeyDictionary()
_backward = torch.Tensor.backward


def mark(tensor: torch.Tensor) -> None:
    """From now on the tensor refuses backward(), with poptorch.Error."""
    _outputs[tensor] = True


@functools.wraps(_backward)
def _backward_but_on_outputs(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    if self in _outputs:
        raise createPoptorchError(
            "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a "
            "trainingModel, the backwards pass is performed automatically when invoking the model. If you're "
            "using an inferenceModel, you should use a trainingModel instead."
        )
    return _backward(self, *args, **kwargs)


torch.Tensor.backward = _backward_but_on_outputs  # type: ignore[method-assign]
