"""One call of the device: micro batches forward and backward, gradients reduced, weights updated.

Replicas hold identical weights. Those of this process run one after another; `GradientSource.reduced` adds
the gradients of replicas in other processes.
"""

from __future__ import annotations

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
Forward = Callable[[List[torch.Tensor]], Tuple[Optional[torch.Tensor], List[torch.Tensor]]]
GradientSource = Union[BackwardSums, TypedAccumulators]


@dataclass(frozen=True)
class StepProgram:
    """What a step runs: the split of the batch, the model, and a hook for changing the replica.

    `enter_replica(r)` switches the tensors that differ between replicas (running statistics) to those of r.
    `arithmetic()` is a context around forward and backward passes, for float16 arithmetic.
    `on_bad_loss(which, loss)` is called if a micro batch's loss is NaN or infinite, before weights change.
    `origin(which)` says where in a micro batch's forward a floating-point exception arises.
    """

    plan: StepPlan
    forward: Forward
    randomness: KeyedRandomness
    enter_replica: Callable[[int], None]
    arithmetic: Callable[[], ContextManager[Any]] = nullcontext
    on_bad_loss: Callable[[MicroBatch, float], None] = lambda which, loss: None
    origin: Callable[[MicroBatch], Optional[str]] = lambda which: None

    def micro_batch(
        self, inputs: Sequence[torch.Tensor], which: MicroBatch
    ) -> Tuple[Optional[torch.Tensor], List[torch.Tensor]]:
        """Runs the model on one micro batch, with that micro batch's random stream."""
        self.randomness.seed_micro_batch(which.replica, which.step)
        return self.forward([self.plan.micro_input(tensor, which) for tensor in inputs])


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
                for step in range(plan.gradient_accumulation):
                    which = MicroBatch(iteration, step, replica)
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
            with torch.no_grad():
                update(gradients.reduced(weights))
            program.randomness.iterations_done += 1
        program.enter_replica(0)
    return collector.result()


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
