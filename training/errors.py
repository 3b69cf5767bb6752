"""Errors of a run that a user can mend."""

from __future__ import annotations


class TrainingError(ValueError):
    """Something about the run's inputs or its output folder is wrong; the message says what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, incomplete, corrupt or belongs to something else."""


class DivergenceError(TrainingError):
    """The loss or a weight is NaN or infinite."""
