"""Tensors that `Options.anchorTensor` keeps for `getAnchoredTensor`.

They are named as in `getTensorNames`: `<weight>`, `Gradient___<weight>` (one per micro batch, before
accumulation), `UpdatedVar___<weight>` (one per weight update), the tensors of the optimizer by PopART's names
(`Accl1___<weight>`, `learningRate___specific___<weight>`, with automatic loss scaling `finalLossScale`), and
the results of operations. Those of weights and optimizer are what a micro batch finds.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Callable, Iterator

import torch
from ipu_simulator import numerics
from ipu_simulator.graph.recorder import Operation, Place, RecomputationCheckpoint, Recorder

from .. import enums
from .._trace import popart_ir, watch
from .._trace import run as _trace
from ..poptorch_core import createBackendError

if TYPE_CHECKING:
    from ..optim.on_device import OptimizerOnDevice
    from ..options import Options

# Applies one weight update with these gradients.
Update = Callable[["list[torch.Tensor | None]"], None]

_GRADIENT, _UPDATED = "Gradient___", "UpdatedVar___"
RETURNED = {
    enums.OutputMode.All: numerics.Returned.ALL,
    enums.OutputMode.EveryN: numerics.Returned.EVERY_N,
    enums.OutputMode.Final: numerics.Returned.FINAL,
    enums.OutputMode.Sum: numerics.Returned.SUM,
}


def names(ir: str, weights: list[str], training: bool, of_optimizer: list[str]) -> list[str]:
    """All names that can be anchored: weights, in training their gradients, updates and the optimizer's
    tensors, then results.
    """
    found = list(weights)
    if training:
        found += [f"{kind}{name}" for kind in (_GRADIENT, _UPDATED) for name in weights]
    found += of_optimizer
    for node in json.loads(ir)["maingraph"]:
        found += [tensor["name"] for tensor in node["outputs"] if tensor["name"] not in found]
    return found


def check(options: Options, known: list[str]) -> None:
    """Raises poptorch.Error for an anchor whose name isn't in `known`."""
    for short_name, (long_name, _, _) in options.anchored_tensors.items():
        if long_name not in known:
            raise createBackendError(
                f"Anchor tensor '{long_name}' (of anchorTensor('{short_name}', ...)) isn't in the model: "
                "getTensorNames() lists those that are.",
                "popart_exception",
            )


class Anchors:
    """One call's anchored tensors.

    :param weights: the model's parameters by name, which hold the device's data during the call.
    :param module_paths: the modules' paths by id, the same as during compilation.
    :param of_optimizer: names of the optimizer's tensors.
    :param optimizer: None in inference.
    """

    def __init__(
        self,
        options: Options,
        plan: numerics.StepPlan,
        weights: dict[str, torch.Tensor],
        module_paths: dict[int, str],
        of_optimizer: list[str],
        optimizer: OptimizerOnDevice | None,
    ) -> None:
        self._weights = weights
        self._optimizer = optimizer
        self._module_paths = module_paths
        self._each_update = numerics.StepPlan(
            device_iterations=plan.device_iterations, replicas=plan.replicas, processes=plan.processes
        )
        self._wanted: dict[str, tuple[str, numerics.OutputCollector]] = {}
        for short_name, (long_name, mode, period) in options.anchored_tensors.items():
            returned = RETURNED[options.output_mode if mode is None else mode]
            counts = self._each_update if long_name.startswith(_UPDATED) else plan
            period = options.output_return_period if mode is None else period
            self._wanted[short_name] = (long_name, numerics.OutputCollector(counts, returned, period))
        self._of_optimizer = {name for name, _ in self._wanted.values()} & {*of_optimizer}
        self._order = [
            numerics.MicroBatch(iteration, step, replica)
            for iteration in range(plan.device_iterations)
            for replica in range(plan.replicas)
            for step in range(plan.gradient_accumulation)
        ]
        self._next = 0
        self._updates = 0

    def __bool__(self) -> bool:
        return bool(self._wanted)

    @property
    def need_operations(self) -> bool:
        """Whether an operation's result is anchored: its name depends on modules, so the forward must run."""
        kinds = ("", _GRADIENT, _UPDATED)
        known = {f"{kind}{name}" for kind in kinds for name in self._weights} | self._of_optimizer
        return any(long_name not in known for long_name, _ in self._wanted.values())

    @property
    def need_each_gradient(self) -> bool:
        """Whether the gradients of each micro batch are anchored."""
        return any(long_name.startswith(_GRADIENT) for long_name, _ in self._wanted.values())

    def _keep(self, name: str, which: numerics.MicroBatch, tensor: torch.Tensor) -> None:
        for long_name, collector in self._wanted.values():
            if long_name == name:
                collector.add(which, [tensor])

    @contextlib.contextmanager
    def gradients(self) -> Iterator[None]:
        """Context: hooks on the weights keep the anchored gradients of backward passes."""
        handles = []
        for name, weight in self._weights.items():
            if any(long_name == f"{_GRADIENT}{name}" for long_name, _ in self._wanted.values()):

                def kept(gradient: torch.Tensor, name: str = name) -> None:
                    self._keep(f"{_GRADIENT}{name}", self._order[self._next - 1], gradient)

                handles.append(weight.register_hook(kept))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def micro_batch(self, inputs: list[torch.Tensor]) -> Iterator[None]:
        """Context of the next micro batch's forward: keeps anchored weights and results."""
        which = self._order[self._next]
        self._next += 1
        for name, weight in self._weights.items():
            self._keep(name, which, weight)
        if self._of_optimizer and self._optimizer is not None:
            for name, tensor in self._optimizer.tensors(self._of_optimizer, which.replica).items():
                self._keep(name, which, tensor)
        if not self.need_operations:
            yield
            return
        found: dict[str, torch.Tensor] = {}
        wanted = {long_name for long_name, _ in self._wanted.values()}
        names = popart_ir.Names()

        def keep(name: str, tensor: torch.Tensor) -> None:
            if name in wanted:
                found[name] = tensor.detach().clone()

        def on_event(event: Operation | RecomputationCheckpoint, results: list[torch.Tensor]) -> None:
            left = iter(results)
            for node in names.nodes(event):
                for index, (_, tensor) in enumerate(zip(node.made, left)):
                    keep(f"{node.name}:{index}", tensor)

        for index, tensor in enumerate(inputs):
            keep(f"input/{index}", tensor)
        run = _trace.surrounding()
        assert run is not None
        run.recorder = Recorder(lambda: Place(0, 0), self._module_paths, on_event)
        with run.recorder.in_modules(), watch.anchored(run.recorder):
            yield
        for name, tensor in found.items():
            self._keep(name, which, tensor)

    def following(self, update: Update, enter_replica: Callable[[int], None]) -> Update:
        """`update`, which afterwards also keeps the anchored updated weights of every replica."""

        def update_and_keep(gradients: list[torch.Tensor | None]) -> None:
            update(gradients)
            for replica in range(self._each_update.replicas):
                enter_replica(replica)
                which = numerics.MicroBatch(self._updates, 0, replica)
                for name, weight in self._weights.items():
                    self._keep(f"{_UPDATED}{name}", which, weight)
            self._updates += 1

        return update_and_keep if self._wanted else update

    def result(self) -> dict[str, torch.Tensor]:
        """The anchored tensors by short name, laid out as an output is."""
        return {short_name: collector.result()[0] for short_name, (_, collector) in self._wanted.items()}
