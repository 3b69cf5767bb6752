"""poptorch.serializedMatMul: mode and factor select the dimension that is sliced, and the slices."""

from __future__ import annotations

import pytest
import torch
from ipu_simulator.cost.aliases import materialised
from ipu_simulator.cost.matmul import Product, plan
from ipu_simulator.cost.ops import op_cost
from ipu_simulator.cost.serialization import slices_of_weights
from ipu_simulator.environment import target

import ipu
from tests.ipu_simulator.cost.graphs import settings
from tests.ipu_simulator.graph.programs import captured

ipu.select_device("simulator")
poptorch = ipu.poptorch
Mode = poptorch.MatMulSerializationMode

CHIP = target("pod16")
PROPORTION = 0.25
# x [M, K] x w [K, N]; OutputChannels slices the smallest dimension.
M, K, N = 512, 384, 128
FACTOR = 4
CUT = {Mode.InputChannels: "m", Mode.ReducingDim: "k", Mode.OutputChannels: "n", Mode.Disabled: ""}


class Projection(torch.nn.Module):
    """The loss of x w, with the weight stored as [K, N] or [N, K] and x on either side."""

    def __init__(self, mode, transposed, factor=FACTOR, weight_first=False):
        super().__init__()
        self.before = torch.nn.Parameter(torch.zeros(K))
        self.weight = torch.nn.Parameter(torch.zeros(N, K) if transposed else torch.zeros(K, N))
        self.mode, self.transposed, self.factor, self.weight_first = mode, transposed, factor, weight_first

    def forward(self, x):
        weight = self.weight.t() if self.transposed else self.weight
        left, right = x * self.before, weight
        if self.weight_first:
            left, right = weight.t(), (x * self.before).t()
        y = poptorch.serializedMatMul(left, right, self.mode, self.factor)
        return poptorch.identity_loss(y * y, reduction="sum")


def products(mode, **how):
    """(graph, {letters of rows, inner dimension, columns: cost} of the product and its gradients)."""
    with torch.device("meta"):
        model = Projection(mode, **how)
    graph = captured(model.half(), torch.zeros(M, K, dtype=torch.float16))
    length = {M: "m", K: "k", N: "n"}
    found = {}
    for op in graph.ops:
        if op.name == "mm":
            left, right = (graph.tensors[number].shape for number in op.inputs)
            letters = "".join(length[size] for size in (*left, right[1]))
            found[letters] = op_cost(op, graph, settings(1, matmul_proportions=(PROPORTION,)), CHIP)
    assert len(found) == 3
    return graph, found


def expected(letters, dimension):
    """(slices, plan of one slice) of a product that is sliced along `dimension` ("m", "k", "n" or none)."""
    sizes = {"m": M, "k": K, "n": N}
    if dimension:
        sizes[dimension] //= FACTOR
    of_weight = {frozenset(letters[:2]): "left", frozenset(letters[1:]): "right"}
    resident = of_weight.get(frozenset("kn"), "neither")
    product = Product(1, *(sizes[letter] for letter in letters), resident=resident)
    made = plan(product, CHIP, PROPORTION)
    return (FACTOR if dimension else 1), made


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", CUT)
def test_the_dimension_that_the_mode_names_is_cut_forward_and_backward(mode, transposed):
    whole = products(Mode.Disabled, transposed=transposed)[1]
    for letters, cost in products(mode, transposed=transposed)[1].items():
        slices, made = expected(letters, CUT[mode])
        assert cost.matmul_cycles == slices * made.cycles, letters
        assert cost.working_set_bytes == made.temporary_bytes * CHIP.tiles_per_ipu
        assert cost.flops == whole[letters].flops == 2 * M * K * N


@pytest.mark.parametrize("mode", CUT)
def test_a_weight_on_the_left_has_the_rows(mode):
    """w [N, K] x [K, M]: InputChannels slices the rows, which are the weight's."""
    cut = {"m": "n", "n": "m"}.get(CUT[mode], CUT[mode])
    graph, found = products(mode, transposed=False, weight_first=True)
    for letters, cost in found.items():
        slices, made = expected(letters, cut)
        assert cost.matmul_cycles == slices * made.cycles, letters
    assert set(slices_of_weights(graph).values()) == ({FACTOR} if cut in ("n", "k") and cut else set())


@pytest.mark.parametrize("mode", CUT)
def test_a_slice_of_the_weights_gradient_lives_where_the_weight_is_cut(mode):
    """If rows of activations are sliced, every slice adds to the whole gradient."""
    graph, _ = products(mode, transposed=False)
    (weight,) = (parameter.id for parameter in graph.parameters if parameter.shape == (K, N))
    slices = FACTOR if CUT[mode] in ("k", "n") and CUT[mode] else 1
    assert slices_of_weights(graph).get((weight, ""), 1) == slices
    gradient = graph.owner(graph.gradients[weight]).id
    assert materialised(graph).bytes[gradient] == 2 * K * N // slices


@pytest.mark.parametrize("factor", [0, 1])
def test_a_factor_of_none_cuts_nothing(factor):
    graph, found = products(Mode.OutputChannels, transposed=False, factor=factor)
    assert found == products(Mode.Disabled, transposed=False)[1]
    assert slices_of_weights(graph) == {}


def test_slices_of_unequal_size_count_as_the_largest():
    _, found = products(Mode.OutputChannels, transposed=False, factor=3)
    made = plan(Product(1, M, K, -(-N // 3), resident="right"), CHIP, PROPORTION)
    assert found["mkn"].matmul_cycles == 3 * made.cycles
