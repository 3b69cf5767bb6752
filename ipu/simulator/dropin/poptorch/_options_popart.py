"""Options that go to PopART under PopART's own names."""

from __future__ import annotations

import copy
from typing import Any


class PopartOptions:
    """Holds what a program sets by PopART's names; they're checked when a model is compiled, not here."""

    def __init__(self):
        self._is_frozen = False
        self.options: dict[str, Any] = {
            "instrumentWithHardwareCycleCounter": False,
            "rearrangeAnchorsOnHost": False,
        }

    def __deepcopy__(self, memo):
        """An unfrozen copy."""
        duplicate = type(self)()
        memo[id(self)] = duplicate
        duplicate.options = copy.deepcopy(self.options, memo)
        return duplicate

    def __repr__(self) -> str:
        return repr(self.options)

    def _freeze(self) -> None:
        self._is_frozen = True

    def checkIsFrozen(self, option: str | None = None) -> None:
        """Raises AttributeError where the options can't be changed any more."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def set(self, key: str, value: Any) -> PopartOptions:
        """Sets one of PopART's session options."""
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> PopartOptions:
        """Turns PopART's graph patterns on and off, on top of a level."""
        self.checkIsFrozen("patterns")
        assert isinstance(patterns, dict), "patterns must be a dictionary of names to bool"
        self.options["patterns_level"] = level
        self.options["patterns"] = patterns
        return self

    def setEngineOptions(self, engine_options: dict[str, str]) -> PopartOptions:
        """Replaces the options of Poplar's engine."""
        return self.set("engineOptions", engine_options)
