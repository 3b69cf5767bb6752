"""torch.ops.poptorch: PopTorch's registered operators have the effect of its public functions."""

from __future__ import annotations

import json

import pytest
import torch

from tests.poptorch.executor_models import poptorch

OPERATORS = torch.ops.poptorch
# What PopTorch 3.4 registers (graphcore/poptorch c2a8b177).
NAMES = """
    begin_ipu_block begin_multi_conv call_cpu_op clear_attribute ctc_beam_search_decoder custom_operation
    dynamic_slice dynamic_update end_cpu_op end_for_loop end_if_block end_ipu_block end_multi_conv fps
    identity_loss internal_cast ipu_print_tensor nearest nearest_batch_list nop optimizer_group pop_name_scope
    push_name_scope recomputation_checkpoint set_attribute set_available_memory set_matmul_serialization
    set_overlap_for_input set_overlap_for_output start_else_block start_for_loop start_if_block
    update_param_inplace
""".split()


class Program(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


X = torch.linspace(-1, 1, 16).reshape(4, 4)
OUTPUT_CHANNELS = poptorch.MatMulSerializationMode.OutputChannels
POINTS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
LOG_PROBS = torch.linspace(-2, -1, 12).reshape(3, 2, 2)


def by_blocks(begin, end):
    def forward(x):
        x = x + 1
        begin(0, 1)
        x = x * 2
        end()
        begin(1, 0)
        return x - 1

    return forward


def begin_public(stage, ipu):
    poptorch.Block.start(str(stage), ipu_id=ipu)


def scoped(x):
    OPERATORS.push_name_scope("outer")
    OPERATORS.push_name_scope("inner")
    y = x * 2
    OPERATORS.pop_name_scope()
    z = y + 1
    OPERATORS.pop_name_scope()
    OPERATORS.pop_name_scope()  # one too many
    return z


def scoped_public(x):
    with poptorch.NameScope("outer"):
        with poptorch.NameScope("inner"):
            y = x * 2
        return y + 1


def attributed(x):
    OPERATORS.set_attribute("__outline", "layer", "a")
    OPERATORS.set_attribute("__outline", "part", "b")
    y = x * 2
    OPERATORS.clear_attribute("__outline", "part")
    z = y + 1
    OPERATORS.clear_attribute("__outline", "layer")
    return z - 1


def attributed_public(x):
    with poptorch.Attribute(__outline={"layer": "a"}):
        with poptorch.Attribute(__outline={"part": "b"}):
            y = x * 2
        z = y + 1
    return z - 1


def branches(x):
    condition = x.sum() > 0
    OPERATORS.start_if_block(condition)
    ones = [x * 2, x.sum()]
    OPERATORS.start_else_block(ones)
    others = [x - 1, x.max()]
    return OPERATORS.end_if_block(others, condition)


PAIRS = {
    "nop": (OPERATORS.nop, poptorch.nop, X),
    "an overload": (OPERATORS.nop.default, poptorch.nop, X),
    "cast": (lambda x: OPERATORS.internal_cast(x, "FLOAT16"), lambda x: x.half(), X),
    "cast to integers": (lambda x: OPERATORS.internal_cast(x, "INT32") + 1, lambda x: x.int() + 1, X * 3),
    "checkpoint": (
        lambda x: OPERATORS.recomputation_checkpoint(x * 2) + 1,
        lambda x: poptorch.recomputationCheckpoint(x * 2) + 1,
        X,
    ),
    "memory": (
        lambda x: OPERATORS.set_available_memory(x @ x, 0.25),
        lambda x: poptorch.set_available_memory(x @ x, 0.25),
        X,
    ),
    "overlap": (
        lambda x: OPERATORS.set_overlap_for_output(
            OPERATORS.set_overlap_for_input(x, "no_overlap") * 2, "no_overlap"
        ),
        lambda x: poptorch.set_overlap_for_output(
            poptorch.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap) * 2,
            poptorch.OverlapMode.NoOverlap,
        ),
        X,
    ),
    "print": (
        lambda x: OPERATORS.ipu_print_tensor(x, "seen", 1, 1000, 3, 80, 2, 1, "; ", "<", ">") + 1,
        lambda x: poptorch.ipu_print_tensor(x, "seen", True, 1000, 3, 80, 2, "fixed", "; ", "<", ">") + 1,
        X,
    ),
    "slice": (
        lambda x, start: OPERATORS.dynamic_slice(x, 0, start, 2, 1),
        lambda x, start: poptorch.dynamic_slice(x, 0, start, 2, 1),
        X,
        torch.tensor([1], dtype=torch.int32),
    ),
    "update": (
        lambda x, start: OPERATORS.dynamic_update(x, x[:2] * 2, 0, start, 2),
        lambda x, start: poptorch.dynamic_update(x, x[:2] * 2, 0, start, 2),
        X,
        torch.tensor([1], dtype=torch.int32),
    ),
    "fps": (lambda x: OPERATORS.fps(x, [0, 4], 0.5, False), lambda x: poptorch.fps(x, [0, 4], 0.5), POINTS),
    "nearest": (
        lambda x: OPERATORS.nearest(x + 0.1, x, None, None),
        lambda x: poptorch.nearest(x + 0.1, x),
        POINTS,
    ),
    "nearest by list": (
        lambda x: OPERATORS.nearest_batch_list(x[:2], x, [0, 1], [0, 0, 1, 1]),
        lambda x: poptorch.nearest(x[:2], x, [0, 1], [0, 0, 1, 1]),
        POINTS,
    ),
    "ctc": (
        lambda p, n: tuple(OPERATORS.ctc_beam_search_decoder(p, n, 0, 3, 2)),
        lambda p, n: tuple(poptorch.ctc_beam_search_decoder(p, n, 0, 3, 2)),
        LOG_PROBS,
        torch.tensor([3, 2]),
    ),
    "custom operation": (
        lambda x, i: OPERATORS.custom_operation(
            [x, i], "FastGatherLastDim", "poptorch.custom_ops", 1, 1, [i.float()], "{}"
        )[0],
        lambda x, i: poptorch.custom_op(
            [x, i], "FastGatherLastDim", "poptorch.custom_ops", 1, example_outputs=[i.float()]
        )[0],
        X,
        torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]], dtype=torch.int32),
    ),
    "blocks": (
        by_blocks(lambda stage, ipu: OPERATORS.begin_ipu_block(stage, 0, ipu), OPERATORS.end_ipu_block),
        by_blocks(begin_public, lambda: None),
        X,
    ),
    "scopes": (scoped, scoped_public, X),
    "attributes": (attributed, attributed_public, X),
    "optimizer group": (lambda x: (OPERATORS.optimizer_group(0, [x]), x * 2)[1], lambda x: x * 2, X),
    "update in place": (
        lambda x: OPERATORS.update_param_inplace(torch.zeros_like(x), x * 2),
        lambda x: torch.zeros_like(x).copy_(x * 2),
        X,
    ),
}


READ = {"nearest by list", "ctc"}  # they read values, so the cost model needs them


def sharded():
    return poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution("0", "1"))


def read_ir(executor):
    return json.loads(executor._debugGetPopartIR())


@pytest.mark.parametrize("name", NAMES)
def test_all_are_registered(name):
    assert callable(getattr(OPERATORS, name)) and callable(getattr(OPERATORS, name).default)


@pytest.mark.parametrize("case", PAIRS)
def test_as_the_public_function(case, capfd):
    from poptorch.simulator import capture

    operator, function, *inputs = PAIRS[case]
    found = []
    for forward in (operator, function):
        host = Program(forward)(*inputs)
        executor = poptorch.inferenceModel(Program(forward), sharded())
        runs = [executor(*inputs) for _ in range(2)]
        graph = capture(
            Program(forward), tuple(inputs), {}, sharded(), training=False, with_values=case in READ
        )
        printed = capfd.readouterr().err.replace("\n", "")
        found.append((host, runs, read_ir(executor), graph, printed))
    for part in range(2):
        torch.testing.assert_close(found[0][part], found[1][part], rtol=0, atol=0)
    assert found[0][2:] == found[1][2:]


def test_under_float16_arithmetic_and_without_replay(monkeypatch):
    """A forward that is called in every run, and inside the dispatch mode of the IPU's arithmetic."""
    blocks = by_blocks(lambda stage, ipu: OPERATORS.begin_ipu_block(stage, 0, ipu), lambda: None)

    def forward(x):
        (x,) = poptorch.for_loop(1, lambda x: [x], [x])
        return scoped(x), attributed(x), blocks(x)

    expected = (scoped(X), attributed(X), blocks(X))
    for precision in ("float32", "ipu-float16"):
        monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
        executor = poptorch.inferenceModel(Program(forward), sharded())
        for _ in range(2):
            torch.testing.assert_close(executor(X), expected, rtol=0, atol=0)


def test_the_loss_and_its_gradient():
    class Model(torch.nn.Module):
        def __init__(self, reduction):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.reduction = reduction

        def forward(self, x):
            return OPERATORS.identity_loss(OPERATORS.internal_cast(x * self.weight, "FLOAT"), self.reduction)

    for reduction, gradient in ((0, X.sum(0)), (1, X.sum(0) / 16), (2, X.sum(0))):
        model = Model(reduction)
        executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
        executor(X)
        torch.testing.assert_close(model.weight.detach(), 1 - gradient)
    with pytest.raises(AssertionError, match="Unsupported reduction type!"):
        OPERATORS.identity_loss(X, 3)
    with pytest.raises(poptorch.Error, match=r"unknown type 'HALF'\. Valid types are BOOL, INT8"):
        OPERATORS.internal_cast(X, "HALF")


def test_a_serialised_product():
    from poptorch.simulator import capture

    forwards = [
        lambda x: OPERATORS.set_matmul_serialization(x @ x, "output_channels", 2, 0),
        lambda x: poptorch.serializedMatMul(x, x, OUTPUT_CHANNELS, 2),
    ]
    products = []
    for forward in forwards:
        assert torch.equal(poptorch.inferenceModel(Program(forward))(X), X @ X)
        graph = capture(Program(forward), (X,), {}, poptorch.Options(), training=False)
        products.append([op.attributes for op in graph.ops if op.name == "mm"])
    assert products[0] == products[1] == [{"serialization": ("OutputChannels", 2)}]


def test_branches():
    model = Program(branches)
    executor = poptorch.inferenceModel(model)
    for x in (X + 1, X - 1, X + 1):
        expected = [x * 2, x.sum()] if x.sum() > 0 else [x - 1, x.max()]
        torch.testing.assert_close(executor(x), expected, rtol=0, atol=0)

    def trained(x):
        return poptorch.identity_loss(branches(x * weight)[0], "sum")

    weight = torch.nn.Parameter(torch.ones(1))
    trains = Program(trained)
    trains.weight = weight
    with pytest.raises(poptorch.Error, match=r"poptorch\.cond\(\) is only supported in inference"):
        poptorch.trainingModel(trains, optimizer=torch.optim.SGD([weight], lr=0.1)).compile(X)


def test_convolutions_planned_together():
    layers = torch.nn.ModuleList(torch.nn.Conv1d(1, 1, 2) for _ in range(2))

    def forward(proportions):
        def planned(x):
            OPERATORS.begin_multi_conv()
            made = [layer(x) for layer in layers]
            OPERATORS.end_multi_conv(proportions, None, None, None, None, None)
            return made

        model = Program(planned)
        model.layers = layers
        return model

    x = torch.randn(1, 1, 5)
    for made, layer in zip(poptorch.inferenceModel(forward([0.1, 0.2]))(x), layers):
        torch.testing.assert_close(made, layer(x).detach())
    with pytest.raises(poptorch.Error, match="availableMemoryProportions has 3 values for 2 convolutions"):
        poptorch.inferenceModel(forward([0.1, 0.2, 0.3]))(x)
    layers.pop(1), layers.pop(0)
    with pytest.raises(poptorch.Error, match="MultiConv has no convolutions"):
        poptorch.inferenceModel(forward(None))(x)


def test_rules_hold_for_operators_too():
    def outside(x):
        OPERATORS.begin_ipu_block(0, 0, 0)
        OPERATORS.end_ipu_block()
        return x + 1

    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(Program(outside))(X)
    with pytest.raises(poptorch.Error, match="not a tensor input to the model"):
        poptorch.inferenceModel(Program(lambda x: OPERATORS.set_overlap_for_input(x + 1, "no_overlap")))(X)


def test_attributes_end_with_the_forward():
    def forward(x):
        OPERATORS.set_attribute("__outline", "layer", "left open")
        return x * 2

    for _ in range(2):
        poptorch.inferenceModel(Program(forward))(X)
    executor = poptorch.inferenceModel(Program(lambda x: x * 2))
    executor(X)
    assert all("__outline" not in node["attributes"] for node in read_ir(executor)["maingraph"])


def doubled_while_counting(x, count):
    """As poptorch.for_loop does it."""
    scale = x.abs().max()  # from outside of the loop
    inputs = [x.clone(), torch.zeros(1)]
    OPERATORS.start_for_loop(inputs)
    outputs = [inputs[0] * 2 + scale, inputs[1] + 1]
    return OPERATORS.end_for_loop(outputs, count)


def doubled_while_counting_public(x, count):
    scale = x.abs().max()
    return poptorch.for_loop(count, lambda y, n: [y * 2 + scale, n + 1], [x, torch.zeros(1)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_loops(count):
    from poptorch.simulator import capture

    found = []
    for loop in (doubled_while_counting, doubled_while_counting_public):
        model = Program(lambda x, loop=loop: loop(x, count))
        executor = poptorch.inferenceModel(model)
        runs = [executor(x) for x in (X, X * 2)]
        graph = capture(model, (X,), {}, poptorch.Options(), training=False)
        found.append((runs, [op.name for op in graph.ops if op.name in ("mul", "add")]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert found[0][0][1][1] == count
    if count:
        assert found[0][1] == found[1][1]


def test_nested_loops():
    def forward(x):
        inputs = [x.clone()]
        OPERATORS.start_for_loop(inputs)
        inner = [inputs[0] + 1]
        OPERATORS.start_for_loop(inner)
        (doubled,) = OPERATORS.end_for_loop([inner[0] * 2], 2)
        return OPERATORS.end_for_loop([doubled], 3)

    executor = poptorch.inferenceModel(Program(forward))
    for x in (X, X - 2):
        expected = x
        for _ in range(3):
            expected = (expected + 1) * 4
        torch.testing.assert_close(executor(x), [expected])


def test_a_loop_that_fails_leaves_nothing_behind():
    def forward(x):
        OPERATORS.start_for_loop([x])
        return OPERATORS.end_for_loop([x[:1] * 2], 2)

    with pytest.raises(poptorch.Error, match="shapes and types are fixed at compilation"):
        poptorch.inferenceModel(Program(forward))(X)
    with pytest.raises(poptorch.Error, match="end_for_loop without start_for_loop"):
        poptorch.inferenceModel(Program(lambda x: OPERATORS.end_for_loop([x], 2)))(X)
    assert torch.equal(poptorch.inferenceModel(Program(lambda x: x * 2))(X), X * 2)
    trains = Program(lambda x: poptorch.identity_loss(doubled_while_counting(x * weight, 2)[0], "sum"))
    trains.weight = weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(poptorch.Error, match=r"poptorch\.for_loop\(\) is only supported in inference"):
        poptorch.trainingModel(trains, optimizer=torch.optim.SGD([weight], lr=0.1)).compile(X)


def test_host_code():
    seen = []

    def forward(x, fails=False):
        y = x * 2
        OPERATORS.call_cpu_op([y], "mine")
        seen.append((poptorch.isRunningOnIpu(), y.sum().item()))
        assert not fails
        (made,) = OPERATORS.end_cpu_op([y + y.sum().item()])
        assert poptorch.isRunningOnIpu()
        return made + 1

    executor = poptorch.inferenceModel(Program(forward))
    for x in (X, X + 1):
        torch.testing.assert_close(executor(x), x * 2 + (x * 2).sum() + 1)
    assert not any(on_ipu for on_ipu, _ in seen)
    with pytest.raises(AssertionError):
        poptorch.inferenceModel(Program(lambda x: forward(x, fails=True)))(X)
    assert not poptorch.isRunningOnIpu() and torch.equal(executor(X), executor(X))
    with pytest.raises(poptorch.Error, match="aten::item is only supported in eager mode"):
        poptorch.inferenceModel(Program(lambda x: x.sum().item()))(X)
