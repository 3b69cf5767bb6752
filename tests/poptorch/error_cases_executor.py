"""Calls that raise the documented errors of wrapping, executors and files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.poptorch.error_models import ONES, Case, Shapes, compiled, fresh, options
from tests.poptorch.executor_models import Classifier, batch, poptorch


def training(model: Any = None, optimizer: Any = None, **settings: Any) -> Any:
    model = Classifier() if model is None else model
    if callable(optimizer):
        optimizer = optimizer(model.parameters())
    return poptorch.trainingModel(model, options(**settings), optimizer)


def run(executor: Any) -> Any:
    executor(*batch(4))
    return executor


def offline() -> Any:
    executor = poptorch.inferenceModel(Shapes(), poptorch.Options().useOfflineIpuTarget())
    executor.compile(ONES)
    return executor


def with_special_buffer() -> Any:
    class Special(torch.Tensor):
        pass

    model = Classifier()
    model.register_buffer("special", torch.ones(2).as_subclass(Special))
    return model


def of_inference_mode() -> Any:
    with torch.inference_mode():
        return Classifier()


def saved(folder: Path, *, export_model: bool = True) -> str:
    path = str(folder / "model.poptorch")
    compiled().save(path, export_model)
    return path


def of_another_version(folder: Path) -> str:
    path = saved(folder)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = next(name for name in parts if name.endswith(".json"))
    content = json.loads(parts[header])
    parts[header] = json.dumps({**content, "version": "1.0"}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def no_poptorch_file(folder: Path) -> str:
    (folder / "text").write_text("not a file of PopTorch")
    return str(folder / "text")


def optimizer_of(kind: str, **arguments: Any) -> Callable[..., Any]:
    return lambda weights: getattr(poptorch.optim, kind)(weights, **{"lr": 0.1, **arguments})


def amsgrad(weights: Any) -> Any:
    return torch.optim.Adam(weights, lr=0.1, amsgrad=True)


def set_to(optimizer: Callable[..., Any], first: Callable[..., Any]) -> None:
    executor = run(training(optimizer=first))
    executor.setOptimizer(optimizer(executor.model.parameters()))


def accumulating(count: int) -> Any:
    made = poptorch.Options()
    made.Training.gradientAccumulation(count)
    return made


NOT_COMPILED = r"Model has not been compiled or has been destroyed\."

CASES: dict[str, list[Case]] = {
    "inferenceModel": [
        (
            lambda: poptorch.inferenceModel(Classifier(), {"deviceIterations": 2}),
            r"Invalid type: 'options' is of type .* \(Expected poptorch.Options\)",
        ),
        (
            lambda: poptorch.inferenceModel(Classifier(), accumulating(2)),
            (
                r"You must set poptorch.Options\(\).Training.gradientAccumulation to 1 or leave it as its "
                r"default value "
                r"\(1\) when running a poptorch.inferenceModel\(\)\. Use "
                r"poptorch.Options\(\).deviceIterations"
            ),
        ),
        (lambda: poptorch.inferenceModel(with_special_buffer()), "All buffers must be an instance"),
        (lambda: poptorch.inferenceModel(abs), "A torch.nn.Module is expected"),
    ],
    "trainingModel": [
        (
            lambda: poptorch.trainingModel(Classifier(), "options"),
            r"Invalid type: 'options' is of type .* \(Expected poptorch.Options\)",
        ),
        (
            lambda: poptorch.trainingModel(with_special_buffer()),
            r"All buffers must be an instance of torch.Tensor \(Got ",
        ),
        (lambda: poptorch.trainingModel(of_inference_mode()), "inference_mode can't be trained"),
        (
            lambda: poptorch.trainingModel(training().model),
            (
                r"Model has already been wrapped in 'poptorch.trainingModel'\. Call model.destroy\(\) on "
                r"the model to "
                r"unwrap before wrapping again\."
            ),
        ),
        (lambda: poptorch.trainingModel(abs), "A torch.nn.Module is expected"),
        (lambda: training(optimizer=torch.optim.Adagrad), "Unsupported optimizer type. Types supported"),
        (lambda: training(optimizer=amsgrad), r"Only non-amsgrad Adam/AdamW optimizers are supported\."),
    ],
    "PoplarExecutor.__call__": [
        (lambda: compiled()(ONES[:2]), r"Shape mismatch for x: expected torch\.Size\(\[4, 4"),
        (
            lambda: compiled()(ONES.double()),
            r"Data type mismatch for x: expected torch.float32 but got torch.float64\.",
        ),
        (lambda: compiled()(3), r"Type mismatch for x: expected Tensor but got int\."),
        (lambda: compiled()(), "Mandatory parameter x missing"),
        (lambda: compiled()(ONES, ONES), r"Too many arguments provided: expected \['x'\] \(1"),
        (lambda: compiled()(y=ONES), r"y is not a valid parameter\.Allowed values are \['x'\]"),
        (lambda: compiled()(ONES, x=ONES), "Parameter x was passed more than once"),
        (
            lambda: offline()(ONES),
            (
                r"Trying to run a model on an offline device \(ConnectionType\.Never\): use "
                r"model\.compile\(inputs\) "
                r"instead of model\(inputs\)"
            ),
        ),
        (lambda: fresh()(torch.ones(0, 4)), r"Zero-sized tensors are unsupported \(Got shape \[0, 4\]\)"),
    ],
    "PoplarExecutor.compile": [
        (
            lambda: fresh(deviceIterations=3).compile(ONES),
            (
                r"Invalid batch dimension: In the input torch\.Size\(\[4, 4\]\), the batch dimension \(4\) "
                r"must be a "
                r"multiple of Options\.deviceIterations\(3\) \* \(Options\.replicationFactor\(1\) / "
                r"Options\.inputReplicaGrouping\.input_group_size\(1\)\) \* "
                r"Options\.Training\.gradientAccumulation\(1\) "
                r"= 3 because "
            ),
        ),
        (
            lambda: fresh(replicationFactor=3).compile(ONES[:3]),
            (
                r"The model specifies the use of 3 IPUs, however PopTorch must reserve a minimum of 4 in "
                r"order to allow "
                r"the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs per "
                r"process\. Please "
                r"reconfigure your model to use a different number of IPUs or set "
                r"poptorch\.Options\(\)\.autoRoundNumIPUs\(True\)\."
            ),
        ),
        (
            lambda: fresh(replicationFactor=65).compile(torch.ones(65, 4)),
            r"Too many IPUs requested \(65\)\. Experiments that need more than 64 IPUs require "
            r"distributed execution\.",
        ),
        (lambda: poptorch.trainingModel(Shapes()).compile(ONES), r"Couldn't find a loss in graph!"),
    ],
    "PoplarExecutor.copyWeightsToHost": [
        (lambda: fresh().copyWeightsToHost(), NOT_COMPILED),
    ],
    "PoplarExecutor.copyWeightsToDevice": [
        (lambda: fresh().copyWeightsToDevice(), NOT_COMPILED),
    ],
    "PoplarExecutor.copyNamedBuffersToDevice": [
        (
            lambda: compiled().copyNamedBuffersToDevice(),
            "No named buffers marked as updatable via updatableNamedBuffers option",
        ),
        (
            lambda: poptorch.inferenceModel(
                torch.nn.BatchNorm1d(4), options(updatableNamedBuffers=["running_mean"])
            ).copyNamedBuffersToDevice(),
            NOT_COMPILED,
        ),
    ],
    "PoplarExecutor.detachFromDevice": [
        (lambda: fresh().detachFromDevice(), NOT_COMPILED),
        (lambda: offline().detachFromDevice(), "Device is not attached"),
    ],
    "PoplarExecutor.attachToDevice": [
        (lambda: fresh().attachToDevice(), NOT_COMPILED),
        (lambda: compiled().attachToDevice(), "Device is already attached"),
        (lambda: offline().attachToDevice(), "offline device"),
    ],
    "PoplarExecutor.compilationTime": [
        (lambda: fresh().compilationTime(), r"Please compile the model before obtaining compilation time\."),
        (
            lambda: compiled(showCompilationProgressBar=False).compilationTime(),
            r"Please set showCompilationProgressBar option to obtain compilation time\.",
        ),
    ],
    "PoplarExecutor.cycleCount": [
        (
            lambda: compiled().cycleCount(),
            r"Cycle count logging is disabled\. Please set option logCycleCount to True to enable\.",
        ),
        (
            lambda: compiled(logCycleCount=True).cycleCount(),
            r"Please run the model at least once before obtaining cycle count\.",
        ),
    ],
    "PoplarExecutor.getTensorNames": [
        (lambda: fresh().getTensorNames(), "compiled"),
    ],
    "PoplarExecutor.getAnchoredTensor": [
        (lambda: compiled().getAnchoredTensor("g"), r"No tensor with name g found\."),
    ],
    "PoplarExecutor.setOptimizer": [
        (lambda: compiled().setOptimizer(None), "only for training models"),
        (
            lambda: set_to(torch.optim.Adagrad, torch.optim.Adam),
            "Unsupported optimizer type. Types supported",
        ),
        (lambda: set_to(amsgrad, torch.optim.Adam), "Only non-amsgrad"),
        (
            lambda: set_to(
                optimizer_of("Adam", accum_type=torch.float16), optimizer_of("Adam", accum_type=torch.float32)
            ),
            (
                r"Invalid optimizer: the new optimizer would require changing options\.Training\."
                r"meanAccumulationAndReplicationReductionStrategy to "
                r"poptorch\.MeanReductionStrategy\.Running but the "
                r"executable is already compiled\."
            ),
        ),
        (
            lambda: set_to(optimizer_of("SGD", momentum=0.5), optimizer_of("Adam")),
            "Can't replace the compiled optimizer",
        ),
    ],
    "PoplarExecutor.save": [
        (lambda folder: fresh().save(str(folder)), NOT_COMPILED),
    ],
    "PoplarExecutor.compileAndExport": [
        (lambda folder: fresh().compileAndExport(str(folder), y=ONES), "y is not a valid parameter"),
        (lambda folder: fresh().compileAndExport(str(folder)), "Mandatory parameter x missing"),
    ],
    "PoplarExecutor.loadExecutable": [
        (lambda folder: compiled().loadExecutable(saved(folder)), "compiled already"),
        (
            lambda folder: training().loadExecutable(saved(folder)),
            "an executable for inference, this model is for training",
        ),
        (
            lambda folder: poptorch.inferenceModel(Classifier()).loadExecutable(saved(folder)),
            "compiled for other weights",
        ),
        (
            lambda folder: fresh().loadExecutable(of_another_version(folder)),
            "PopTorch version mismatch: File was created with version: 1.0",
        ),
    ],
    "load": [
        (
            lambda folder: poptorch.load(saved(folder, export_model=False)),
            r"is a valid PopTorch file but was created with 'export_model=False' which means",
        ),
        (lambda folder: poptorch.load(of_another_version(folder)), "PopTorch version mismatch"),
        (lambda folder: poptorch.load(no_poptorch_file(folder)), "is not a valid PopTorch file"),
    ],
    "importPoptorchMetadataFromFile": [
        (
            lambda folder: poptorch.importPoptorchMetadataFromFile(no_poptorch_file(folder)),
            "is not a valid PopTorch file",
        ),
    ],
}
