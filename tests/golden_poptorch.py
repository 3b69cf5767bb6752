"""What golden.py asks in a process that has a checkout's poptorch: graphs, signatures and errors, as JSON.

PYTHONPATH=$(python -m ipu.simulator --path) python -P golden_poptorch.py graphs|signatures|errors
"""

from __future__ import annotations

import enum
import inspect
import json
import logging
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import popart
import popdist
import popdist.poptorch
import poptorch
import torch
from torch import nn

Facts = dict[str, Any]
functional = nn.functional


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        logits = self.layer(x)
        return logits if y is None else (logits, functional.cross_entropy(logits, y))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return functional.cross_entropy(self.head(self.layers(x)), y)


class Transformer(nn.Module):
    """Two encoder layers on an IPU each, and the head on the first again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            with poptorch.Block(f"B{number}", ipu_id=number):
                x = poptorch.recomputationCheckpoint(layer(x))
        with poptorch.Block("head", ipu_id=0):
            return functional.cross_entropy(self.head(x).flatten(0, 1), y.flatten())


class Arguments(nn.Module):
    def forward(self, x: Any, others: Any = None, flag: bool = True, *, scale: int = 1) -> Any:
        return x * scale


def options(iterations: int = 1, accumulation: int = 1, replicas: int = 1) -> poptorch.Options:
    made = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    made.Training.gradientAccumulation(accumulation)
    return made


def training(model: nn.Module, made: Any = None, optimizer: Any = None) -> Any:
    return poptorch.trainingModel(
        model, made, optimizer or poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )


def infer(function: Callable[..., Any], made: Any = None) -> Any:
    return poptorch.inferenceModel(Function(function), made)(X)


X = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -6.0]])
BATCH = (torch.linspace(-1, 1, 16).reshape(4, 4), torch.tensor([0, 1, 2, 1]))


# ---- graphs


def graphs() -> Facts:
    """The PopART IR of small models: training, pipelined training, batch normalisation, a loop."""

    def loop(x: torch.Tensor) -> Any:
        (turned,) = poptorch.for_loop(3, lambda y: y * 2 + 1, [x])
        return poptorch.set_available_memory(turned @ turned.T, 0.3)

    pipeline = options(accumulation=5).autoRoundNumIPUs(True)
    adamw = poptorch.optim.AdamW
    images = torch.linspace(0, 1, 4 * 64).reshape(4, 1, 8, 8)
    tokens = torch.linspace(-1, 1, 5 * 3 * 8).reshape(5, 3, 8), torch.arange(15).reshape(5, 3) % 5
    linear, convolutions, transformer = Linear(), Convolutions(), Transformer()
    executors = {
        "linear": (training(linear), BATCH),
        "convolutions": (
            training(convolutions, None, adamw(convolutions.parameters(), lr=0.1)),
            (images, BATCH[1]),
        ),
        "transformer": (training(transformer, pipeline, adamw(transformer.parameters(), lr=0.1)), tokens),
        "loop": (poptorch.inferenceModel(Function(loop)), (X,)),
    }
    facts = {}
    for name, (executor, inputs) in executors.items():
        executor.compile(*inputs)
        facts[name] = json.loads(executor._debugGetPopartIR())
    return facts


# ---- signatures


def described(thing: Any) -> Any:
    """Kind and signature of a public thing; of a class also its members."""
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return {"kind": "enumeration", "members": {member.name: repr(member.value) for member in thing}}
    if isinstance(thing, type):
        members = {
            name: member_described(thing, name)
            for name in dir(thing)
            if not name.startswith("_") and getattr(thing, name) is not getattr(nn.Module, name, None)
        }
        bases = [base.__name__ for base in thing.__mro__[1:-1] if is_public(base)]
        return {"kind": "class", "call": signature(thing), "bases": bases, "members": members}
    if callable(thing):
        return {"kind": "function", "call": signature(thing)}
    return {"kind": type(thing).__name__, "value": repr(thing)[:200]}


def is_public(base: type) -> bool:
    ours = base.__module__.split(".")[0] in ("poptorch", "popdist", "popart", "ipu", "ipu_simulator")
    return not ours or hasattr(poptorch, base.__name__)


def member_described(owner: type, name: str) -> str:
    member = inspect.getattr_static(owner, name)
    kind = type(member).__name__
    called = getattr(owner, name) if isinstance(member, (staticmethod, classmethod)) else member
    return f"{kind} {signature(called)}" if callable(called) else kind


def signature(thing: Any) -> str:
    """Names, kinds and defaults; annotations may name private modules."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError) as error:
        return f"none: {type(error).__name__}"
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    return ", ".join(map(str, bare))


def public(thing: Any) -> list[str]:
    return [
        name
        for name in dir(thing)
        if not name.startswith("_")
        and name != "annotations"
        and not isinstance(getattr(thing, name), types.ModuleType)
    ]


def signatures() -> Facts:
    rooms = {"poptorch": poptorch, "popdist": popdist, "popdist.poptorch": popdist.poptorch, "popart": popart}
    rooms |= {f"poptorch.{name}": getattr(poptorch, name) for name in ("optim", "profiling", "testing")}
    made = poptorch.Options()
    namespaces = ("Training", "Precision", "Jit", "Distributed", "TensorLocations", "_Popart")
    parts = {**rooms, "Options()": made, **{f"Options().{name}": getattr(made, name) for name in namespaces}}
    facts: Facts = {
        name: {attribute: described(getattr(part, attribute)) for attribute in public(part)}
        for name, part in parts.items()
    }
    return {**facts, "Options() printed": repr(made)}


# ---- errors


def error_of(cause: Callable[[], Any]) -> Facts:
    try:
        cause()
    except BaseException as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": "none"}


def argument_errors() -> dict[str, Callable[[], Any]]:
    x, others = torch.ones(4, 3), [torch.ones(4), {"k": torch.ones(4)}]
    compiled = poptorch.inferenceModel(Arguments())
    compiled(x, others, True, scale=2)

    def fresh(*args: Any, **kwargs: Any) -> Any:
        return poptorch.inferenceModel(Arguments())(*args, **kwargs)

    return {
        "shape": lambda: compiled(torch.ones(8, 3), others, True, scale=2),
        "type": lambda: compiled(x.half(), others, True, scale=2),
        "kind": lambda: compiled(3, others, True, scale=2),
        "length": lambda: compiled(x, others[:1], True, scale=2),
        "keys": lambda: compiled(x, [others[0], {"z": x}], True, scale=2),
        "value": lambda: compiled(x, others, False, scale=2),
        "keyword": lambda: compiled(x, others, True, scale=3),
        "too many": lambda: fresh(1, 2, 3, 4),
        "no parameter": lambda: fresh(1, z=1),
        "twice": lambda: fresh(1, x=1),
        "missing": lambda: fresh(),
        "zero-sized": lambda: fresh(torch.ones(0, 3)),
        "complex": lambda: fresh(torch.ones(3, dtype=torch.complex64)),
        "sparse": lambda: fresh(torch.ones(3, 3).to_sparse()),
        "meta": lambda: fresh(torch.ones(3, device="meta")),
    }


def trace_errors() -> dict[str, Callable[[], Any]]:
    """What a compiled model can't hold."""
    functions = {
        "item": lambda x: x * x.sum().item(),
        "condition": lambda x: x if x.sum() > 0 else -x,
        "cpu": lambda x: x.cpu(),
        "empty": lambda x: x[:0].sum() + x,
        "nonzero": torch.nonzero,
        "masked_select": lambda x: torch.masked_select(x, x > 0),
        "mask": lambda x: x[x > 0],
        "one_hot": lambda x: functional.one_hot(x[0].abs().long()),
        "fft": torch.fft.fft,
        "allclose": lambda x: x * 2 if torch.allclose(x, x.abs()) else x,
        "svd": torch.linalg.svd,
        "digamma": torch.digamma,
        "multinomial": lambda x: torch.multinomial(x.abs(), 1),
        "loop shapes": lambda x: poptorch.for_loop(2, lambda y: y[:1], [x])[0],
        "loop list": lambda x: poptorch.for_loop(2, lambda y: y, x),
        "branches": lambda x: poptorch.cond(x.sum() > 0, lambda a: a, [x], lambda a: a > 0, [x])[0],
        "custom_op": lambda x: poptorch.custom_op([x], "Cube", "com.acme", 1, example_outputs=[x])[0],
        "memory": lambda x: poptorch.set_available_memory(3, 0.1),
        "print": lambda x: poptorch.ipu_print_tensor("x"),
    }
    return {name: lambda function=function: infer(function) for name, function in functions.items()}


def option_errors() -> dict[str, Callable[[], Any]]:
    made, frozen = poptorch.Options(), poptorch.Options()
    poptorch.DataLoader(frozen, torch.zeros(4, 1))
    kinds = poptorch.CommGroupType
    unknown = options()
    unknown._Popart.set("noSuchOption", True)
    offline = options().useIpuModel(True)
    offline.useOfflineIpuTarget()
    alone = options()
    alone.Distributed.configureProcessId(0, 2)
    return {
        "float": lambda: made.deviceIterations(2.0),
        "no such option": lambda: setattr(made, "no_such", 1),
        "no such attribute": lambda: made.no_such,
        "frozen": lambda: frozen.deviceIterations(2),
        "output mode": lambda: made.outputMode(poptorch.OutputMode.EveryN, 0),
        "grouping": lambda: poptorch.Options().inputReplicaGrouping(2, kinds.All),
        "reduction": lambda: made.Training.accumulationAndReplicationReductionType(
            poptorch.ReductionType.NoReduction
        ),
        "partials": lambda: made.Precision.setPartialsType(torch.int32),
        "memory of": lambda: made.setAvailableMemoryProportion({"0": 0.3}),
        "tiles": lambda: made.TensorLocations.numIOTiles(33),
        "trace": lambda: made.Jit.traceModel(True),
        "to dictionary": lambda: made.toDict(),
        "log level": lambda: poptorch.setLogLevel("LOUD"),
        "no options": lambda: poptorch.inferenceModel(Linear(), 3),
        "accumulating inference": lambda: poptorch.inferenceModel(Linear(), options(accumulation=2)),
        "iterations": lambda: training(Linear(), options(iterations=0))(*BATCH),
        "unknown to PopART": lambda: training(Linear(), unknown).compile(*BATCH),
        "offline model": lambda: training(Linear(), offline).compile(*BATCH),
        "alone": lambda: training(Linear(), alone).compile(*BATCH),
        "loader": lambda: poptorch.DataLoader(options(), [1], batch_sampler=[[0]], shuffle=True),
    }


def executor_errors() -> dict[str, Callable[[], Any]]:
    wrapped, optim = Linear(), poptorch.optim
    executor = training(wrapped)
    executor(*BATCH)
    weights = list(Linear().parameters())
    block = nn.Linear(2, 2)
    poptorch.BeginBlock(block, "A")
    many = options().setExecutionStrategy(poptorch.ShardedExecution())
    shallow = torch.ones(2, 3, 8), torch.ones(2, 3).long()

    def on_ipu(number: int) -> Callable[[torch.Tensor], Any]:
        def function(x: torch.Tensor) -> Any:
            with poptorch.Block("only", ipu_id=number):
                return x * 2

        return function

    return {
        "batch": lambda: training(Linear(), options(2, 3, 2))(torch.ones(13, 4), torch.ones(13).long()),
        "label": lambda: executor(BATCH[0], torch.full_like(BATCH[1], 1000)),
        "before compiling": lambda: training(Linear()).copyWeightsToHost(),
        "compilation time": lambda: training(Linear()).compilationTime(),
        "cycles": lambda: training(Linear()).cycleCount(),
        "anchor": lambda: executor.getAnchoredTensor("x"),
        "IR": lambda: training(Linear())._debugGetPopartIR(),
        "wrapped": lambda: poptorch.trainingModel(wrapped),
        "another rule": lambda: executor.setOptimizer(optim.AdamW(wrapped.parameters(), lr=0.5)),
        "no constant": lambda: optim.SGD(weights, lr=0.1).variable_attrs.markAsVariable("lrr"),
        "accumulator": lambda: optim.Adam(weights, accum_type=torch.int32),
        "amsgrad": lambda: training(Linear(), None, optim.Adam(Linear().parameters(), amsgrad=True))(*BATCH),
        "optimizer": lambda: training(Linear(), None, torch.optim.Adagrad(Linear().parameters()))(*BATCH),
        "block twice": lambda: poptorch.BeginBlock(block, "B"),
        "no block": lambda: poptorch.BeginBlock(3),
        "stage": lambda: poptorch.Stage(1),
        "two stages": lambda: poptorch.PipelinedExecution("A", ["B", "A"]),
        "outside of blocks": lambda: infer(lambda x: on_ipu(0)(x) + 1),
        "pipeline": lambda: training(Transformer(), options(accumulation=2))(*shallow),
        "three IPUs": lambda: infer(on_ipu(2), made=many.clone()),
        "too many IPUs": lambda: infer(on_ipu(31), made=many.clone()),
        "lazy": lambda: poptorch.inferenceModel(nn.LazyLinear(2))(X),
        "popart": lambda: popart.Builder,
        "popdist": lambda: popdist.execute,
        "loss": lambda: poptorch.identity_loss(X, "most"),
    }


def errors() -> Facts:
    logging.disable()
    made = {**argument_errors(), **trace_errors(), **option_errors(), **executor_errors()}
    return {name: error_of(cause) for name, cause in made.items()}


if __name__ == "__main__":
    torch.manual_seed(1)
    questions = {"graphs": graphs, "signatures": signatures, "errors": errors}
    answer = json.dumps(questions[sys.argv[1]]())
    print(re.sub(r"\bpoptorch\.(?:_\w+\.)+", "poptorch.", answer))  # private modules may move
