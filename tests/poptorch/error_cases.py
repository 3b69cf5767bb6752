"""Calls that raise the documented errors of operations, annotations, data, strategies and utilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.poptorch.error_models import ONES, Case, on_device
from tests.poptorch.executor_models import poptorch


class Rows(torch.utils.data.Dataset):
    def __init__(self, element: Any = None) -> None:
        self.element = torch.ones(2) if element is None else element

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if isinstance(self.element, Exception):
            raise self.element
        return self.element


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([torch.ones(2)])


def two_processes() -> Any:
    made = poptorch.Options()
    made.Distributed.configureProcessId(0, 2)
    return made


def in_blocks(strategy: Any, *blocks: str | tuple[str, int]) -> Any:
    def function(x):
        for block in blocks:
            name, ipu = block if isinstance(block, tuple) else (block, None)
            with poptorch.Block(name, ipu_id=ipu):
                x = x + 1
        return x

    class Model(torch.nn.Module):
        def forward(self, x):
            return function(x)

    made = poptorch.Options().setExecutionStrategy(strategy).deviceIterations(4)
    return poptorch.inferenceModel(Model(), made)(ONES)


def terminated() -> Any:
    accessor = poptorch.AsynchronousDataAccessor(Rows())
    accessor.terminate()
    return next(iter(accessor))


class Convolving(torch.nn.Module):
    """Calls a function of (convolution, input) within a MultiConv with these settings."""

    def __init__(self, within: Callable[..., Any], settings: dict[str, Any]) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv1d(4, 4, 1)
        self.within, self.settings = within, settings

    def forward(self, x):
        convolutions = poptorch.MultiConv()
        for name, value in self.settings.items():
            getattr(convolutions, name)(value)
        with convolutions:
            return self.within(self.convolution, x)


def multi_conv(within: Callable[..., Any], **settings: Any) -> Any:
    return poptorch.inferenceModel(Convolving(within, settings))(ONES[None])


def nested(convolution: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    with poptorch.MultiConv():
        return convolution(x)


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values)


CASES: dict[str, list[Case]] = {
    "AsynchronousDataAccessor": [
        (
            lambda: poptorch.AsynchronousDataAccessor(
                poptorch.DataLoader(poptorch.Options(), Rows(), mode=poptorch.DataLoaderMode.Async)
            ),
            r"The DataLoader already uses an AsynchronousDataAccessor internally\. ",
        ),
        (
            lambda: poptorch.AsynchronousDataAccessor(Rows(), rebatched_size=1),
            "rebatched_size must be None or greater than 1",
        ),
        (
            lambda: poptorch.AsynchronousDataAccessor(Rows(), buffer_size=0),
            "buffer_size must be at least 1: it is 0",
        ),
        (
            lambda: poptorch.AsynchronousDataAccessor(Rows(LookupError("broken"))),
            r"AsynchronousDataAccessor worker thread failed to start \(Check above for details\)",
        ),
    ],
    "AsynchronousDataAccessor.terminate": [
        (terminated, "has been terminated"),
    ],
    "DataLoader": [
        (
            lambda: poptorch.DataLoader(poptorch.Options(), Rows(), batch_size=2, batch_sampler=[[0]]),
            r"`batch_sampler` option is mutually exclusive with batch_size, shuffle\.",
        ),
        (
            lambda: poptorch.DataLoader(poptorch.Options(), Rows(), shuffle=True, batch_sampler=[[0]]),
            r"`batch_sampler` option is mutually exclusive with batch_size, shuffle\.",
        ),
        (
            lambda: poptorch.DataLoader(two_processes(), Rows(), batch_sampler=[[0]]),
            r"mutually exclusive with auto_distributed_partitioning=True\.",
        ),
        (
            lambda: poptorch.DataLoader(two_processes(), Stream()),
            "auto_distributed_partitioning=True does not work with IterableDataset",
        ),
        (
            lambda: poptorch.DataLoader(two_processes(), Rows(), shuffle=True),
            r"When using auto_distributed_partitioning you must set poptorch.Options.randomSeed\(\)",
        ),
        (lambda: poptorch.DataLoader("options", Rows()), "Expected poptorch.Options"),
    ],
    "Attribute": [
        (lambda: poptorch.Attribute(__outline="text"), "must be a dictionary"),
        (lambda: poptorch.Attribute(__outline={"layer": 3}), "must be strings"),
    ],
    "BeginBlock": [
        (
            lambda: poptorch.BeginBlock(poptorch.BeginBlock(torch.nn.Linear(1, 1))),
            r"module has already been assigned to a block\.",
        ),
        (lambda: poptorch.BeginBlock(3), "is not an instance of torch.nn.Module or function"),
    ],
    "removeBlocks": [
        (lambda: poptorch.removeBlocks(torch.ones(1)), ""),
    ],
    "NameScope": [
        (lambda: poptorch.NameScope(3), "must be a string"),
    ],
    "identity_loss": [
        (lambda: poptorch.identity_loss(ONES, "product"), "Unsupported reduction type!"),
    ],
    "recomputationCheckpoint": [
        (lambda: poptorch.recomputationCheckpoint(ONES, 3), "All inputs must be tensors"),
        (lambda: poptorch.recomputationCheckpoint([ONES, None]), "must be tensors"),
    ],
    "set_available_memory": [
        (
            lambda: poptorch.set_available_memory(3, 0.5),
            r"You may only set available memory for torch.tensor values\. ",
        ),
    ],
    "set_overlap_for_input": [
        (lambda: poptorch.set_overlap_for_input(ONES, "overlap"), "must be a poptorch.OverlapMode"),
        (
            lambda: on_device(
                lambda x: poptorch.set_overlap_for_input(x, poptorch.OverlapMode.OverlapAccumulationLoop)
            ),
            "",
        ),
    ],
    "set_overlap_for_output": [
        (lambda: poptorch.set_overlap_for_output(ONES, "overlap"), "must be a poptorch.OverlapMode"),
        (
            lambda: on_device(
                lambda x: poptorch.set_overlap_for_output(x, poptorch.OverlapMode.OverlapAccumulationLoop) + 1
            ),
            "",
        ),
    ],
    "ipu_print_tensor": [
        (lambda: poptorch.ipu_print_tensor(3), "ipu print tensor must take a torch.tensor argument"),
        (lambda: poptorch.ipu_print_tensor(ONES, float_format="hex"), "hex"),
    ],
    "getIpuTensorId": [
        (lambda: poptorch.getIpuTensorId(ONES), ""),
        (lambda: on_device(lambda x: poptorch.getIpuTensorId(3)), ""),
    ],
    "serializedMatMul": [
        (
            lambda: poptorch.serializedMatMul(ONES, ONES, "output_channels"),
            "must be a poptorch.MatMulSerializationMode",
        ),
        (
            lambda: poptorch.serializedMatMul(ONES, ONES, poptorch.MatMulSerializationMode.Disabled, 2.0),
            "factor must be an int",
        ),
        (
            lambda: poptorch.serializedMatMul(
                ONES, ONES, poptorch.MatMulSerializationMode.Disabled, 2, "yes"
            ),
            "keep_precision must be a bool",
        ),
    ],
    "for_loop": [
        (
            lambda: poptorch.for_loop(2, lambda x: x, ONES),
            r"poptorch.for_loop expects input tensors \(inputs\) to be a list of tensors\. \(Object is "
            r"not list\)",
        ),
        (lambda: poptorch.for_loop(2, lambda x: x, [3]), "is not a tensor"),
        (
            lambda: on_device(lambda x: poptorch.for_loop(2, lambda y: y[:2], [x])[0]),
            "shapes and types are fixed",
        ),
    ],
    "cond": [
        (lambda: poptorch.cond(ONES[0, 0], abs, ONES, abs, [ONES]), r"then_inps.*\(Object is not list\)"),
        (lambda: poptorch.cond(ONES[0, 0], abs, [ONES], abs, (ONES,)), r"else_inps.*\(Object is not list\)"),
        (
            lambda: on_device(lambda x: poptorch.cond(x.sum() > 0, abs, [x], lambda y: y[:2], [x])[0]),
            "shapes and types are fixed",
        ),
    ],
    "dynamic_slice": [
        (lambda: poptorch.dynamic_slice(ONES, 0, indices(0), 0, 1), ""),
        (lambda: poptorch.dynamic_slice(ONES, 0, indices(0), 8, 1), ""),
        (lambda: poptorch.dynamic_slice(ONES, 0, torch.tensor([0.5]), 2, 1), ""),
    ],
    "dynamic_update": [
        (lambda: poptorch.dynamic_update(ONES, ONES[:2], 0, indices(0), 4), ""),
        (lambda: poptorch.dynamic_update(ONES, ONES[0], 0, indices(0), 1), ""),
    ],
    "custom_op": [
        (
            lambda: on_device(lambda x: poptorch.custom_op([x], "Unknown", "nobody", 1, [x])[0]),
            "written for PopART",
        ),
        (lambda: poptorch.custom_op([ONES], "A", "b", 1, [ONES], {"list": []}), "list"),
        (lambda: poptorch.custom_op([ONES], "A", "b", 1, [ONES], {"mixed": [1, "a"]}), "mixed"),
        (lambda: poptorch.custom_op([ONES], "A", "b", 1, [ONES], {"none": None}), "none"),
    ],
    "fps": [
        (lambda: poptorch.fps(ONES, [0, 2]), "ptr must rise from 0 to the number of points, 4"),
        (lambda: poptorch.fps(ONES, [0, 4], ratio=0), "ratio must be above 0 and at most 1"),
    ],
    "nearest": [
        (lambda: poptorch.nearest(ONES, ONES, batch_x=[0] * 4), "both batch_x and batch_y, or neither"),
        (lambda: poptorch.nearest(ONES, ONES, [0] * 3, [0] * 4), "one entry for each point"),
        (lambda: poptorch.nearest(ONES, ONES, [1] * 4, [0] * 4), "a set that batch_y has no point of"),
    ],
    "ctc_beam_search_decoder": [
        (lambda: poptorch.ctc_beam_search_decoder(torch.zeros(2, 1, 3), indices(2), blank=3), "blank"),
        (
            lambda: poptorch.ctc_beam_search_decoder(torch.zeros(2, 1, 3), indices(2), top_paths=0),
            "top_paths",
        ),
    ],
    "MultiConv": [
        (lambda: multi_conv(lambda conv, x: x), "has no convolutions"),
        (lambda: multi_conv(lambda conv, x: conv(conv(x))), "result"),
        (lambda: multi_conv(nested), r"Nested poptorch\.MultiConv operations are not supported\."),
        (
            lambda: multi_conv(lambda conv, x: conv(x), availableMemoryProportions=[0.1, 0.2]),
            "2 values for 1 convolutions",
        ),
    ],
    "MultiConv.availableMemoryProportions": [
        (
            lambda: poptorch.MultiConv().availableMemoryProportions("all"),
            "Invalid value for availableMemoryProportions",
        ),
    ],
    "MultiConv.partialsTypes": [
        (
            lambda: poptorch.MultiConv().partialsTypes([torch.half, torch.int32]),
            r"Invalid partials types\. Expecting torch.float or torch.half",
        ),
    ],
    "MultiConv.enableConvDithering": [
        (lambda: poptorch.MultiConv().enableConvDithering(1), "Invalid value"),
    ],
    "MultiConv.planType": [
        (lambda: poptorch.MultiConv().planType("parallel"), "Invalid value"),
    ],
    "MultiConv.perConvReservedTiles": [
        (lambda: poptorch.MultiConv().perConvReservedTiles(1.5), "Invalid value"),
    ],
    "MultiConv.cycleBackOff": [
        (lambda: poptorch.MultiConv().cycleBackOff(1), "Invalid value"),
    ],
    "Stage": [
        (lambda: poptorch.Stage("a", 3), "Block IDs are supposed to be strings but got"),
    ],
    "Stage.ipu": [
        (lambda: poptorch.Stage("a").ipu("0"), "must be an int"),
    ],
    "Phase": [
        (lambda: poptorch.Phase(3), "Block IDs are supposed to be strings but got"),
    ],
    "Phase.ipus": [
        (lambda: poptorch.Phase(["a"], ["b"]).ipus(0), "phase's 2 stages but got 1"),
    ],
    "ParallelPhasedExecution": [
        (
            lambda: in_blocks(poptorch.ParallelPhasedExecution("a"), ("a", 1)),
            "even phases run on even IPUs and odd phases on odd IPUs",
        ),
    ],
    "ParallelPhasedExecution.sendTensorsOffChipAfterFwd": [
        (lambda: poptorch.ParallelPhasedExecution("a").sendTensorsOffChipAfterFwd(1), "must be a bool"),
    ],
    "SerialPhasedExecution.setTensorsLiveness": [
        (lambda: poptorch.SerialPhasedExecution("a").setTensorsLiveness(1), "must be a poptorch.Liveness"),
    ],
    "accessAttributes": [
        (lambda: poptorch.accessAttributes(3), "expects a JSON string"),
        (lambda: poptorch.accessAttributes("{"), "Invalid attribute identifier"),
        (lambda: poptorch.accessAttributes("[1]"), "not a JSON object"),
    ],
    "flattenTensorStructure": [
        (lambda: poptorch.flattenTensorStructure({"a": ONES}, {"b": ONES}), "Expected the keys"),
        (lambda: poptorch.flattenTensorStructure([ONES], [ONES, ONES]), "Expected 2 elements"),
    ],
    "reconstructTensorStructure": [
        (lambda: poptorch.reconstructTensorStructure([ONES, ONES], [ONES]), "more leaves"),
    ],
    "registerCustomArgParser": [
        (
            lambda: poptorch.registerCustomArgParser(dict, abs),
            "arg_parser must inherit from ICustomArgParser",
        ),
    ],
    "ICustomArgParser.yieldTensors": [
        (lambda: poptorch.ICustomArgParser().yieldTensors(ONES), ""),
    ],
    "ICustomArgParser.reconstruct": [
        (lambda: poptorch.ICustomArgParser().reconstruct(ONES, iter([])), ""),
    ],
    "registerPreCompileHook": [
        (lambda: poptorch.registerPreCompileHook(3), "Pre-compile hook must be callable"),
    ],
    "registerPostCompileHook": [
        (lambda: poptorch.registerPostCompileHook(3), "Post-compile hook must be callable"),
    ],
    "setLogLevel": [
        (lambda: poptorch.setLogLevel(5), "Invalid log level integer"),
        (
            lambda: poptorch.setLogLevel("LOUD"),
            r"Unknown log level: LOUD\. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN",
        ),
    ],
}


def _of_strategy(kind: Any) -> dict[str, list[Case]]:
    """Cases that all strategies share."""
    return {
        kind.__name__: [
            (lambda: kind("a", ["b", "a"]), "a associated with more than one stage"),
            (lambda: kind(poptorch.Stage(3)), "supposed to be strings"),
            (lambda: in_blocks(kind("a"), "b"), r"Unknown Block 'b' list of expected Blocks: \['a'\]"),
        ],
        f"{kind.__name__}.stage": [(lambda: kind("a").stage("b"), "Unknown block b")],
    }


def _pipelined(kind: Any) -> dict[str, list[Case]]:
    cases = _of_strategy(kind)
    text = "poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block b"
    cases[kind.__name__].append((lambda: in_blocks(kind(), "b"), text))
    return cases


def _phased(kind: Any) -> dict[str, list[Case]]:
    cases = _of_strategy(kind)
    text = "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
    cases[kind.__name__].append((kind, text))
    return {
        **cases,
        f"{kind.__name__}.phase": [
            (lambda: kind("a").phase(1), "Unknown phase 1"),
            (lambda: kind("a").phase("a"), "must be an int"),
        ],
        f"{kind.__name__}.useSeparateBackwardPhase": [
            (lambda: kind("a").useSeparateBackwardPhase(1), "must be a bool")
        ],
    }


for strategy in (poptorch.PipelinedExecution, poptorch.ShardedExecution):
    CASES.update(_pipelined(strategy))
for strategy in (poptorch.ParallelPhasedExecution, poptorch.SerialPhasedExecution):
    for name, cases in _phased(strategy).items():
        CASES.setdefault(name, []).extend(cases)
