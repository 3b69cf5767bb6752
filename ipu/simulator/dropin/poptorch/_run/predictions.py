"""What the cost model says of a compiled program, when asked: its cycles and latencies."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from ipu_simulator import numerics
from ipu_simulator.cost.constants import constants
from ipu_simulator.environment import target

from .._logging import logger
from ..poptorch_core import Error, createPoptorchError
from .arguments import Arguments

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
