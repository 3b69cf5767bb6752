"""What an executor answers about its runs: latencies, counters, cycles, how long its compilation took."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Callable

from .._logging import logger
from .._options.popart import Obeyed
from ..poptorch_core import Error, createPoptorchError, usesIpuModel
from .compiled import Executable
from .predictions import Latencies, Predictions
from .replica_groups import ReplicaGrouping

if TYPE_CHECKING:
    from ..options import Options


def _perf_counters(starts: list[list[float]], ends: list[list[float]]) -> dict[str, list[list[float]]]:
    return {"input": starts, "input_complete": starts, "output": ends, "output_complete": ends}


class Measured:
    """The part of PoplarExecutor that answers; the rest fills in what it knows."""

    _options: Options
    _executable: Executable | None
    replica_groupings: dict[int, ReplicaGrouping]
    _predictions: Predictions | None = None
    _compilation_s: float | None = None
    _last_call_s: float | None = None  # None before the first call
    _perf_counters = _perf_counters([[]], [[]])

    def _note_call(
        self, start_s: float, end_s: float, taken: tuple[int, int], given: tuple[int, int]
    ) -> None:
        """A call lasted from `start_s` to `end_s`, took and gave (tensors, micro batches of each)."""
        self._last_call_s = end_s - start_s
        (inputs, steps), (outputs, returned) = taken, given
        self._perf_counters = _perf_counters(
            [[start_s] * steps for _ in range(inputs)], [[end_s] * returned for _ in range(outputs)]
        )

    def _latency(
        self, predicted_s: Callable[[Latencies], float], host_share: float
    ) -> tuple[float, float, float]:
        """(min, max, average) seconds: as predicted; on the IPU model, and where there is no prediction,
        the `host_share` of the last call on this host.
        """
        if self._last_call_s is None:
            return (0.0, 0.0, 0.0)
        if self._predictions is not None and not usesIpuModel(self._options._values):
            try:
                with self._weights_of_groups():
                    latency_s = predicted_s(self._predictions.latencies)
                return (latency_s, latency_s, latency_s)
            except Error as error:
                logger.warning("%s. Latencies are this host's.", error.message)
        host_s = host_share * self._last_call_s
        return (host_s, host_s, host_s)

    def getLatency(self) -> tuple[float, float, float]:
        """(min, max, average) seconds of the last call's round trips; zeros before the first call."""
        return self._latency(sum, 1.0)

    def getComputeLatency(self) -> tuple[float, float, float]:
        """The part of getLatency between an input's arrival and an output's departure."""
        return self._latency(lambda latencies: latencies.compute_s, 1.0)

    def getHostIpuLatency(self) -> tuple[float, float, float]:
        """The part of getLatency in which inputs go to the IPU: none on this host."""
        return self._latency(lambda latencies: latencies.host_to_ipu_s, 0.0)

    def getIpuHostLatency(self) -> tuple[float, float, float]:
        """The part of getLatency in which outputs come back: none on this host."""
        return self._latency(lambda latencies: latencies.ipu_to_host_s, 0.0)

    def getPerfCounters(self) -> dict[str, list[list[float]]]:
        """Wall-clock times of the last call, by event: for each tensor a list with one for each micro batch
        that went in or came back. Here all went in when the call began and came back when it ended.
        """
        return self._perf_counters

    def cycleCount(self) -> int:
        """IPU cycles of a call, as the simulator predicts them for the machine that it stands for."""
        if not Obeyed(self._options._Popart).counts_cycles:
            raise createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        if self._last_call_s is None:
            raise createPoptorchError("Please run the model at least once before obtaining cycle count.")
        if self._predictions is None:
            raise createPoptorchError(
                "The simulator predicts no cycles for an executable from a file: compile the model here."
            )
        with self._weights_of_groups():
            return self._predictions.cycles

    def _weights_of_groups(self) -> contextlib.AbstractContextManager[None]:
        """Around another run of the forward: weights that differ between replicas lack a dimension there."""
        if self._executable is None or not self.replica_groupings:
            return contextlib.nullcontext()
        return self._executable.weights.swapped_in()

    def compilationTime(self) -> float:
        """Seconds."""
        if self._executable is None or self._compilation_s is None:
            raise createPoptorchError("Please compile the model before obtaining compilation time.")
        if not self._options.show_compilation_progress_bar:
            raise createPoptorchError(
                "Please set showCompilationProgressBar option to obtain compilation time."
            )
        return self._compilation_s
