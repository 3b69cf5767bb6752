"""PopART's enumerations that the recipes use, with PopART's values."""

from enum import Enum


class AccumulateOuterFragmentSchedule(Enum):
    Scheduler, Serial, OverlapCycleOptimized, OverlapMemoryOptimized = range(4)

    def __int__(self):
        return self.value


class SubgraphCopyingStrategy(Enum):
    OnEnterAndExit, JustInTime = range(2)

    def __int__(self):
        return self.value
