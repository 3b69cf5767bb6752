"""The simulator's additions to PopTorch's interface: a program's graph and verdict from Python.

    import poptorch.simulator

    verdict = poptorch.simulator.verdict_of(model, (images, labels), options, optimizer)
    print(verdict.fits, verdict.step_s)
    ipu_simulator.report.write(verdict, Path("reports"))

`import poptorch` doesn't import this module, and a program that uses it doesn't run on Graphcore's PopTorch.
Needs torch 2.3 and numpy; a written report needs jinja2 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ipu_simulator.environment import target as _target
from ipu_simulator.host import needed_for as _needed_for

with _needed_for("a verdict"):
    from ipu_simulator.cost.assess import assess as _assess
from ipu_simulator.cost.verdict import Verdict

from ._run.structure import tensors as _tensors
from ._trace.capture import capture, settings_of, without_memory
from .options import Options

__all__ = ["capture", "settings_of", "verdict_of", "without_memory"]


def verdict_of(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    options: Options | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    target: str | None = None,
    name: str = "model",
    with_values: bool = False,
) -> Verdict:
    """Predicts whether a program fits into its IPUs' memory, how fast it is, and why, without running it.

    :param model: the module, not an executor; it may be created inside `without_memory()`.
    :param args, kwargs: one micro batch, without the factors of accumulation, replicas and device iterations;
        only shapes and dtypes count. The first tensor's first dimension is the micro batch size.
    :param options: default: PopTorch's defaults.
    :param optimizer: None for inference.
    :param target: the machine, such as "pod16"; default: IPU_SIMULATOR_TARGET.
    :param name: the program's name in the verdict.
    :param with_values: computes with real weights and inputs, for a model whose control flow depends on
        values.

    Raises poptorch.Error if the model or its options can't be compiled, UnknownTarget for an unknown target.
    """
    options = Options() if options is None else options
    keywords = dict(kwargs or {})
    graph = capture(model, args, keywords, options, optimizer is not None, with_values)
    inputs = _tensors((args, keywords))
    micro_batch_size = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    settings = settings_of(options, optimizer, micro_batch_size, graph.num_ipus)
    return _assess(graph, settings, _target(target), name=name)
