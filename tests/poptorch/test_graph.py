"""_debugGetPopartIR: operations, checkpoints, stashes, stages and names."""

from __future__ import annotations

import json

import pytest
import torch

from tests.poptorch.executor_models import CLASSES, FEATURES, Classifier, batch, options, poptorch

STAGES = 3


class _Pipelined(torch.nn.Module):
    def __init__(self, checkpoints: bool) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.layers = torch.nn.ModuleList(torch.nn.Linear(FEATURES, FEATURES) for _ in range(STAGES))
        self.head = torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, x, y):
        for index, layer in enumerate(self.layers):
            with poptorch.Block(f"B{index}", ipu_id=index):
                x = torch.relu(layer(x))
                if self.checkpoints:
                    x = poptorch.recomputationCheckpoint(x)
                x = torch.tanh(x)
                if index == STAGES - 1:
                    return torch.nn.functional.cross_entropy(self.head(x), y)


def _graph(model, made, *args, training=True) -> list[dict]:
    wrap = poptorch.trainingModel if training else poptorch.inferenceModel
    executor = wrap(model, made)
    executor.compile(*args)
    return json.loads(executor._debugGetPopartIR())["maingraph"]


def _pipelined(checkpoints: bool, strategy=None) -> list[dict]:
    made = options(accumulation=2 * STAGES - 1)
    made.autoRoundNumIPUs(True)
    made.setExecutionStrategy(strategy or poptorch.PipelinedExecution())
    return _graph(_Pipelined(checkpoints), made, *batch(2 * STAGES - 1))


def _count(graph: list[dict], word: str) -> int:
    return sum(word in node["type"] for node in graph)


def test_operations_have_popart_types_and_module_names():
    graph = _graph(Classifier(), options(), *batch(2))
    assert [node["type"] for node in graph[:4]] == ["Transpose", "MatMul", "Tanh", "Transpose"]
    assert graph[1]["name"] == "first/MatMul"
    assert {"first.weight", "first.bias"} <= {t["name"] for node in graph for t in node["inputs"]}
    assert graph[1]["outputs"][0]["shape"] == [2, 5]


def test_an_operation_in_place_has_the_type_of_its_operation():
    model = torch.nn.Sequential(torch.nn.ReLU6(inplace=True), torch.nn.SiLU(inplace=True))
    types = [node["type"] for node in _graph(model, options(), batch(2)[0], training=False)]
    assert types == ["Clip", "Swish"]


def test_one_update_for_each_weight_that_trains_and_none_in_inference():
    model = Classifier()
    model.first.weight.requires_grad_(False)
    updated = [n["outputs"][0]["name"] for n in _graph(model, options(), *batch(2)) if "Update" in n["type"]]
    assert updated == ["UpdatedVar___first.bias", "UpdatedVar___second.weight", "UpdatedVar___second.bias"]
    assert not _count(_graph(Classifier(), options(), batch(2)[0], training=False), "Update")


@pytest.mark.parametrize(
    ("optimizer", "counts"),
    [
        (lambda w: torch.optim.SGD(w, lr=0.1), {"SGD0VarUpdate": 4, "Accumulate": 0}),
        (lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9), {"SGD2VarUpdate": 4, "SGD1VarUpdate": 0}),
        (
            lambda w: poptorch.optim.SGD(w, lr=0.1, momentum=0.9, use_combined_accum=True),
            {"SGD1VarUpdate": 4, "SGD1AcclUpdate": 4},
        ),
        (lambda w: torch.optim.AdamW(w, lr=0.1), {"AdamUpdater": 4, "AdamVarUpdate": 4, "LambSquare": 0}),
        (lambda w: poptorch.optim.LAMB(w, lr=0.1), {"AdamUpdater": 4, "AdamVarUpdate": 4, "LambSquare": 8}),
        (lambda w: poptorch.optim.RMSprop(w, lr=0.1), {"RMSPropUpdater": 4, "ScaledVarUpdate": 4}),
    ],
)
def test_updates_are_those_of_the_optimizer(optimizer, counts):
    model = Classifier()
    executor = poptorch.trainingModel(model, options(), optimizer(model.parameters()))
    executor.compile(*batch(2))
    graph = json.loads(executor._debugGetPopartIR())["maingraph"]
    types = [node["type"] for node in graph]
    assert {type_: types.count(type_) for type_ in counts} == counts
    assert len({node["name"] for node in graph}) == len(graph)


def test_each_stage_stashes_what_enters_it_and_each_checkpoint():
    plain, marked = _pipelined(False), _pipelined(True)
    assert _count(plain, "Checkpoint") == 0
    assert sum("Checkpoint" in node["name"] for node in marked if node["type"] == "Checkpoint") == STAGES
    # The last stage continues with its backward pass immediately, so it has no stashes.
    assert _count(plain, "Stash") == STAGES - 1
    assert _count(marked, "Stash") == 2 * (STAGES - 1)
    assert _count(marked, "Restore") == _count(marked, "Stash")


class _Blocks(torch.nn.Module):
    """A chain of linear layers and a loss. `ipus`: where each layer begins a block; None: it doesn't."""

    def __init__(self, ipus: list[int | None]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(FEATURES, FEATURES) for _ in ipus)
        for index, (layer, ipu) in enumerate(zip(self.layers, ipus)):
            if ipu is not None:
                poptorch.BeginBlock(layer, f"B{index}", ipu_id=ipu)

    def forward(self, x):
        for layer in self.layers:
            x = poptorch.recomputationCheckpoint(layer(x).tanh())
        return poptorch.identity_loss(x, "sum")


@pytest.mark.parametrize("auto", [poptorch.AutoStage.SameAsIpu, poptorch.AutoStage.AutoIncrement])
@pytest.mark.parametrize(
    ("ipus", "depth", "stashes"),
    [
        ([0, 1], 2, [0, 0]),
        ([0, 0, 1, 1], 2, [0, 0, 0]),
        ([0, 0, 1, 0, 0], 3, [0, 0, 0, 1, 1]),  # the last stage is on the first IPU again
        ([0, 1, 1, 0, 1], 4, [0, 0, 0, 0, 1, 1, 1]),
        ([None, 0, 1], 2, [0, 0, 0]),  # what comes before the first block is part of its stage
        ([None, 1, 1], 2, [0, 0]),  # or a separate stage on IPU 0
        ([1, 1], 2, []),
        ([0, 0, 0], 1, []),
    ],
)
def test_stashes_are_those_of_stages_however_many_blocks_form_one(auto, ipus, depth, stashes):
    """A stage before the last keeps its input and each layer's checkpoint. `stashes`: the IPU of each."""
    made = options(accumulation=2 * depth - 1)
    made.setExecutionStrategy(poptorch.PipelinedExecution(auto))
    graph = _graph(_Blocks(ipus), made, batch(2 * depth - 1)[0])
    for type_ in ("Stash", "Restore"):
        found = [node["attributes"]["__ipu_number"] for node in graph if node["type"] == type_]
        assert sorted(map(int, found)) == stashes


def test_only_a_pipeline_stashes():
    graph = _pipelined(True, poptorch.ShardedExecution())
    assert _count(graph, "Checkpoint") == STAGES
    assert _count(graph, "Stash") == 0


def test_operations_know_their_stage_and_ipu():
    graph = _pipelined(False)
    updated = {
        node["outputs"][0]["name"]: int(node["attributes"]["__ipu_number"])
        for node in graph
        if "Update" in node["type"]
    }
    assert [updated[f"UpdatedVar___layers.{index}.weight"] for index in range(STAGES)] == [0, 1, 2]
    assert updated["UpdatedVar___head.bias"] == STAGES - 1
    relus = [node["attributes"] for node in graph if node["type"] == "Relu"]
    assert [int(a["__ipu_number"]) for a in relus] == [0, 1, 2]
    assert [int(a["__pipeline_stage"]) for a in relus] == [0, 1, 2]


def test_name_scopes_are_in_the_names():
    class Scoped(torch.nn.Module):
        def forward(self, x):
            with poptorch.NameScope("mine"):
                return torch.relu(x)

    assert _graph(Scoped(), options(), batch(2)[0], training=False)[0]["name"] == "mine/Relu"


def test_attributes_of_a_program_are_those_of_its_operations():
    class Attributed(torch.nn.Module):
        def forward(self, x):
            with poptorch.Attribute(__outline={"layer": "embedding"}):
                y = x + 1
            return poptorch.set_available_memory(y @ y, 0.3)

    executor = poptorch.inferenceModel(Attributed())
    executor(torch.ones(2, 2))
    nodes = {
        node["type"]: node["attributes"] for node in json.loads(executor._debugGetPopartIR())["maingraph"]
    }
    assert nodes["Add"]["__outline"] == {"layer": "embedding"}
    assert nodes["MatMul"]["availableMemoryProportion"] == 0.3
    assert "__outline" not in nodes["MatMul"] and "availableMemoryProportion" not in nodes["Add"]


@pytest.mark.parametrize(
    "product",
    [
        lambda x: poptorch.set_available_memory(poptorch.nop(x @ x), 0.3),
        lambda x: poptorch.set_available_memory((x @ x).reshape(4, 1).T, 0.3),
        lambda x: poptorch.set_available_memory(poptorch.set_available_memory(x @ x, 0.1), 0.3),
        lambda x: poptorch.set_available_memory(x.reshape(2, 2) @ x, 0.3),
    ],
)
def test_a_memory_proportion_is_the_product_s_not_a_view_s(product):
    class Product(torch.nn.Module):
        def forward(self, x):
            return product(x)

    nodes = _graph(Product(), poptorch.Options(), torch.ones(2, 2), training=False)
    shares = [(node["type"], node["attributes"].get("availableMemoryProportion")) for node in nodes]
    assert [share for share in shares if share[1] is not None] == [("MatMul", 0.3)]


def test_there_is_none_before_the_compilation():
    with pytest.raises(poptorch.Error, match="has not been compiled"):
        poptorch.inferenceModel(Classifier())._debugGetPopartIR()


def test_a_name_scope_left_in_the_forward_but_entered_before_it_leaves_the_modules_scopes():
    class Leaves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(FEATURES, FEATURES)

        def forward(self, x):
            scope.__exit__(None, None, None)
            return torch.relu(self.layer(x))

    scope = poptorch.NameScope("before")
    scope.__enter__()
    graph = _graph(Leaves(), poptorch.Options(), torch.ones(2, FEATURES), training=False)
    assert [node["name"] for node in graph] == ["layer/Transpose", "layer/MatMul", "Relu"]
