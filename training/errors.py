"""Errors that a user can correct."""

from __future__ import annotations


class TrainingError(ValueError):
    """The run's inputs or its output folder are unusable; the message says what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, incomplete, corrupt or belongs to another run or model."""


class DivergenceError(TrainingError):
    """The loss or a weight is NaN or infinite."""
