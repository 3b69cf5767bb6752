"""What the cost model says of a compiled program, when asked: its cycles and latencies."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

import torch
from ipu_simulator import environment, numerics, variables
from ipu_simulator.cost.constants import constants
from ipu_simulator.environment import target
from ipu_simulator.host import NAME

from .._logging import logger
from .._options.popart import Obeyed
from ..poptorch_core import Error, createPoptorchError, usesIpuModel
from .arguments import Arguments
from .compiled import Executable
from .device_weights import ReplicaGrouping

if TYPE_CHECKING:
    from ipu_simulator.cost.verdict import Verdict

    from ..options import Options


# What captures a graph isn't there before.
_TORCH = "2.3"
# What a forward that did compile raises where tensors have no values: PyTorch's errors of its fake tensors
# (data-dependent output, NumPy, tensor subclasses) are RuntimeErrors or TypeErrors, those of the checks are
# poptorch.Errors. Any other is a fault of the model's or ours, and isn't hidden by a second try.
_NEEDS_VALUES = (RuntimeError, TypeError, Error)


class Latencies(NamedTuple):
    """Seconds of a round trip: of a weight update; in inference, of a micro batch through the pipeline."""

    host_to_ipu_s: float
    compute_s: float
    ipu_to_host_s: float


class Predictions:
    """Of one program, on the machine that the simulator stands for; the model runs once more for them.

    :param arguments: of the call, for all micro batches that `plan` cuts them into; the
        first one is kept.
    :param optimizer: None for inference.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        arguments: Arguments,
        plan: numerics.StepPlan,
        options: Options,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self._model = model
        self._options = options
        self._optimizer = optimizer
        first = numerics.MicroBatch(0, 0, 0)
        # Copies: the caller may change its tensors, or let them go.
        self._inputs = [plan.micro_input(tensor, first).detach().clone() for tensor in arguments.tensors]
        self._args, self._kwargs = arguments.replaced(self._inputs)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Raises whatever capturing the model raises."""
        if torch.__version__ < _TORCH:
            raise NotImplementedError(f"predictions need torch {_TORCH}, this is {torch.__version__}")
        from ..simulator import verdict_of

        verdict = functools.partial(
            verdict_of,
            self._model,
            self._args,
            self._options,
            self._optimizer,
            kwargs=self._kwargs,
            name=Path(sys.argv[0]).name or "python",
        )
        try:
            return verdict()
        except _NEEDS_VALUES as error:
            logger.warning(
                "The cost model captures this model a second time, with real weights and inputs, as tensors "
                "without values don't suffice: %s: %s",
                type(error).__name__,
                error,
            )
            return verdict(with_values=True)

    @property
    def cycles(self) -> int:
        """Tile cycles of a call, without the host's part. Raises poptorch.Error where `verdict` fails."""
        verdict = self._quiet_verdict("cycles")
        device_s = verdict.step_s - verdict.host_s
        call_s = device_s if self._optimizer is None else device_s * self._options.device_iterations
        return round(call_s * target().clock_hz)

    @property
    def latencies(self) -> Latencies:
        """Of every round trip alike. Raises poptorch.Error where `verdict` fails."""
        verdict = self._quiet_verdict("latencies")
        call_overhead_s = constants().call_overhead_s
        iterations = self._options.device_iterations
        if self._optimizer is not None:
            to_host_s = call_overhead_s / iterations
            return Latencies(verdict.host_s - to_host_s, verdict.step_s - verdict.host_s, to_host_s)
        pipeline = verdict.pipeline
        cycles = pipeline.forward_stages if pipeline.pipelined else 1
        to_host_s = call_overhead_s
        return Latencies((verdict.host_s - to_host_s) / iterations, cycles * pipeline.cycle_s, to_host_s)

    def _quiet_verdict(self, of_what: str) -> Verdict:
        if isinstance(self._outcome, Exception):
            raise createPoptorchError(
                f"The simulator can't predict this model's {of_what}: {type(self._outcome).__name__}: "
                f"{self._outcome}"
            ) from self._outcome
        return self._outcome

    @functools.cached_property
    def _outcome(self) -> Verdict | Exception:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the model's forward has printed already
                return self.verdict
        except Exception as error:
            return error


# Reports on a program that runs: the verdict on its first compiled model, written when the compilation ends.
#
# IPU_SIMULATOR_PROFILE names the folder; the front door's --profile sets it. The folder itself has the
# reports on the training model, or on an inference model until there is one; `inference` in it has those on
# the inference model. The model's forward runs a second time for this, on tensors without memory.

# Kinds of models that this process has reports on, or has begun them.
_reported: set[str] = set()
_lock = threading.Lock()


def report(predictions: Predictions | None, options: Options, training: bool) -> None:
    """A model was compiled. Writes reports if they are asked for and this is the first of its kind; whatever
    goes wrong is a warning on stderr. None stands for a program that came compiled from a file.
    """
    folder = variables.profile_folder()
    kind = "training" if training else "inference"
    if folder is None or options.Distributed.processId or variables.whole_number(variables.RANK, 0):
        return
    with _lock:
        if kind in _reported:
            return
        if predictions is None:
            _say(f"warning: no reports on the {kind} model: it came compiled from a file")
            return
        folders = [] if kind == "inference" and "training" in _reported else [folder]
        _reported.add(kind)
    if kind == "inference":
        folders.append(folder / kind)
    _write(predictions, kind, folders)


def _write(predictions: Predictions, kind: str, folders: list[Path]) -> None:
    # The user's program goes on, whatever happens to a report on it: any model may fail to be captured.
    try:
        verdict = predictions.verdict
        from ipu_simulator import report

        for folder in folders:
            report.write(verdict, folder)
        environment.say(report.text(verdict))
    except Exception as error:
        logger.debug("The report failed", exc_info=True)
        _say(f"warning: no reports on the {kind} model: {type(error).__name__}: {error}")
    else:
        _say(f"reports on the {kind} model are in {folders[0]}")


def _say(text: str) -> None:
    environment.say(f"{NAME}: {text}")


# What an executor answers about its runs: latencies, counters, cycles, how long its compilation took.


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
