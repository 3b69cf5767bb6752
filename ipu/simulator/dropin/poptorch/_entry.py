"""trainingModel and inferenceModel."""

from __future__ import annotations

from ._poplar_executor import PoplarExecutor


def trainingModel(model, options=None, optimizer=None) -> PoplarExecutor:
    """Wraps a model for training."""
    raise NotImplementedError


def inferenceModel(model, options=None) -> PoplarExecutor:
    """Wraps a model for inference."""
    raise NotImplementedError
