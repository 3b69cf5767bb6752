"""trainingModel, inferenceModel and load, which wrap a PyTorch model in an executor."""

from __future__ import annotations

from typing import Any, Callable

import torch

from . import enums, optim
from ._run import files, host_weights
from ._run.host_weights import is_of_inference_mode
from .executor import PoplarExecutor
from .options import Options, PipelinedExecution
from .poptorch_core import createPoptorchError


def trainingModel(
    model: torch.nn.Module | PoplarExecutor,
    options: Options | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> PoplarExecutor:
    """Wraps a model for training; its forward must have one final loss.

    The model is wrapped in place: any access to its weights first downloads newer ones from the device.
    Freezes the options. The default optimizer is poptorch.optim.SGD(lr=0.01).

    Raises poptorch.Error for options of another type, for a buffer of another class than torch.Tensor and for
    a model created in torch.inference_mode, RuntimeError for a model that is wrapped already, AssertionError
    for anything but a module and for an unsupported optimizer, ValueError for amsgrad.
    """
    model = _user_model(model)
    host_weights.check_not_wrapped(model)
    if is_of_inference_mode(model):
        raise createPoptorchError(
            "A model that was created in torch.inference_mode can't be trained: create it outside."
        )
    executor_options = _resolved(options, enums.OutputMode.Final)
    if optimizer is None:
        optimizer = optim.SGD(model.parameters(), lr=0.01)
    return PoplarExecutor(
        model=host_weights.shallow_copy(model),
        options=executor_options,
        training=True,
        poptorch_version=files.VERSION,
        optimizer=optimizer,
        user_model=model,
    )


def inferenceModel(model: torch.nn.Module | PoplarExecutor, options: Options | None = None) -> PoplarExecutor:
    """Wraps a shallow copy of a model for inference; the model isn't changed. Freezes the options.

    The copy shares weights and submodules with the model; `.model`, `.eval()` and plain attributes are the
    copy's. If the weights are also being trained, each call first uploads the latest ones.

    Raises poptorch.Error for options of another type, for a buffer of another class than torch.Tensor and for
    gradient accumulation, AssertionError for anything but a module.
    """
    model = _user_model(model)
    executor_options = _resolved(options, enums.OutputMode.All)
    if executor_options.Training.gradient_accumulation != 1:
        message = (
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default "
            "value (1) when running a poptorch.inferenceModel()."
        )
        if isinstance(executor_options._execution_strategy, PipelinedExecution):
            message += (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run "
                "for pipelined execution instead."
            )
        raise createPoptorchError(message)
    return PoplarExecutor(
        model=host_weights.shallow_copy(model),
        options=executor_options,
        training=False,
        poptorch_version=files.VERSION,
    )


def _user_model(model: object) -> torch.nn.Module:
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    assert isinstance(model, torch.nn.Module), f"A torch.nn.Module is expected, not {type(model)}"
    return model


def _resolved(options: Options | None, default_mode: enums.OutputMode) -> Options:
    """Freezes the user's options and returns the executor's copy, with the output mode resolved."""
    if options is None:
        options = Options()
    if not isinstance(options, Options):
        raise createPoptorchError(
            f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)"
        )
    options._freeze()
    clone = options.clone()
    if clone.defaultOutputMode():
        clone.outputMode(default_mode)
    return clone


def load(filename: str, edit_opts_fn: Callable[[Options], None] | None = None) -> PoplarExecutor:
    """An executor from a file that save or compileAndExport wrote, ready to run without recompilation.

    `edit_opts_fn` may change the saved options before the model is wrapped. A file compiled for an offline
    target runs on the present one. The file is a pickle: load only files that you trust.

    Raises AssertionError for a file without a model or of another version, poptorch.Error for a file that
    isn't the simulator's.
    """
    assert files.read_header(filename)["has_model"], (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which means it has "
        "no model to wrap: create the model from its class, wrap it with poptorch.inferenceModel or "
        "poptorch.trainingModel, and call loadExecutable on the result"
    )
    contents = files.read(filename, files.VERSION)
    assert contents.model is not None
    options = contents.options.clone()
    options.deleteIfExists("ipu_version")
    if options.connection_type == enums.ConnectionType.Never.value:
        options.connectionType(enums.ConnectionType.Always)
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    if contents.training:
        executor = trainingModel(contents.model, options, contents.optimizer)
    else:
        executor = inferenceModel(contents.model, options)
    executor.loadExecutable(filename)
    return executor


def importPoptorchMetadataFromFile(*_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """A file's header: {format, version, training, has_model}. poptorch.Error if it isn't the simulator's."""
    return files.read_header(*_args, **_kwargs)
