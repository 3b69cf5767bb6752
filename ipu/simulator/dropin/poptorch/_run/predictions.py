"""Cycles, latencies and reports of a compiled program, as the cost model predicts them.

With IPU_SIMULATOR_PROFILE set (the command's --profile sets it), the first compiled model of each kind is
reported on as soon as it is compiled. The profile folder gets the report on the training model, or on an
inference model until there is a training model; its folder `inference` gets the one on the inference model.
A prediction runs the model's forward a second time, on fake tensors.
"""

from __future__ import annotations

import contextlib
import datetime
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


# Capturing a graph needs torch 2.3.
_TORCH = "2.3"
# Errors of a forward that compiled, but fails on fake tensors: PyTorch's (data-dependent output, NumPy,
# tensor subclasses) are RuntimeErrors or TypeErrors, those of the checks poptorch.Errors. Any other exception
# is a bug, in the model or here, and isn't hidden by a second try.
_NEEDS_VALUES = (RuntimeError, TypeError, Error)


class Latencies(NamedTuple):
    """Seconds of a round trip: a weight update; in inference, a micro batch through the pipeline."""

    host_to_ipu_s: float
    compute_s: float
    ipu_to_host_s: float


class Predictions:
    """Predictions for one program on the simulated machine, computed on first use.

    :param arguments: of a whole call; the first micro batch of `plan` is kept.
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
        # Copies: the caller may change or free its tensors.
        self._inputs = [plan.micro_input(tensor, first).detach().clone() for tensor in arguments.tensors]
        self._args, self._kwargs = arguments.replaced(self._inputs)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The cost model's verdict. Raises NotImplementedError before torch 2.3, and the capture's errors."""
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
                "Capturing this model on fake tensors failed; capturing it again with real weights and "
                "inputs. %s: %s",
                type(error).__name__,
                error,
            )
            return verdict(with_values=True)

    @property
    def cycles(self) -> int:
        """Tile cycles per call, without the host's time. Raises poptorch.Error if `verdict` fails."""
        verdict = self._quiet_verdict("cycles")
        device_s = verdict.step_s - verdict.host_s
        call_s = device_s if self._optimizer is None else device_s * self._options.device_iterations
        return round(call_s * target().clock_hz)

    @property
    def latencies(self) -> Latencies:
        """Latencies, the same for every round trip. Raises poptorch.Error if `verdict` fails."""
        verdict = self._quiet_verdict("latencies")
        call_overhead_s = constants().call_overhead_s
        iterations = self._options.device_iterations
        if self._optimizer is not None:
            to_host_s = call_overhead_s / iterations
            return Latencies(verdict.details.input_s, verdict.step_s - verdict.host_s, to_host_s)
        pipeline = verdict.pipeline
        cycles = pipeline.forward_stages if pipeline.pipelined else 1
        to_host_s = call_overhead_s
        return Latencies(verdict.details.input_s / iterations, cycles * pipeline.cycle_s, to_host_s)

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
            with contextlib.redirect_stdout(io.StringIO()):  # the forward's prints were shown before
                return self.verdict
        except Exception as error:
            return error


# Kinds of models ("training", "inference") that this process has reported on or is reporting on.
_reported: set[str] = set()
_lock = threading.Lock()


def report(predictions: Predictions | None, options: Options, training: bool) -> None:
    """Writes reports on a newly compiled model, if requested and if it is the first of its kind.

    Never raises: errors become warnings on stderr. `predictions` is None for an executable from a file.
    """
    folder = variables.profile_folder()
    kind = "training" if training else "inference"
    if folder is None or options.Distributed.processId or variables.whole_number(variables.RANK, 0):
        return
    with _lock:
        if kind in _reported:
            return
        if predictions is None:
            _say(f"warning: no reports on the {kind} model: its executable was loaded from a file")
            return
        folders = [] if kind == "inference" and "training" in _reported else [folder]
        _reported.add(kind)
    if kind == "inference":
        folders.append(folder / kind)
    _write(predictions, kind, folders)


def _write(predictions: Predictions, kind: str, folders: list[Path]) -> None:
    # Capturing may fail in any way for an arbitrary model; the user's program must continue.
    try:
        verdict = predictions.verdict
        from ipu_simulator import report

        for folder in folders:
            report.write(verdict, folder)
        environment.say(report.shown(report.text(verdict), sys.stderr))
    except Exception as error:
        logger.debug("The report failed", exc_info=True)
        _say(f"warning: no reports on the {kind} model: {type(error).__name__}: {error}")
    else:
        _say(f"reports on the {kind} model are in {folders[0]}")


def _say(text: str) -> None:
    environment.say(f"{NAME}: {text}")


def _perf_counters(starts: list[list[float]], ends: list[list[float]]) -> dict[str, list[list[float]]]:
    return {"input": starts, "input_complete": starts, "output": ends, "output_complete": ends}


class Measured:
    """Mixin of PoplarExecutor: latencies, performance counters, cycle count and compilation time."""

    _options: Options
    _executable: Executable | None
    replica_groupings: dict[int, ReplicaGrouping]
    _predictions: Predictions | None = None
    _compilation_s: float | None = None
    _last_call_s: float | None = None  # None before the first call
    _perf_counters = _perf_counters([[]], [[]])

    @property
    def _has_synthetic_data(self) -> bool:
        return Obeyed(self._options._Popart).has_synthetic_data

    def _note_call(
        self, start_s: float, end_s: float, taken: tuple[int, int], given: tuple[int, int]
    ) -> None:
        """Records a call: start and end in seconds, (tensors, micro batches) of its inputs and outputs."""
        self._last_call_s = end_s - start_s
        if self._has_synthetic_data:
            return  # nothing is transferred
        (inputs, steps), (outputs, returned) = taken, given
        self._perf_counters = _perf_counters(
            [[start_s] * steps for _ in range(inputs)], [[end_s] * returned for _ in range(outputs)]
        )

    def _latency(
        self, predicted_s: Callable[[Latencies], float], host_share: float
    ) -> tuple[float, float, float]:
        """(min, max, average) seconds: the prediction, or `host_share` of the last call's time on this host
        if there is no prediction or the IPU model is used.
        """
        if self._last_call_s is None or self._has_synthetic_data:
            return (0.0, 0.0, 0.0)
        if self._predictions is not None and not usesIpuModel(self._options._values):
            try:
                with self._weights_of_groups():
                    latency_s = predicted_s(self._predictions.latencies)
                return (latency_s, latency_s, latency_s)
            except Error as error:
                logger.warning("%s. Reporting this host's latencies instead.", error.message)
        host_s = host_share * self._last_call_s
        return (host_s, host_s, host_s)

    def getLatency(self) -> tuple[float, float, float]:
        """(min, max, average) seconds of a round trip; zeros before the first call and for synthetic data,
        whose transfers a latency would be measured by.
        """
        return self._latency(sum, 1.0)

    def getComputeLatency(self) -> tuple[float, float, float]:
        """The part of getLatency that the IPUs compute: (min, max, average) in seconds."""
        return self._latency(lambda latencies: latencies.compute_s, 1.0)

    def getHostIpuLatency(self) -> tuple[float, float, float]:
        """The part of getLatency that inputs take to the IPU, in seconds; 0 for this host's times."""
        return self._latency(lambda latencies: latencies.host_to_ipu_s, 0.0)

    def getIpuHostLatency(self) -> tuple[float, float, float]:
        """The part of getLatency that outputs take to the host, in seconds; 0 for this host's times."""
        return self._latency(lambda latencies: latencies.ipu_to_host_s, 0.0)

    def getPerfCounters(self) -> dict[str, list[list[float]]]:
        """Wall-clock times of the last call in seconds, by event: a list per tensor of one per micro batch.

        Here all inputs are transferred when the call starts, all outputs when it ends. `[[]]` before a call
        and for synthetic data.
        """
        return self._perf_counters

    def cycleCount(self) -> int:
        """Predicted IPU cycles per call on the simulated machine.

        Raises poptorch.Error if logCycleCount is off, before the first call, for an executable from a file,
        and if the prediction fails.
        """
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
        """Context for capturing the forward: weights with replicaGrouping are those of one replica."""
        if self._executable is None or not self.replica_groupings:
            return contextlib.nullcontext()
        return self._executable.weights.swapped_in()

    def compilationTime(self) -> datetime.timedelta:
        """The time that the compilation took.

        Raises poptorch.Error before the compilation, and if showCompilationProgressBar is off.
        """
        if self._executable is None or self._compilation_s is None:
            raise createPoptorchError("Please compile the model before obtaining compilation time.")
        if not self._options.show_compilation_progress_bar:
            raise createPoptorchError(
                "Please set showCompilationProgressBar option to obtain compilation time."
            )
        return datetime.timedelta(seconds=self._compilation_s)
