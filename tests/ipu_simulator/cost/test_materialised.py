"""Tensors whose memory on an IPU differs from their size in PyTorch."""

from __future__ import annotations

from ipu_simulator.cost.aliases import materialised

from tests.ipu_simulator.cost.graphs import Builder

TOKENS, HIDDEN, VOCABULARY = 8, 16, 128


def tied(factor: int) -> tuple[Builder, dict[str, int]]:
    """Embedding and projection by the same weight; the gradient is their sum."""
    builder = Builder((0,))
    at: dict[str, int] = {}
    at["ids"] = builder.tensor([TOKENS], "input", "input/0", dtype="int32")
    at["w"] = builder.tensor([VOCABULARY, HIDDEN], "parameter", "w")
    at["x"] = builder.tensor([TOKENS, HIDDEN])
    at["wt"] = builder.tensor([HIDDEN, VOCABULARY], base=at["w"])
    at["logits"] = builder.tensor([TOKENS, VOCABULARY])
    builder.op("embedding", [at["w"], at["ids"]], [at["x"]], module="embeddings")
    builder.op("t", [at["w"]], [at["wt"]], module="head")
    marks = {"serialization": ("OutputChannels", factor)} if factor > 1 else {}
    builder.op("mm", [at["x"], at["wt"]], [at["logits"]], module="head", **marks)
    for name, shape in (("d_projection", (HIDDEN, VOCABULARY)), ("d_x", (TOKENS, HIDDEN))):
        at[name] = builder.tensor(shape)
    at["transposed"] = builder.tensor([VOCABULARY, HIDDEN], base=at["d_projection"])
    at["d_rows"] = builder.tensor([VOCABULARY, HIDDEN])
    at["sum"] = builder.tensor([VOCABULARY, HIDDEN])
    builder.op("mm", [at["x"], at["logits"]], [at["d_projection"]], "backward", "head")
    builder.op("t", [at["d_projection"]], [at["transposed"]], "backward", "head")
    builder.op("mm", [at["logits"], at["w"]], [at["d_x"]], "backward", "head")
    builder.op("embedding_dense_backward", [at["d_x"], at["ids"]], [at["d_rows"]], "backward", "embeddings")
    builder.op("add", [at["transposed"], at["d_rows"]], [at["sum"]], "backward")
    builder.gradients[at["w"]] = at["sum"]
    return builder, at


def test_gradients_of_a_tied_weight_are_never_summed_nor_embedding_rows_spread():
    builder, at = tied(1)
    graph = builder.graph([at["ids"]])
    sizes = materialised(graph)
    assert sizes.bytes == {
        at["sum"]: 0,
        at["d_rows"]: 0,
        at["d_projection"]: 2 * VOCABULARY * HIDDEN,
    }
    assert {graph.ops[index].name for index in sizes.sums} == {"add"}


def test_of_a_serialised_weight_gradient_one_slice_lives():
    for slices, size in ((4, 1024), (3, 1366)):  # of 128 x 16 elements in float16, rounded up
        builder, at = tied(slices)
        assert materialised(builder.graph([at["ids"]])).bytes[at["d_projection"]] == size


def test_a_gradient_that_something_else_reads_too_stays():
    builder, at = tied(1)
    norm = builder.tensor([])
    builder.op("linalg_vector_norm", [at["sum"]], [norm], "backward")
    sizes = materialised(builder.graph([at["ids"]]))
    assert not sizes.sums and not sizes.bytes


def test_zeros_under_a_gradient_are_the_gradient_itself_but_constants_of_the_model_stay():
    builder = Builder((0,))
    x = builder.tensor([8, 4], "input", "input/0")
    mask, zeros = builder.tensor([8, 4], "constant"), builder.tensor([8, 4], "constant")
    y, d_x = builder.tensor([8, 4]), builder.tensor([8, 4])
    builder.op("mul", [x, mask], [y])
    builder.op("index_add", [zeros, x, y], [d_x], "backward")
    assert materialised(builder.graph([x], [y])).bytes == {zeros: 0}


def test_dropout_keeps_a_seed_instead_of_its_mask():
    builder = Builder((0,))
    x = builder.tensor([8], "input", "input/0")
    out, mask = builder.tensor([8]), builder.tensor([8], dtype="bool")
    builder.op("native_dropout", [x], [out, mask], p=0.1)
    assert materialised(builder.graph([x], [out])).bytes == {mask: 0}


def test_the_gradient_of_a_likelihood_is_one_with_that_of_its_softmax():
    def sizes(reader: str) -> dict[int, int]:
        builder = Builder((0,))
        logits, labels = builder.tensor([4, 9]), builder.tensor([4], "input", "input/0", dtype="int32")
        log_p, loss, d_log_p, d_logits = (builder.tensor([4, 9]) for _ in range(4))
        builder.op("_log_softmax", [logits], [log_p])
        builder.op("nll_loss_forward", [log_p, labels], [loss])
        builder.op("nll_loss_backward", [log_p, labels], [d_log_p], "backward")
        builder.op(reader, [d_log_p, log_p], [d_logits], "backward")
        assert d_log_p == 4
        return dict(materialised(builder.graph([labels], [loss])).bytes)

    assert sizes("_log_softmax_backward_data") == {4: 0}
    assert sizes("mul") == {}
