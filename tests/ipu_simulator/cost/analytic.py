"""A layer's cost from formulas, without a graph: an independent check of the captured graph's cost.

The formulas come from the architecture: the products, vertices, compute sets and copies of a layer of BERT or
GroupBERT. Only the planners of matmuls and convolutions are shared with the model. Letters: T tokens of a
micro batch, h hidden size, E = T h, S sequence length, A scores (heads S T).
"""

from __future__ import annotations

from dataclasses import dataclass

from ipu_simulator.cost.convolution import Convolution, plan_convolution, plan_weights_gradient
from ipu_simulator.cost.matmul import Product, plan


@dataclass
class Tally:
    """Cycles of the fullest tile by cause; compute sets; elements rearranged over the whole IPU."""

    matmul: float = 0.0
    vertices: float = 0.0
    compute_sets: float = 0.0
    rearranged: float = 0.0

    def cycles(self, constants, tiles):
        return (
            constants.matmul_factor * self.matmul
            + self.vertices
            + constants.compute_set_cycles * self.compute_sets
            + constants.rearrangement_cycles * self.rearranged / tiles
        )


class Layer:
    """One encoder layer's work in a pipeline cycle: forward, again, backward, accumulation."""

    def __init__(self, hidden, heads, tokens, length, target, proportion):
        self.h, self.heads, self.t, self.s = hidden, heads, tokens, length
        self.target, self.proportion = target, proportion
        self.forward, self.backward = Tally(), Tally()
        self.e = tokens * hidden
        self.scores = heads * length * tokens

    def per_tile(self, elements, cycles):
        return cycles * -(-elements // self.target.tiles_per_ipu)

    def product(self, groups, m, k, n, tally, resident="neither"):
        made = plan(Product(groups, m, k, n, resident=resident), self.target, self.proportion)
        tally.matmul += made.cycles
        tally.compute_sets += made.serial_splits * (2 + (made.split_k > 1))

    def vertex(self, tally, elements, cycles, compute_sets=1):
        tally.vertices += self.per_tile(elements, cycles)
        tally.compute_sets += compute_sets

    def accumulate(self, weights):
        self.vertex(self.backward, weights, 0.75)

    def dense(self, k, n):
        """T x k times k x n with a bias."""
        self.product(1, self.t, k, n, self.forward, "right")
        self.vertex(self.forward, self.t * n, 0.75)
        self.product(1, self.t, n, k, self.backward, "right")
        self.product(1, k, self.t, n, self.backward)
        self.backward.rearranged += k * n + self.t * (k + n)
        self.vertex(self.backward, self.t * n, 0.5, 2)
        self.accumulate(k * n)
        self.accumulate(n)

    def norm(self):
        self.vertex(self.forward, self.e, 4, 8)
        self.vertex(self.backward, self.e, 6.5, 12)
        self.accumulate(self.h)
        self.accumulate(self.h)

    def residual(self, dropout):
        for tally in (self.forward, self.backward):
            self.vertex(tally, self.e, 0.75)
            if dropout:
                self.vertex(tally, self.e, 0.5)

    def attention(self):
        head, batch = self.h // self.heads, self.t // self.s
        groups = batch * self.heads
        for _query_key_value in range(3):
            self.dense(self.h, self.h)
        for _sums_of_their_input_gradients in range(2):
            self.vertex(self.backward, self.e, 0.75)
        for tally in (self.forward, self.backward):
            tally.rearranged += 4 * self.e
            tally.compute_sets += 4
            self.vertex(tally, self.e, 0.75)  # scale
        self.vertex(self.forward, self.scores, 0.75)  # mask
        self.product(groups, self.s, head, self.s, self.forward)
        self.product(groups, self.s, self.s, head, self.forward)
        self.forward.rearranged += self.scores
        self.vertex(self.forward, self.scores, 4, 9)
        self.vertex(self.backward, self.scores, 3.75, 6)
        for m, k, n in ((self.s, head, self.s), (self.s, self.s, head), (head, self.s, self.s)):
            self.product(groups, m, k, n, self.backward)
        self.product(groups, self.s, self.s, head, self.backward)
        self.backward.rearranged += 3 * self.scores + 3 * self.e
        self.dense(self.h, self.h)

    def gelu(self):
        self.vertex(self.forward, 4 * self.e, 1.25)
        self.vertex(self.backward, 4 * self.e, 2.0)

    def feed_forward(self):
        self.dense(self.h, 4 * self.h)
        self.gelu()
        self.dense(4 * self.h, self.h)

    def convolution(self, groups, in_channels, out_channels, taps):
        """With a bias, and rearrangements of its inputs and outputs."""
        moved = self.t * groups * (in_channels + out_channels)
        batch = self.t // self.s
        forward = Convolution(batch, groups, in_channels, out_channels, (1, self.s), (1, taps))
        backward = Convolution(batch, groups, out_channels, in_channels, (1, self.s), (1, taps))
        cycles = plan_convolution(forward, self.target, self.proportion).cycles
        self.forward.matmul += cycles
        self.forward.rearranged += moved
        self.forward.compute_sets += 4
        self.backward.matmul += plan_convolution(backward, self.target, self.proportion).cycles
        self.backward.matmul += plan_weights_gradient(forward, self.target, self.proportion).cycles
        self.backward.rearranged += 2 * moved + groups * in_channels * out_channels * taps
        self.backward.compute_sets += 8
        outputs = groups * out_channels
        self.vertex(self.forward, self.t * outputs, 0.75)
        self.vertex(self.backward, self.t * outputs, 0.5, 2)
        self.accumulate(taps * in_channels * outputs)
        self.accumulate(outputs)

    def grouped_feed_forward(self):
        self.dense(self.h, 4 * self.h)
        self.gelu()
        self.convolution(4, self.h, self.h // 4, 1)
        self.dense(self.h, self.h)

    def convolution_module(self):
        for _values_and_gates in range(2):
            self.dense(self.h, self.h)
        self.vertex(self.forward, self.e, 1.5)  # sigmoid
        self.vertex(self.backward, self.e, 1.25)
        for _gate_and_mask in range(2):
            self.vertex(self.forward, self.e, 0.75)
        for _gate_twice_mask_and_sum in range(4):
            self.vertex(self.backward, self.e, 0.75)
        self.convolution(self.h // 16, 16, 16, 7)
        self.norm()
        self.vertex(self.forward, self.e, 1.25)  # SiLU
        self.vertex(self.backward, self.e, 2.25)
        self.dense(self.h, self.h)

    def cycles(self, constants):
        tiles = self.target.tiles_per_ipu
        return 2 * self.forward.cycles(constants, tiles) + self.backward.cycles(constants, tiles)


def bert_layer(hidden, heads, tokens, length, target, proportion):
    layer = Layer(hidden, heads, tokens, length, target, proportion)
    layer.attention()
    layer.feed_forward()
    for _ in range(2):
        layer.residual(dropout=True)
        layer.norm()
    return layer


def groupbert_layer(hidden, heads, tokens, length, target, proportion):
    layer = Layer(hidden, heads, tokens, length, target, proportion)
    layer.convolution_module()
    layer.attention()
    for _ in range(2):
        layer.grouped_feed_forward()
    for _ in range(4):
        layer.residual(dropout=False)
        layer.norm()
    return layer


def stash_cycles(layers, hidden, tokens, target, constants):
    """The stage's input and every layer's output except the last are stashed and restored."""
    on_a_tile = -(-tokens * hidden // target.tiles_per_ipu)
    return layers * 2 * (constants.stash_cycles * on_a_tile + constants.compute_set_cycles)
