"""Blocks, pipeline stages, and the checks of a compilation."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import threading

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
AutoIncrement = poptorch.AutoStage.AutoIncrement


class Layers(torch.nn.Module):
    """A chain of linear layers, each a block on the IPU given by the list."""

    def __init__(self, ipus, names=None):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in ipus)
        for index, (layer, ipu_id) in enumerate(zip(self.layers, ipus)):
            poptorch.BeginBlock(layer, names[index] if names else f"B{index}", ipu_id=ipu_id)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class _Function(torch.nn.Module):
    """A model that calls a function, which uses these modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.modules_used = torch.nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x)


class _WithLoss(torch.nn.Module):
    """A model for training; the loss belongs to its last block."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return poptorch.identity_loss(self.model(x), "sum")


def compiled(model, options=None, training=False):
    """An executor of a module or function, compiled for the number of rows that `options` require."""
    options = options or poptorch.Options()
    model = model if isinstance(model, torch.nn.Module) else _Function(model)
    rows = options.device_iterations * options.replication_factor * options.Training.gradient_accumulation
    if training:
        executor = poptorch.trainingModel(
            _WithLoss(model), options, torch.optim.SGD(model.parameters(), lr=1.0)
        )
    else:
        executor = poptorch.inferenceModel(model, options)
    executor.compile(torch.zeros(rows, 2))
    return executor


def places(model, options=None):
    """(stage, IPU) of the operations in order, without consecutive repeats."""
    options = options.clone() if options else poptorch.Options().deviceIterations(8)
    nodes = json.loads(compiled(model, options.autoRoundNumIPUs(True))._debugGetPopartIR())["maingraph"]
    attributes = [node["attributes"] for node in nodes]
    all_places = [(int(each["__pipeline_stage"]), int(each["__ipu_number"])) for each in attributes]
    return [place for place, _ in itertools.groupby(all_places)]


def test_begin_block_changes_nothing_but_a_hook():
    layer = torch.nn.Linear(2, 2)
    keys, kind, x = list(layer.state_dict()), type(layer), torch.ones(1, 2)
    before = layer(x)
    assert poptorch.BeginBlock(layer, "A", ipu_id=1) is layer
    assert type(layer) is kind and list(layer.state_dict()) == keys
    assert torch.equal(layer(x), before)  # inert outside a trace
    assert [repr(h) for h in layer._forward_pre_hooks.values()] == ["BeginBlock(user_id=A, ipu_id=1)"]
    with pytest.raises(poptorch.Error, match="module has already been assigned to a block"):
        poptorch.BeginBlock(layer, "B")
    with pytest.raises(poptorch.Error, match=r"module is not an instance of torch\.nn\.Module or function"):
        poptorch.BeginBlock(3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_blocks_survive_copies_and_removal_leaves_other_hooks(duplicate):
    model = duplicate(Layers([0, 1]))
    assert places(model) == [(0, 0), (1, 1)]
    calls = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: calls.append(module))
    poptorch.removeBlocks(model)
    assert places(model) == [(0, 0)] and len(calls) == 1
    poptorch.BeginBlock(model.layers[0], "again")
    with pytest.raises(AssertionError):
        poptorch.removeBlocks("model")


@pytest.mark.parametrize(
    "ipus, depth, per_replica",
    [
        ([0], 1, 1),
        ([0, 0, 0], 1, 1),
        ([1], 2, 2),
        ([0, 1, 2, 3], 4, 4),
        ([0, 1, 2, 3, 0], 5, 4),  # the heads are on the first IPU again, as in BERT
        ([0, 3], 2, 4),
        ([0, 1, 1, 0], 3, 2),
    ],
)
def test_depth_counts_changes_of_the_ipu(ipus, depth, per_replica):
    def options(accumulation=1, iterations=1):
        made = poptorch.Options().deviceIterations(iterations)
        made.Training.gradientAccumulation(accumulation)
        return made

    model = Layers(ipus)
    with pytest.raises(poptorch.Error, match=rf"Too many IPUs requested \({128 * per_replica}\)"):
        compiled(model, options(iterations=depth).replicationFactor(128))
    compiled(model, options(accumulation=2 * depth - 1), training=True)
    compiled(model, options(iterations=depth))
    if depth > 1:
        with pytest.raises(poptorch.Error) as caught:
            compiled(model, options(accumulation=2 * depth - 2), training=True)
        assert f"pipeline stages ({2 * depth - 1}) when using poptorch.Pip" in str(caught.value)
        assert f"with {depth} pipeline stages in PopTorch will have an additional {depth - 1} " in str(
            caught.value
        )
        with pytest.raises(
            poptorch.Error, match=rf"deviceIterations must be .* \({depth}\) when using PopTorch"
        ):
            compiled(model, options(iterations=depth - 1))
    sharded = options().setExecutionStrategy(poptorch.ShardedExecution())
    compiled(model, sharded, training=True)


def test_a_block_entered_again_keeps_its_stage():
    model = Layers([0, 1, 0], names=["A", "B", "A"])
    strategy = poptorch.PipelinedExecution(AutoIncrement)
    options = poptorch.Options().setExecutionStrategy(strategy).deviceIterations(8)
    for _ in range(2):  # a second compilation counts from the beginning
        assert places(model, options) == [(1, 0), (2, 1), (1, 0)]


def test_where_a_block_stands():
    """On its stage's IPU, else on the block's, else on the IPU with the stage's number."""
    model = Layers([5, 5, None], names=["A", "B", "C"])
    strategy = poptorch.PipelinedExecution(poptorch.Stage("A").ipu(2), ["B"], "C")
    options = poptorch.Options().setExecutionStrategy(strategy).deviceIterations(8)
    assert places(model, options) == [(0, 2), (1, 5), (2, 2)]
    assert strategy.stage("B").blocks == ["B"]
    with pytest.raises(AssertionError, match="Unknown block X"):
        strategy.stage("X")


def test_strategies_refuse():
    with pytest.raises(AssertionError, match="Block IDs are supposed to be strings but got"):
        poptorch.Stage(1)
    with pytest.raises(AssertionError, match="A associated with more than one stage"):
        poptorch.PipelinedExecution("A", ["B", "A"])
    with pytest.raises(AssertionError, match="SameAsIpu was selected but no IPU was specified for block B0"):
        compiled(Layers([None]))
    unlisted = poptorch.Options().setExecutionStrategy(poptorch.PipelinedExecution("A"))
    with pytest.raises(AssertionError, match=r"Unknown Block 'B0' list of expected Blocks: \['A'\]"):
        compiled(Layers([0]), unlisted)


def test_contexts_functions_and_numbers():
    @poptorch.BlockFunction("decorated", ipu_id=2)
    def decorated(x):
        return x + 1

    def forward(x):
        poptorch.Block.useAutoId()
        with poptorch.Block(ipu_id=0):
            x = x + 1
        with poptorch.Block(ipu_id=1):
            x = x + 1
        x = decorated(x)
        poptorch.Block.start("last", ipu_id=3)
        x = x + 1
        return poptorch.BeginBlock(torch.abs, "legacy", ipu_id=4)(x)

    assert torch.equal(forward(torch.zeros(1)), torch.full((1,), 4.0))
    assert [ipu for _, ipu in places(forward)] == [0, 1, 2, 3, 4]
    names = ["0", "1", "decorated", "last", "legacy"]  # by which a strategy knows them
    strategy = poptorch.PipelinedExecution(*(poptorch.Stage(name).ipu(4 - n) for n, name in enumerate(names)))
    options = poptorch.Options().setExecutionStrategy(strategy).deviceIterations(8)
    assert [ipu for _, ipu in places(forward, options)] == [4, 3, 2, 1, 0]


def test_what_comes_before_the_first_block_is_stage_0_on_ipu_0():
    """As in PopTorch. transformers' BERT computes its mask before its embeddings."""
    assert places(lambda x: x * 2) == [(0, 0)]  # no blocks: all on the first IPU
    for ipus, expected in (([0, 0], [(0, 0)]), ([0, 1], [(0, 0), (1, 1)]), ([1, 1], [(0, 0), (1, 1)])):
        layers = Layers(ipus)
        early = _Function(lambda x, layers=layers: layers((1.0 - x) * 2), layers)
        assert places(early) == expected
        depth = len(expected)
        compiled(early, poptorch.Options().deviceIterations(depth))
        if depth > 1:
            with pytest.raises(poptorch.Error, match=rf"pipeline stages \({depth}\)"):
                compiled(early)


def test_leaving_a_block_ends_it():
    def inside(x):
        with poptorch.Block("A", ipu_id=0):
            return (x * 2).relu()

    compiled(inside)
    compiled(lambda x: inside(x).detach())  # an alias, not an operation
    compiled(lambda x: (inside(x), torch.zeros(1)))
    with pytest.raises(poptorch.Error, match="No active Block, all the ops must belong to a Block"):
        compiled(lambda x: inside(x) + 1)
    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(_Function(lambda x: inside(x) + 1))(torch.ones(1, 2))

    def started(x):
        inside(x)
        poptorch.Block.start("B", ipu_id=0)
        return x + 1

    compiled(started)


def test_the_host_may_compute_outside_of_blocks():
    """What it computes from host tensors alone is a constant of the executable."""
    from poptorch.simulator import capture

    factor = torch.full((2,), 1.5)

    def forward(x):
        with poptorch.Block("A", ipu_id=0):
            y = x * 2
        doubled = factor * 2
        with poptorch.Block("B", ipu_id=0):
            return y + doubled.to(y.device)

    assert torch.equal(poptorch.inferenceModel(_Function(forward))(torch.ones(1, 2)), torch.full((1, 2), 5.0))
    capture(_Function(forward), (torch.ones(1, 2),), {}, poptorch.Options(), training=False)


@pytest.mark.parametrize("ipu_id", [-1, "0", 0.5])
def test_an_ipu_has_a_number(ipu_id):
    def forward(x):
        with poptorch.Block("A", ipu_id=ipu_id):
            return x * 2

    with pytest.raises(poptorch.Error, match=rf"whole number from 0 on, not {ipu_id!r}"):
        compiled(forward)
    staged = poptorch.Options().setExecutionStrategy(poptorch.PipelinedExecution("A"))
    with pytest.raises(poptorch.Error, match=rf"whole number from 0 on, not {ipu_id!r}"):
        compiled(forward, staged)


def test_number_of_ipus(monkeypatch):
    def options(replicas=1):
        return poptorch.Options().deviceIterations(8).replicationFactor(replicas)

    three = Layers([0, 1, 2])
    with pytest.raises(
        poptorch.Error, match=r"specifies the use of 3 IPUs, however .* a minimum of 4 in order"
    ):
        compiled(three, options())
    compiled(three, options().autoRoundNumIPUs())
    with pytest.raises(poptorch.Error, match=r"Too many IPUs requested \(128\)"):
        compiled(Layers([1]), options(replicas=64))
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    compiled(three, options())


@pytest.mark.parametrize("training", [True, False])
def test_the_number_of_ipus_is_checked_before_the_depth(training):
    """Three stages on three IPUs, with options for a single stage: both are wrong."""
    with pytest.raises(poptorch.Error, match="The model specifies the use of 3 IPUs"):
        compiled(Layers([0, 1, 2]), training=training)
    with pytest.raises(poptorch.Error, match="must be greater than or equal to the number of pipeline"):
        compiled(Layers([0, 1, 2]), poptorch.Options().autoRoundNumIPUs(True), training=training)


def test_running_on_ipu_only_within_a_run():
    seen = []

    def forward(x):
        seen.append(poptorch.isRunningOnIpu())
        if len(seen) == 2:
            raise RuntimeError("in the second compilation")
        return x * 2

    assert not poptorch.isRunningOnIpu()
    compiled(forward)
    assert not poptorch.isRunningOnIpu()
    with pytest.raises(Exception, match="in the second compilation"):
        compiled(forward)
    assert seen == [True, True] and not poptorch.isRunningOnIpu()


def test_a_run_is_its_own_thread_s():
    """A data set that the loader's thread reads at the same time isn't on the IPU."""
    in_forward, in_dataset, compiling_ended = threading.Event(), threading.Event(), threading.Event()
    dataset_saw, model_saw = [], []

    class Dataset(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 0:  # the accessor loads one element when it is created
                return torch.ones(2)
            assert in_forward.wait(60)
            dataset_saw.append(poptorch.isRunningOnIpu())
            with poptorch.Attribute(__outline={"layer": "the data set's"}):
                in_dataset.set()
                assert compiling_ended.wait(60)
            return torch.ones(2)

    def forward(x):
        with poptorch.Attribute(__outline={"layer": "mine"}):
            in_forward.set()
            assert in_dataset.wait(60)
            model_saw.append(poptorch.isRunningOnIpu())
            return torch.relu(x)

    accessor = poptorch.AsynchronousDataAccessor(Dataset(), early_preload=True)
    executor = compiled(forward)
    compiling_ended.set()
    (node,) = json.loads(executor._debugGetPopartIR())["maingraph"]
    assert node["attributes"]["__outline"] == {"layer": "mine"}
    assert model_saw == [True] and set(dataset_saw) == {False}
    accessor.terminate()


@pytest.mark.parametrize(
    ("target", "ipus", "found"), [("pod4", 8, "pod4 has 4"), ("pod16", 32, "pod16 has 16")]
)
def test_more_ipus_than_the_machine_has_are_refused(monkeypatch, target, ipus, found):
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", target)

    class Model(torch.nn.Module):
        def forward(self, x):
            with poptorch.Block("only", ipu_id=ipus - 1):
                return x * 2

    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    wording = rf"Failed to acquire {ipus} IPU\(s\)\nNo device found on the system with {ipus} IPUs.*{found}"
    with pytest.raises(poptorch.Error, match=wording):
        poptorch.inferenceModel(Model(), options)(torch.ones(1))
    # Offline targets and Poplar's IPU model need no IPUs.
    offline = options.clone().useOfflineIpuTarget()
    poptorch.inferenceModel(Model(), offline).compile(torch.ones(1))
    poptorch.inferenceModel(Model(), options.clone().useIpuModel(True))(torch.ones(1))


@pytest.mark.parametrize("auto", [poptorch.AutoStage.SameAsIpu, AutoIncrement])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("ipus", "places"),
    [
        ([None, 0, 1], [(0, 0), (0, 0), (1, 1)]),
        ([None, None, 1], [(0, 0), (0, 0), (1, 1)]),
        ([None, 2, 0], [(0, 0), (1, 2), (2, 0)]),
        ([1, 1], [(1, 1), (1, 1)]),
        ([0, 0, 1], [(0, 0), (0, 0), (1, 1)]),
    ],
)
def test_the_cost_model_s_stages_are_the_pipeline_s(auto, training, ipus, places):
    """Stage 0 on IPU 0 has what comes before the first block; the depth counts it even if that is nothing."""
    from poptorch.simulator import capture

    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in ipus))
    for index, (layer, ipu_id) in enumerate(zip(model, ipus)):
        if ipu_id is not None:
            poptorch.BeginBlock(layer, f"B{index}", ipu_id=ipu_id)
    options = poptorch.Options().deviceIterations(3).autoRoundNumIPUs()
    options.Training.gradientAccumulation(5)
    options.setExecutionStrategy(poptorch.PipelinedExecution(auto))
    graph = capture(_WithLoss(model) if training else model, (torch.ones(1, 2),), {}, options, training)
    assert [(op.stage, op.ipu) for op in graph.ops if op.name == "addmm" and op.phase == "forward"] == places
    assert len(graph.stage_ipus) == 1 + places[-1][0]
    backward = {(op.stage, op.ipu) for op in graph.ops if op.phase == "backward"}
    assert backward == (set(places) if training else set())
