"""Execution strategies: how blocks form pipeline stages or phases, and on which IPUs these run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import enums
from ..poptorch_core import createBackendError

if TYPE_CHECKING:
    from typing_extensions import Self


# Keys of the strategies' backendOptions().
STRATEGY_OPTIONS = (
    "execution_mode",
    "separate_backward_phase",
    "tensors_liveness",
    "serial_phases_execution",
)
# PopTorch's number of the execution mode.
_PIPELINED = 0


class Stage:
    """Blocks, by id, that form one pipeline stage. Raises AssertionError for an id that isn't a string."""

    def __init__(self, *block_ids: str):
        for block_id in block_ids:
            assert isinstance(block_id, str), f"Block IDs are supposed to be strings but got {type(block_id)}"
        self._blocks = list(block_ids)
        self._stage_id = -1
        self._ipu: int | None = None

    def ipu(self, ipu: int) -> Stage:
        """Places the stage on an IPU, whatever IPUs its blocks have. AssertionError unless an int."""
        assert isinstance(ipu, int), "ipu must be an int"
        self._ipu = ipu
        return self

    @property
    def blocks(self) -> list[str]:
        """The blocks' ids."""
        return self._blocks


class _IExecutionStrategy:
    """Interface of execution strategies."""

    def onStartTracing(self) -> None:
        """Called before a model is traced."""

    def onEndTracing(self) -> None:
        """Called after a model has been traced."""

    def stage(self, block_id: str) -> Stage:
        """The stage that a block belongs to."""
        raise NotImplementedError

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's part of Options.toDict()."""
        raise NotImplementedError

    @property
    def _is_pipelined(self) -> bool:
        """Whether the stages work at the same time."""
        return bool(self.backendOptions()["execution_mode"] == _PIPELINED)

    def _place(self, block_id: str, ipu_id: int | None) -> tuple[int, int]:
        """(stage, IPU) of a block that is entered during tracing."""
        raise NotImplementedError

    def _check_depth(
        self, num_stages: int, *, training: bool, gradient_accumulation: int, device_iterations: int
    ) -> None:
        """Raises poptorch.Error if these options don't allow `num_stages` pipeline stages."""


def as_stage(argument: Any) -> Stage:
    """A Stage from a Stage, a block id, or a list of block ids. AssertionError for anything else."""
    if isinstance(argument, Stage):
        return argument
    if isinstance(argument, (list, tuple)):
        return Stage(*argument)
    return Stage(argument)


class PipelinedExecution(_IExecutionStrategy):
    """Pipelined execution: stages process successive micro batches in parallel.

    PipelinedExecution(): one stage per IPU. PipelinedExecution(AutoStage): stages by that rule.
    PipelinedExecution("A", ["B", "C"], Stage("D").ipu(3)): these stages.

    Raises AssertionError for a block in two stages and for an id that isn't a string; when a model is
    compiled, for a block that has no stage, or no IPU if its IPU decides the stage.
    """

    def __init__(self, *args: enums.AutoStage | str | list[str] | Stage):
        self._auto = enums.AutoStage.SameAsIpu if not args else None
        if len(args) == 1 and isinstance(args[0], enums.AutoStage):
            self._auto = args[0]
            args = ()
        self._stages: dict[str, Stage] = {}
        for stage_id, argument in enumerate(args):
            stage = as_stage(argument)
            stage._stage_id = stage_id
            for block_id in stage.blocks:
                assert block_id not in self._stages, f"{block_id} associated with more than one stage"
                self._stages[block_id] = stage

    def onStartTracing(self) -> None:
        """Resets automatic stages: each trace assigns them again."""
        if self._auto is not None:
            self._stages.clear()

    def stage(self, block_id: str) -> Stage:
        """The stage of a block. Raises AssertionError for an unknown block."""
        assert block_id in self._stages, f"Unknown block {block_id}"
        return self._stages[block_id]

    def backendOptions(self) -> dict[str, Any]:
        """The execution mode, by PopTorch's numbers: 0 pipelined, 1 sharded, 2 phased."""
        return {"execution_mode": _PIPELINED}

    def _place(self, block_id: str, ipu_id: int | None) -> tuple[int, int]:
        if self._auto is None:
            assert block_id in self._stages, (
                f"Unknown Block '{block_id}' list of expected Blocks: {list(self._stages)}"
            )
        elif block_id not in self._stages:
            self._stages[block_id] = self._automatic_stage(block_id, ipu_id)
        stage = self._stages[block_id]
        if stage._ipu is not None:
            return stage._stage_id, stage._ipu
        return stage._stage_id, stage._stage_id if ipu_id is None else ipu_id

    def _automatic_stage(self, block_id: str, ipu_id: int | None) -> Stage:
        stage = Stage()
        stage._blocks.append(block_id)
        if self._auto is enums.AutoStage.AutoIncrement:
            # Stages count from 1, in the order in which blocks are first seen.
            stage._stage_id = 1 + len(self._stages)
        else:
            assert ipu_id is not None, (
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
            stage._stage_id = ipu_id
        return stage

    def _check_depth(
        self, num_stages: int, *, training: bool, gradient_accumulation: int, device_iterations: int
    ) -> None:
        if training:
            needed = 2 * num_stages - 1
            if gradient_accumulation < needed:
                raise createBackendError(
                    "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the "
                    f"number of pipeline stages ({needed}) when using poptorch.PipelinedExecution. Please "
                    f"note that a model with {num_stages} pipeline stages in PopTorch will have an "
                    f"additional {num_stages - 1} stages when training."
                )
        elif device_iterations < num_stages:
            raise createBackendError(
                "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline "
                f"stages ({num_stages}) when using PopTorch.PipelinedExecution."
            )


class ShardedExecution(PipelinedExecution):
    """Sharded execution: the stages run one after another, so there is no minimum pipeline depth.

    Raises AssertionError as PipelinedExecution does.
    """

    def backendOptions(self) -> dict[str, Any]:
        """See PipelinedExecution."""
        return {"execution_mode": 1}

    def _check_depth(
        self, num_stages: int, *, training: bool, gradient_accumulation: int, device_iterations: int
    ) -> None:
        return None


class Phase:
    """Stages that run in parallel. Phase("A", "B") is one stage of two blocks; Phase(Stage("A"), Stage("B"))
    and Phase(["A"], ["B"]) are two stages. Raises AssertionError for an id that isn't a string.
    """

    def __init__(self, *arg: str | list[str] | Stage):
        block_ids = [one for one in arg if isinstance(one, str)]
        if arg and len(block_ids) == len(arg):
            self.stages = [Stage(*block_ids)]
        else:
            self.stages = [as_stage(one) for one in arg]

    def ipus(self, *ipus: int) -> Phase:
        """Places the stages on these IPUs. Raises AssertionError unless there is one per stage."""
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
    """Base of phased execution: phases run one after another, and tensors leave the chip in between.

    On the simulator phases only place blocks, and nothing leaves the chip: results are those of sharded
    execution.
    """

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
        """The phase with this number, from 0. Raises AssertionError if there is none."""
        assert isinstance(phase, int), f"phase must be an int, not {type(phase)}"
        assert 0 <= phase < len(self._phases), f"Unknown phase {phase}: there are {len(self._phases)}"
        return self._phases[phase]

    def stage(self, block_id: str) -> Stage:
        """The stage of a block. Raises AssertionError for an unknown block."""
        assert block_id in self._stage_of, f"Unknown block {block_id}"
        return self._stage_of[block_id]

    def useSeparateBackwardPhase(self, use: bool = True) -> Self:
        """Runs the backward pass of the last phase in a separate phase. AssertionError unless a bool."""
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
        """The IPU of a phase's `position`-th stage, if the program sets none."""
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
    """Two groups of IPUs alternate: even phases run on even IPUs, odd phases on odd ones.

    Raises AssertionError without phases, and for a block in two of them; when a model is compiled, for a
    block of no phase, and for one on an IPU of the other group.
    """

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> Self:
        """Moves a phase's tensors off chip after its forward pass. AssertionError unless a bool."""
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
    """All phases run on the same IPUs, one after another.

    Raises AssertionError without phases, and for a block in two of them; when a model is compiled, for a
    block of no phase.
    """

    def setTensorsLiveness(self, liveness: enums.Liveness) -> Self:
        """Sets when a phase's tensors leave the chip. AssertionError unless a poptorch.Liveness."""
        assert isinstance(liveness, enums.Liveness), "liveness must be a poptorch.Liveness"
        self._liveness = liveness
        return self

    def backendOptions(self) -> dict[str, Any]:
        """See PipelinedExecution."""
        return {**super().backendOptions(), "serial_phases_execution": True}

    def _default_ipu(self, phase_id: int, position: int) -> int:
        return position
