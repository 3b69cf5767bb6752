"""The executor of a wrapped model."""

from __future__ import annotations


class PoplarExecutor:
    """Runs a wrapped model."""
