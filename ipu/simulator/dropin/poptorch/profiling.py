"""PopVision trace points, which have no effect: the simulator lacks the trace instrumentation library."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator


class Channel:
    """A named source of trace points."""

    def __init__(self, name: str):
        self.name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """Returns the object unchanged."""
        return obj

    @contextmanager
    def tracepoint(self, name: str) -> Iterator[None]:
        """A context without effect."""
        yield
