"""Merged micro batches: several micro batches of a weight update run as one, forward and backward.

torch.func.vmap runs the replay of the forward (replay.py) once for K micro batches. By definition it computes
for each of them what it computes alone: a loss is normalised per micro batch, and statistics over a micro
batch don't couple it with others. Autograd then adds up the gradients of K losses in one backward pass. Only
the order of float32 sums differs.

A trial before the first weight update decides, on the first two micro batches, run alone and merged. Not
merged is a forward
- that has side effects: it writes to a weight, a buffer or an input, or calls Python in each run;
- that computes in float16 or bfloat16, in which another order of sums is more than a rounding of float32;
- whose random numbers, or operations, vmap can't repeat for each micro batch;
- whose loss or gradients differ in the trial by more than the order of sums explains;
- of a micro batch so large that merging it gains nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Callable, ContextManager, Iterator, Sequence

import torch
from ipu_simulator import environment, numerics, variables
from ipu_simulator.host import NAME

from .merge_trial import NotMerged, Trial, run_merged

if TYPE_CHECKING:
    from .._trace.replay import Replay
    from ..optim.on_device import OptimizerOnDevice
    from .anchors import Anchors
    from .device_weights import DeviceWeights
    from .merged_draws import Draw


class Merger:
    """Merges the micro batches of one executable.

    :param replaying: the context of replays of the forward.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: numerics.StepPlan,
        weights: DeviceWeights,
        randomness: numerics.KeyedRandomness,
        replaying: Callable[[], ContextManager[None]],
    ) -> None:
        self._model = model
        self._plan = plan
        self._weights = weights
        self._randomness = randomness
        self._replaying = replaying
        self._drawn: list[Draw] = []
        self._size = 0  # of micro batches that run together; 0: not decided
        self._has_said = False

    def merge(
        self,
        calls: Replay | None,
        inputs: Sequence[torch.Tensor],
        order: Sequence[int] | None,
        anchors: Anchors,
        optimizer: OptimizerOnDevice,
        arithmetic: Callable[[], ContextManager[None]],
        overwrites: Callable[[], bool],
    ) -> numerics.Merge | None:
        """How micro batches of a training call run together; None: one by one. The first call decides, and
        says why they can't.

        :param calls: the replay of the forward; None if it can't be replayed.
        :param order: its inputs among `inputs`, by index; None if this call's arguments are no replay's.
        :param overwrites: whether in-place operations overwrote tensors that gradients need.
        """
        if self._size == 1 or self._plan.gradient_accumulation == 1 or not variables.merges():
            return None
        try:
            calls = self._checked(calls, anchors, optimizer)
            if order is None:
                return None
            if self._size == 0:
                ordered = [inputs[i] for i in order]
                self._drawn, self._size = self._trial(calls, ordered, arithmetic, overwrites)
        except NotMerged as reason:
            self._say(reason)
            self._size = 1
        except numerics.FloatingPointException:  # run alone, a micro batch is named
            return None
        if self._size == 1 or calls is None or order is None:
            return None
        replay, indices = calls, order

        def forward(stacked: list[torch.Tensor], seeds: list[int]) -> numerics.Results | None:
            try:
                with self._replaying():
                    results = run_merged(replay, self._drawn, [stacked[i] for i in indices], seeds)
            except NotMerged as reason:
                self._say(reason)
                return None
            for _ in seeds if anchors else ():
                with anchors.micro_batch([]):
                    pass
            return results

        return numerics.Merge(self._size, forward)

    def _checked(self, calls: Replay | None, anchors: Anchors, optimizer: OptimizerOnDevice) -> Replay:
        """The replay. Raises NotMerged for what needs each micro batch's run or gradients."""
        if calls is None:
            raise NotMerged("its forward can't be replayed: its Python runs for each of them")
        if calls.has_callbacks:
            raise NotMerged("its forward calls Python in each run")
        if anchors.need_operations or anchors.need_each_gradient:
            raise NotMerged("an anchored tensor is one of each micro batch")
        if optimizer.watch is not None:
            raise NotMerged("automatic loss scaling looks at the gradients of each")
        for name, weight in zip(self._weights.names, self._weights.parameters):
            if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
                raise NotMerged(f"the weight {name} has a hook")
        return calls

    def _trial(
        self,
        calls: Replay,
        inputs: list[torch.Tensor],
        arithmetic: Callable[[], ContextManager[None]],
        overwrites: Callable[[], bool],
    ) -> tuple[list[Draw], int]:
        """Runs two micro batches, which leaves no trace."""

        @contextlib.contextmanager
        def running() -> Iterator[None]:
            with arithmetic(), self._replaying():
                yield

        plan = self._plan
        first = [numerics.MicroBatch(0, step, 0) for step in range(2)]
        alone = [[plan.micro_input(tensor, which).clone() for tensor in inputs] for which in first]
        stacked = [plan.micro_inputs(tensor, first[0], 2) for tensor in inputs]
        seeds = [self._randomness.micro_batch_seed(0, which.step) for which in first]
        lasting = {numerics.storage_of(tensor): "an input" for own in alone for tensor in own}
        for kind, named in (
            ("buffer", self._model.named_buffers()),
            ("weight", self._model.named_parameters()),
        ):
            lasting.update({numerics.storage_of(tensor): f"the {kind} {name}" for name, tensor in named})
        trainable = [self._weights.parameters[i] for i in self._weights.trainable]
        self._weights.enter_replica(0)
        with self._weights.kept() as keep, numerics.host_generator_kept(), torch.enable_grad():
            trial = Trial(calls, trainable, lasting, keep, running, overwrites)
            return trial.run(alone, stacked, seeds, plan.gradient_accumulation)

    def _say(self, reason: NotMerged) -> None:
        """Once."""
        if not self._has_said:
            self._has_said = True
            environment.say(f"{NAME}: micro batches run one by one, not merged: {reason}")
