"""From a model to a program: placement, and compilation before the first call or ahead of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Sequence

import torch

import data
import ipu
import model as models
from config import Config
from ipu.options import DevicePlan, inference_options, training_options
from ipu.placement import device_ipus

from .errors import TrainingError
from .optimizer import OptimizerPlan, build_optimizer

# Lines of PopTorch's error that are shown; it may append a compiler's whole log.
_SHOWN_LINES = 6


class CompilationError(TrainingError):
    """PopTorch can't compile a program. `lacks_memory`: the program is too large for its IPUs."""

    def __init__(self, text: str, *, lacks_memory: bool) -> None:
        super().__init__(text)
        self.lacks_memory = lacks_memory


def computes_as_ipu(config: Config, device: ipu.DeviceChoice) -> bool:
    """True on an IPU, on Poplar's IPU model, and on the simulator with an IPU's arithmetic."""
    return device.name != "simulator" or config.simulator_precision in ("ipu-float16", "ipu-float16-fast")


def place(model: models.TaskModel, config: Config, layers_per_ipu: Any, *, device: ipu.DeviceChoice) -> None:
    """Converts a model to the device's precision and annotates its placement."""
    if computes_as_ipu(config, device) and config.precision == "float16":
        model.half()
    models.annotate(
        model,
        layers_per_ipu,
        embedding_serialization_factor=config.embedding_serialization_factor,
        recompute_checkpoint_every_layer=config.recompute_checkpoint_every_layer,
        one_hot_masked_positions=config.one_hot_masked_positions,
        on_device=device.name != "simulator",
    )


def compile_program(executor: Any, batch: Sequence[torch.Tensor], what: str) -> None:
    """Compiles the executor's program, the `what` one ("training", "evaluation"), for such batches.

    Raises CompilationError if PopTorch can't. On the simulator, that is an error of this program: it keeps
    its traceback.
    """
    try:
        executor.compile(*batch)
    except ipu.poptorch.Error as error:
        if ipu.is_simulator():
            raise
        raise _refused(error, what) from error


def _refused(error: Exception, what: str) -> CompilationError:
    lines = str(error).strip().splitlines()
    shown = "\n  ".join(line[:500] for line in lines[:_SHOWN_LINES])
    more = f"\n  ... and {len(lines) - _SHOWN_LINES} lines more" if len(lines) > _SHOWN_LINES else ""
    lacks_memory = "out of memory" in str(error).lower() or "memory_allocation" in str(error)
    return CompilationError(
        f"PopTorch can't compile the {what} program:\n  {shown}{more}", lacks_memory=lacks_memory
    )


def compile_pretraining(
    config: Config, name: str, model: models.TaskModel, device: ipu.DeviceChoice, instances: ipu.Instances
) -> List[Path]:
    """Compiles training and evaluation of `model`, without data and without IPUs; returns the executables.

    They are in `config.executable_cache`, where PopART also caches the executables that a run with the same
    configuration and the same cache loads instead of compiling. Raises TrainingError under PopRun, whose
    programs have other hashes, and CompilationError.
    """
    assert config.executable_cache is not None, "the configuration's rules require one"
    if instances.launched:
        raise TrainingError(
            "--compile-only runs without poprun and torchrun: PopART can't compile offline for the device "
            "that PopRun assigned, and a program under PopRun has another hash than one without. Under "
            "PopRun use --executable-cache alone: the first run fills it for the next ones"
        )
    used = (1 + max(device_ipus(config.layers_per_ipu))) * config.replication_factor
    if used & (used - 1) and device.name != "simulator":
        raise TrainingError(
            f"--compile-only: a run of this program, which has {used} IPUs, reserves the next power of two "
            "and wouldn't find the executable in the cache: use a replication_factor that is a power of two, "
            "or let the run compile"
        )
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
    depth = config.pack_depth if config.packed_data else None
    batch = data.blank_batch(rows, config.sequence_length, config.row_mask_tokens, depth)
    try:
        executor.compileAndExport(str(file), *batch, export_model=False)
    except ipu.poptorch.Error as error:
        if ipu.is_simulator():
            raise
        raise _refused(error, file.stem) from error
