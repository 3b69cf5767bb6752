"""One call of the device: micro batches forward and backward, gradients reduced, weights updated.

Replicas hold identical weights. Those of this process run one after another; `GradientSource.reduced` adds
the gradients of replicas in other processes.
"""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, List, Optional, Sequence, Tuple, Union

import torch

from .gradients import BackwardSums, TypedAccumulators
from .plan import MicroBatch, OutputCollector, StepPlan
from .processes import Gradients
from .rounding import FloatingPointException, KeyedRandomness, host_generator_kept

# One micro batch's inputs -> (its loss or None, the tensors it returns).
Results = Tuple[Optional[torch.Tensor], List[torch.Tensor]]
Forward = Callable[[List[torch.Tensor]], Results]
GradientSource = Union[BackwardSums, TypedAccumulators]


@dataclass(frozen=True)
class Merge:
    """Runs up to `size` consecutive micro batches of a replica as one.

    `forward(inputs, seeds)`: inputs [K, ...] (0-d: the same for all) and the seed of each one's draws ->
    (losses [K, ...], tensors [K, ...]); None if they have to run one by one.
    """

    size: int
    forward: Callable[[List[torch.Tensor], List[int]], Optional[Results]]


@dataclass(frozen=True)
class StepProgram:
    """What a step runs: the split of the batch, the model, and a hook for changing the replica.

    `enter_replica(r)` switches the tensors that differ between replicas (running statistics) to those of r.
    `arithmetic()` is a context around forward and backward passes, for float16 arithmetic.
    `on_bad_loss(which, loss)` is called if a micro batch's loss is NaN or infinite, before weights change.
    `origin(which)` says where in a micro batch's forward a floating-point exception arises.
    `merge`: micro batches of training may run together.
    """

    plan: StepPlan
    forward: Forward
    randomness: KeyedRandomness
    enter_replica: Callable[[int], None]
    arithmetic: Callable[[], ContextManager[Any]] = nullcontext
    on_bad_loss: Callable[[MicroBatch, float], None] = lambda which, loss: None
    origin: Callable[[MicroBatch], Optional[str]] = lambda which: None
    merge: Optional[Merge] = None

    def micro_batch(self, inputs: Sequence[torch.Tensor], which: MicroBatch) -> Results:
        """Runs the model on one micro batch, with that micro batch's random stream."""
        self.randomness.seed_micro_batch(which.replica, which.step)
        return self.forward([self.plan.micro_input(tensor, which) for tensor in inputs])

    def merged(
        self, merge: Merge, inputs: Sequence[torch.Tensor], together: Sequence[MicroBatch]
    ) -> Optional[Results]:
        """As `micro_batch`, with a leading dimension; None if these have to run one by one."""
        seeds = [self.randomness.micro_batch_seed(which.replica, which.step) for which in together]
        stacked = [self.plan.micro_inputs(tensor, together[0], len(together)) for tensor in inputs]
        return merge.forward(stacked, seeds)

    @property
    def steps_together(self) -> List[range]:
        """The accumulation steps, split into runs of almost equal length, at most `merge.size`."""
        count = self.plan.gradient_accumulation
        parts = -(-count // (1 if self.merge is None else self.merge.size))
        bounds = [count * part // parts for part in range(parts + 1)]
        return [range(begin, end) for begin, end in itertools.pairwise(bounds)]


def run_training(
    program: StepProgram,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    update: Callable[[Gradients], None],
    collector: OutputCollector,
    gradients: GradientSource,
) -> List[torch.Tensor]:
    """Makes `device_iterations` weight updates and returns the collected outputs.

    `weights` are the leaves to train; they hold no gradient before or after. `update` is called with the
    gradients that `gradients` has accumulated and reduced, None for a weight that the loss doesn't depend on.
    """
    plan = program.plan
    with host_generator_kept(), torch.enable_grad():
        for iteration in range(plan.device_iterations):
            for replica in range(plan.replicas):
                program.enter_replica(replica)
                for steps in program.steps_together:
                    together = [MicroBatch(iteration, step, replica) for step in steps]
                    if _train_merged(program, inputs, weights, together, collector, gradients):
                        continue
                    for which in together:
                        _train(program, inputs, weights, which, collector, gradients)
            with torch.no_grad():
                update(gradients.reduced(weights))
            program.randomness.iterations_done += 1
        program.enter_replica(0)
    return collector.result()


def _train(
    program: StepProgram,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    which: MicroBatch,
    collector: OutputCollector,
    gradients: GradientSource,
) -> None:
    """Forward and backward pass of one micro batch."""
    try:
        with program.arithmetic():
            loss, outputs = program.micro_batch(inputs, which)
            if loss is not None and loss.requires_grad:
                loss.backward(gradients.seed(loss))
    except FloatingPointException as exception:
        where = program.origin(which) or f"{exception}, in the backward pass"
        raise FloatingPointException(where) from exception
    if loss is not None and not math.isfinite(value := loss.detach().sum().item()):
        program.on_bad_loss(which, value)
    collector.add(which, outputs)
    del loss, outputs
    with torch.no_grad():
        gradients.add(weights, which)


def _train_merged(
    program: StepProgram,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    together: Sequence[MicroBatch],
    collector: OutputCollector,
    gradients: GradientSource,
) -> bool:
    """The same for several micro batches at once; False, with nothing done, if they must run one by one."""
    if program.merge is None or len(together) == 1:
        return False
    results = None
    try:
        with program.arithmetic():
            results = program.merged(program.merge, inputs, together)
            if results is None:
                return False
            losses, outputs = results
            if losses is not None and losses.requires_grad:
                losses.backward(gradients.seed(losses))
    except FloatingPointException as exception:
        if results is None:  # run alone, one of them is named
            return False
        origins = filter(None, map(program.origin, together))
        raise FloatingPointException(next(origins, f"{exception}, in the backward pass")) from exception
    if losses is not None:
        for which, value in zip(together, losses.detach().reshape(len(together), -1).sum(1).tolist()):
            if not math.isfinite(value):
                program.on_bad_loss(which, value)
    of_each = [tensor.detach().unbind() for tensor in outputs]
    for index, which in enumerate(together):
        collector.add(which, [parts[index] for parts in of_each])
    del losses, outputs, results, of_each
    with torch.no_grad():
        gradients.add(weights, together[-1])
    return True


def run_inference(
    program: StepProgram, inputs: Sequence[torch.Tensor], collector: OutputCollector
) -> List[torch.Tensor]:
    """Runs every micro batch forward and returns the collected outputs."""
    plan = program.plan
    with host_generator_kept(), torch.no_grad():
        for iteration in range(plan.device_iterations):
            for replica in range(plan.replicas):
                program.enter_replica(replica)
                for step in range(plan.gradient_accumulation):
                    which = MicroBatch(iteration, step, replica)
                    with program.arithmetic():
                        outputs = program.micro_batch(inputs, which)[1]
                    collector.add(which, outputs)
            program.randomness.iterations_done += 1
        program.enter_replica(0)
    return collector.result()
