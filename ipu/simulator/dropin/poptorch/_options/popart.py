"""Options passed to PopART under its names, and those that the simulator implements."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

# The options that the simulator implements.
ENGINE_CACHING = "enableEngineCaching"
CACHE_PATH = "cachePath"
COUNT_CYCLES = "instrumentWithHardwareCycleCounter"
SYNTHETIC_DATA = "syntheticDataMode"
RECOMPUTATION = "autoRecomputation"
NO_ACCUMULATOR_STREAMS = "disableGradAccumulationTensorStreams"
AUTOMATIC_LOSS_SCALING = "automaticLossScalingSettings.enabled"
FLOATING_POINT_CHECKS = "enableFloatingPointChecks"
STOCHASTIC_ROUNDING = "enableStochasticRounding"
MATMUL_PARTIALS = "partialsTypeMatMuls"
CONVOLUTION_OPTIONS = "convolutionOptions"
UPDATE_SCHEDULE = "accumulateOuterFragmentSettings.schedule"
UPDATES_APART = "accumulateOuterFragmentSettings.excludedVirtualGraphs"
# PopART's AccumulateOuterFragmentSchedule: OverlapCycleOptimized, OverlapMemoryOptimized.
_OVERLAPPING_SCHEDULES = (2, 3)
STRIDED_GROUP_NORM = "groupNormStridedChannelGrouping"


class PopartOptions:
    """PopART's session options by name. Names are validated when a model is compiled, not here."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: dict[str, Any] = {
            COUNT_CYCLES: False,
            "rearrangeAnchorsOnHost": False,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
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
        """Raises AttributeError if the options are frozen."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def set(self, key: str, value: Any) -> PopartOptions:
        """Sets one of PopART's session options."""
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> PopartOptions:
        """Sets the level of PopART's graph patterns, and enables or disables patterns by name."""
        self.checkIsFrozen("patterns")
        assert isinstance(patterns, dict), "patterns must be a dictionary of names to bool"
        self.options["patterns_level"] = level
        self.options["patterns"] = patterns
        return self

    def setEngineOptions(self, engine_options: dict[str, str]) -> PopartOptions:
        """Replaces the options of Poplar's engine."""
        return self.set("engineOptions", engine_options)


class Obeyed:
    """Typed access to the PopART options that the simulator implements; reads their current values."""

    def __init__(self, popart: PopartOptions) -> None:
        self._options = popart.options

    @property
    def cache_folder(self) -> Path | None:
        """The executable cache's folder; None if caching is off."""
        path = self._options.get(CACHE_PATH)
        return Path(path) if path and self._options.get(ENGINE_CACHING) else None

    @property
    def counts_cycles(self) -> bool:
        """Whether cycleCount() is available."""
        return bool(self._options[COUNT_CYCLES])

    @property
    def has_synthetic_data(self) -> bool:
        """Whether synthetic data replaces transfers between host and device."""
        return bool(self._options.get(SYNTHETIC_DATA, 0))

    @property
    def recomputation(self) -> int | None:
        """PopART's RecomputationType; None for PopTorch's default."""
        return self._options.get(RECOMPUTATION)

    @property
    def updates_overlap(self) -> bool:
        """Whether the IPUs of a replica update their weights at once, instead of one after another."""
        return self._options.get(UPDATE_SCHEDULE) in _OVERLAPPING_SCHEDULES

    @property
    def updates_apart(self) -> frozenset[int]:
        """The IPUs that `updates_overlap` leaves out."""
        return frozenset(int(ipu) for ipu in self._options.get(UPDATES_APART, ()) if str(ipu).isdecimal())

    @property
    def shows_accumulators(self) -> bool:
        """Whether the optimizer's state on the host includes gradient accumulators."""
        return not self._options.get(NO_ACCUMULATOR_STREAMS, False)

    @property
    def scales_loss_automatically(self) -> bool:
        """Whether automatic loss scaling is on."""
        return bool(self._options.get(AUTOMATIC_LOSS_SCALING, False))

    @property
    def stops_at_exceptions(self) -> bool:
        """Whether a floating-point exception (overflow or NaN) stops the program."""
        return bool(self._options.get(FLOATING_POINT_CHECKS, False))

    @property
    def rounds_by_chance(self) -> bool:
        """Whether float16 results are rounded stochastically."""
        return bool(self._options.get(STOCHASTIC_ROUNDING, False))

    @property
    def half_matmul_partials(self) -> bool:
        """Whether matmul partials are float16."""
        return bool(self._options.get(MATMUL_PARTIALS) == "half")

    @property
    def strides_group_norm(self) -> bool:
        """Whether a group of a group norm is every n-th channel, not a run of channels."""
        return bool(self._options.get(STRIDED_GROUP_NORM, False))

    @property
    def half_convolution_partials(self) -> bool:
        """Whether convolution partials are float16."""
        return bool(self._options.get(CONVOLUTION_OPTIONS, {}).get("partialsType") == "half")
