"""Reports on a program that runs: the verdict on its first compiled model, written when the compilation ends.

IPU_SIMULATOR_PROFILE names the folder; `python -m ipu.simulator --profile` sets it. The folder itself has the
reports on the training model, or on an inference model until there is one; `inference` in it has those on the
inference model. The model's forward runs a second time for this, on tensors without memory.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from ._args import Arguments
from ._engine import ENGINE_NAME, load
from ._numerics import numerics
from .poptorch_core import createPoptorchError

VARIABLE = "IPU_SIMULATOR_PROFILE"
_RANK = "RANK"  # torchrun's

_profiled: set[str] = set()


def compiled(
    model: torch.nn.Module,
    arguments: Arguments | dict[str, Any],
    plan: Any,
    options: Any,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """A model was compiled. Writes reports if they are asked for and this is the first of its kind; whatever
    goes wrong is a warning on stderr.

    :param arguments: of the call, for all micro batches that `plan` (numerics.StepPlan) cuts them into. What
        stands in place of them where an executable came from a file can't be profiled.
    :param optimizer: None for inference.
    """
    folder = os.environ.get(VARIABLE)
    kind = "inference" if optimizer is None else "training"
    if not folder or kind in _profiled or _rank(options):
        return
    if not isinstance(arguments, Arguments):
        _say(f"warning: no reports on the {kind} model: it came compiled from a file")
        return
    folders = [] if kind == "inference" and "training" in _profiled else [Path(folder)]
    if kind == "inference":
        folders.append(Path(folder) / kind)
    _profiled.add(kind)
    try:
        verdict = _verdict(model, arguments, plan, options, optimizer)
        report = importlib.import_module(f"{ENGINE_NAME}.report")
        for one in folders:
            report.write(verdict, one)
        print(report.text(verdict), file=sys.stderr)
        _say(f"reports on the {kind} model are in {folders[0]}")
    except Exception as error:
        _say(f"warning: no reports on the {kind} model: {type(error).__name__}: {error}")


def predicted_cycles(
    model: torch.nn.Module,
    arguments: Arguments,
    plan: Any,
    options: Any,
    optimizer: torch.optim.Optimizer | None,
) -> int:
    """Tile cycles of a call on the simulator's machine, as the verdict predicts its time; see `compiled`.

    The host's part is none of them. Raises poptorch.Error for a model that can't be captured.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the model's forward has printed already
            verdict = _verdict(model, arguments, plan, options, optimizer)
    except Exception as error:
        raise createPoptorchError(
            f"The simulator can't predict this model's cycles: {type(error).__name__}: {error}"
        ) from error
    device_s = verdict.step_s - verdict.host_s
    call_s = device_s if optimizer is None else device_s * options.device_iterations
    load()
    machine = importlib.import_module(f"{ENGINE_NAME}.targets").target()
    return round(call_s * machine.clock_hz)


def _verdict(
    model: torch.nn.Module,
    arguments: Arguments,
    plan: Any,
    options: Any,
    optimizer: torch.optim.Optimizer | None,
) -> Any:
    from ._capture import capture, settings_of

    load()
    assemble = importlib.import_module(f"{ENGINE_NAME}.cost.assemble")
    targets = importlib.import_module(f"{ENGINE_NAME}.targets")
    first = numerics.MicroBatch(0, 0, 0)
    inputs = [plan.micro_input(tensor, first) for tensor in arguments.tensors]
    args, kwargs = arguments.replaced(inputs)
    try:
        graph = capture(model, args, kwargs, options, optimizer is not None)
    except Exception:
        # The model did compile: so its way depends on values (a condition, NumPy, a layer on the host).
        graph = capture(model, args, kwargs, options, optimizer is not None, with_values=True)
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    settings = settings_of(options, optimizer, batch, graph.num_ipus)
    return assemble.assess(graph, settings, targets.target(), name=Path(sys.argv[0]).name or "python")


def _rank(options: Any) -> int:
    return options.Distributed.processId or int(os.environ.get(_RANK, "0"))


def _say(text: str) -> None:
    print(f"ipu.simulator: {text}", file=sys.stderr, flush=True)
