"""Phased execution: parts of a model run one after another, with tensors leaving the chip in between.

The simulator has memory for everything at once, so phases only place blocks: results are those of sharded
execution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import enums
from .strategies import Stage, _IExecutionStrategy, as_stage

if TYPE_CHECKING:
    from typing_extensions import Self


class Phase:
    """Stages that run at the same time. Phase("A", "B") is one stage of two blocks, Phase(Stage("A"),
    Stage("B")) and Phase(["A"], ["B"]) are two stages.
    """

    def __init__(self, *arg: str | list[str] | Stage):
        block_ids = [one for one in arg if isinstance(one, str)]
        if arg and len(block_ids) == len(arg):
            self.stages = [Stage(*block_ids)]
        else:
            self.stages = [as_stage(one) for one in arg]

    def ipus(self, *ipus: int) -> Phase:
        """Places each stage on an IPU of its own; AssertionError unless there is one for each."""
        assert len(ipus) == len(self.stages), (
            f"Expected one IPU for each of the phase's {len(self.stages)} stages but got {len(ipus)}"
        )
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)
        return self

    def stage(self, idx: int) -> Stage:
        """The idx-th stage."""
        return self.stages[idx]


def _as_phase(argument: Phase | list[Stage] | list[str] | Stage | str) -> Phase:
    if isinstance(argument, Phase):
        return argument
    if isinstance(argument, (list, tuple)):
        return Phase(*argument)
    return Phase(argument)


class _IPhasedExecution(_IExecutionStrategy):
    """What both kinds of phased execution share."""

    def __init__(self, *phases: Phase | list[Stage] | list[str] | str):
        explicit = phases and not any(isinstance(phase, enums.AutoStage) for phase in phases)
        assert explicit, (
            "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
        )
        self._phases = [_as_phase(phase) for phase in phases]
        self._separate_backward_phase = False
        self._liveness = enums.Liveness.AlwaysLive
        self._phase_of: dict[str, int] = {}
        self._stage_of: dict[str, Stage] = {}
        for phase_id, phase in enumerate(self._phases):
            for stage in phase.stages:
                stage._stage_id = phase_id
                for block_id in stage.blocks:
                    assert block_id not in self._stage_of, f"{block_id} associated with more than one stage"
                    self._stage_of[block_id] = stage
                    self._phase_of[block_id] = phase_id

    def phase(self, phase: int) -> Phase:
        """The phase of this number, from 0 on; AssertionError beyond the last."""
        assert isinstance(phase, int), f"phase must be an int, not {type(phase)}"
        assert 0 <= phase < len(self._phases), f"Unknown phase {phase}: there are {len(self._phases)}"
        return self._phases[phase]

    def stage(self, block_id: str) -> Stage:
        """The stage that a block belongs to; AssertionError for a block that has none."""
        assert block_id in self._stage_of, f"Unknown block {block_id}"
        return self._stage_of[block_id]

    def useSeparateBackwardPhase(self, use: bool = True) -> Self:
        """Gives the backward pass of the last phase a phase of its own."""
        assert isinstance(use, bool), "use must be a bool"
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> dict[str, Any]:
        """See PipelinedExecution."""
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._liveness.value,
        }

    def _default_ipu(self, phase_id: int, position: int) -> int:
        """The IPU of a phase's `position`-th stage, where the program names none."""
        raise NotImplementedError

    def _place(self, block_id: str, ipu_id: int | None) -> tuple[int, int]:
        assert block_id in self._stage_of, (
            f"Unknown Block '{block_id}' list of expected Blocks: {list(self._stage_of)}"
        )
        stage, phase_id = self._stage_of[block_id], self._phase_of[block_id]
        if stage._ipu is not None:
            return phase_id, stage._ipu
        if ipu_id is not None:
            return phase_id, ipu_id
        return phase_id, self._default_ipu(phase_id, self._phases[phase_id].stages.index(stage))


class ParallelPhasedExecution(_IPhasedExecution):
    """Two groups of IPUs take turns: even phases run on even IPUs, odd phases on odd ones."""

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> Self:
        """Sends a phase's tensors off the chip when its forward is done."""
        assert isinstance(off_chip, bool), "off_chip must be a bool"
        self._liveness = enums.Liveness.OffChipAfterFwd if off_chip else enums.Liveness.AlwaysLive
        return self

    def backendOptions(self) -> dict[str, Any]:
        """See PipelinedExecution."""
        return {**super().backendOptions(), "serial_phases_execution": False}

    def _default_ipu(self, phase_id: int, position: int) -> int:
        return 2 * position + phase_id % 2

    def _place(self, block_id: str, ipu_id: int | None) -> tuple[int, int]:
        phase_id, ipu = super()._place(block_id, ipu_id)
        assert ipu % 2 == phase_id % 2, (
            f"Block {block_id} of phase {phase_id} is on IPU {ipu}: in parallel phased execution even phases "
            "run on even IPUs and odd phases on odd IPUs"
        )
        return phase_id, ipu


class SerialPhasedExecution(_IPhasedExecution):
    """All phases run on the same IPUs, one after another."""

    def setTensorsLiveness(self, liveness: enums.Liveness) -> Self:
        """When a phase's tensors leave the chip."""
        assert isinstance(liveness, enums.Liveness), "liveness must be a poptorch.Liveness"
        self._liveness = liveness
        return self

    def backendOptions(self) -> dict[str, Any]:
        """See PipelinedExecution."""
        return {**super().backendOptions(), "serial_phases_execution": True}

    def _default_ipu(self, phase_id: int, position: int) -> int:
        return position
