"""One call of the device: micro batches forward and backward, gradients reduced, weights updated.

Replicas hold identical weights. Those of this process run one after another; other processes may have
more, whose gradients join in `reduce_gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import torch

from .outputs import OutputCollector
from .plan import MicroBatch, StepPlan
from .processes import Processes
from .randomness import KeyedRandomness, host_generator_kept

# One micro batch's inputs -> (its loss or None, the tensors it returns).
Forward = Callable[[List[torch.Tensor]], Tuple[Optional[torch.Tensor], List[torch.Tensor]]]
Gradients = List[Optional[torch.Tensor]]


@dataclass(frozen=True)
class Program:
    """What runs: the cut of the batch, the model, and what to do when the replica changes.

    `enter_replica(r)` makes the tensors that differ between replicas (running statistics) those of r.
    """

    plan: StepPlan
    forward: Forward
    randomness: KeyedRandomness
    enter_replica: Callable[[int], None]

    def micro_batch(
        self, inputs: Sequence[torch.Tensor], which: MicroBatch
    ) -> Tuple[Optional[torch.Tensor], List[torch.Tensor]]:
        """Run the model on one micro batch with that micro batch's own random stream."""
        self.randomness.seed_micro_batch(which.replica, which.step)
        return self.forward([self.plan.micro_input(tensor, which) for tensor in inputs])


def run_training(
    program: Program,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    update: Callable[[Gradients], None],
    collector: OutputCollector,
    mean: bool,
    processes: Processes,
) -> List[torch.Tensor]:
    """Make `device_iterations` weight updates and return the collected outputs.

    `weights` are the leaves that train; they hold no gradient before or after. `update` takes the
    reduced gradients, None for a weight that the loss doesn't reach. `mean` divides the summed
    gradients by the micro batches of an update.
    """
    plan = program.plan
    with host_generator_kept(), torch.enable_grad():
        for iteration in range(plan.device_iterations):
            for replica in range(plan.replicas):
                program.enter_replica(replica)
                for step in range(plan.gradient_accumulation):
                    which = MicroBatch(iteration, step, replica)
                    loss, outputs = program.micro_batch(inputs, which)
                    collector.add(which, outputs)
                    if loss is not None and loss.requires_grad:
                        # A loss that isn't reduced is seeded with ones: its sum is the loss.
                        loss.backward(None if loss.dim() == 0 else torch.ones_like(loss))
                    del loss, outputs
            divisor = plan.micro_batches_per_update if mean else 1
            with torch.no_grad():
                update(reduce_gradients(weights, divisor, processes))
            program.randomness.iterations_done += 1
        program.enter_replica(0)
    return collector.result()


def run_inference(
    program: Program, inputs: Sequence[torch.Tensor], collector: OutputCollector
) -> List[torch.Tensor]:
    """Run every micro batch forward and return the collected outputs."""
    plan = program.plan
    with host_generator_kept(), torch.no_grad():
        for iteration in range(plan.device_iterations):
            for replica in range(plan.replicas):
                program.enter_replica(replica)
                for step in range(plan.gradient_accumulation):
                    which = MicroBatch(iteration, step, replica)
                    collector.add(which, program.micro_batch(inputs, which)[1])
            program.randomness.iterations_done += 1
        program.enter_replica(0)
    return collector.result()


def reduce_gradients(weights: Sequence[torch.Tensor], divisor: int, processes: Processes) -> Gradients:
    """Take the accumulated gradients off `weights`, summed over processes, divided by `divisor`.

    Backward passes have already summed them over accumulation steps and this process's replicas.
    """
    gradients: Gradients = []
    for weight in weights:
        gradient = weight.grad
        weight.grad = None
        gradients.append(gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient)
    gradients = processes.sum_gradients(weights, gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    if divisor > 1 and present:
        torch._foreach_div_(present, float(divisor))
    return gradients
