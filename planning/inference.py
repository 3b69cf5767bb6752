"""The predicted latency and throughput of inference on a target machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence, Tuple

import torch

import ipu
import training
from config import Config
from ipu.options import DevicePlan, inference_options


@dataclass(frozen=True)
class PredictedInference:
    """`latency_s` is a verdict's; `samples_per_s` counts the sequences of all replicas."""

    target: str
    fits: bool
    latency_s: float
    samples_per_s: float
    fullest: float  # of the fullest IPU's memory

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does NOT fit"
        return (
            f"on {self.target} (predicted): {verdict}, the fullest IPU at {self.fullest:.1%}; latency "
            f"{1e3 * self.latency_s:.3g} ms, {self.samples_per_s:,.0f} sequences/s"
        )


def predict(
    build: Callable[[], Any], config: Config, plan: DevicePlan, shapes: Sequence[Tuple[int, ...]]
) -> PredictedInference:
    """The prediction for a model that `build` makes, without memory for its weights.

    `plan` places it; `shapes` are those of a micro batch's int32 inputs. Selects the simulator as this
    process's device; raises ipu.DeviceError if another one is in use.
    """
    device = ipu.select_device("simulator")
    from poptorch import simulator

    with simulator.without_memory():
        model = build()
        if config.precision == "float16":
            model.half()
        training.place(model, config, plan.layers_per_ipu, device=device)
        inputs = tuple(torch.zeros(shape, dtype=torch.int32) for shape in shapes)
        verdict = simulator.verdict_of(
            model.eval(), inputs, inference_options(plan), target=config.target, name="inference"
        )
    fullest = max(memory.peak_bytes / memory.capacity_bytes for memory in verdict.ipus)
    return PredictedInference(config.target, verdict.fits, verdict.latency_s, verdict.samples_per_s, fullest)
