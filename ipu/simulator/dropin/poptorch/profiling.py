"""Trace points of the PopVision trace instrumentation library, which the simulator doesn't have: all are
inert.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator


class Channel:
    """A named source of trace points."""

    def __init__(self, name: str):
        self.name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """The object itself; its methods run as they are."""
        return obj

    @contextmanager
    def tracepoint(self, name: str) -> Iterator[None]:
        """A context that nothing records."""
        yield
