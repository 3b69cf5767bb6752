"""Compiling ahead: executables for IPUs that aren't here, or not yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, List

import data
import ipu
from ipu.options import DevicePlan, inference_options, training_options

from .fit import TrainedModel, place
from .optimizers import OptimizerPlan, build_optimizer

if TYPE_CHECKING:
    from config import Config


def compile_pretraining(
    config: Config, name: str, model: TrainedModel, device: ipu.DeviceChoice, instances: ipu.Instances
) -> List[Path]:
    """Compiles the training and the evaluation of `model`, without data; returns the executables' files.

    They are in `config.executable_cache`, where PopART also leaves what a run with the same configuration and
    the same cache takes in place of compiling.
    """
    assert config.executable_cache is not None, "the configuration's rules ask for one"
    cache, plan = Path(config.executable_cache), config.section(DevicePlan)
    place(model, config, config.layers_per_ipu, device=device)
    optimizer = build_optimizer(model, config.section(OptimizerPlan))
    options = training_options(plan, instances)
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    files = [cache / f"{name}-{kind}.poptorch" for kind in ("training", "evaluation")]
    accumulation = config.gradient_accumulation
    _export(executor, files[0], config, config.micro_batch_size * accumulation * _calls(options))
    executor.destroy()
    options = inference_options(plan, instances)
    model.eval()
    executor = ipu.poptorch.inferenceModel(model, options)
    _export(executor, files[1], config, config.micro_batch_size * _calls(options))
    return files


def _calls(options: Any) -> int:
    return int(options.device_iterations * options.replication_factor)


def _export(executor: Any, file: Path, config: Config, rows: int) -> None:
    print(f"compiling {file.stem}", flush=True)
    batch = data.blank_batch(rows, config.sequence_length, config.mask_tokens)
    executor.compileAndExport(str(file), *batch, export_model=False)
