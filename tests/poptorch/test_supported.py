"""What PopTorch compiles: each operation of PyTorch runs, or is refused as PopTorch's list says."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.poptorch.executor_models import poptorch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = json.loads((ROOT / "ipu/simulator/dropin/poptorch/_trace/supported.json").read_text())
CALLS = json.loads((ROOT / "ipu/simulator/dropin/poptorch/_trace/calls.json").read_text())["calls"]
READ = ROOT.parent / "shared" / "poptorch_operators.json"
# On torch 2.0.1 with a backend that has PopTorch's handlers.
MEASURED = json.loads((HERE / "operator_database.json").read_text())
X = torch.tensor([[1.0, -2.0, 3.0, 4.0], [0.5, 5.0, -6.0, 2.0], [1.0, 2.0, 0.0, 1.0], [7.0, 1.0, 2.0, 2.0]])


class Runs(nn.Module):
    """A model that calls a function of tensors, which uses these layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors):
        return self.function(*tensors)


def compiled(function, *tensors):
    model = function if isinstance(function, nn.Module) else Runs(function)
    executor = poptorch.inferenceModel(model)
    executor.compile(*(tensors or (X,)))
    return executor


# ---- the list


def test_each_row_of_the_table_of_calls_is_a_function_that_pytorch_has():
    newer = {
        name for name, row in CALLS.items() if any(one.get("strictly") for one in row.get("refused", ()))
    }
    owners = (torch, torch.Tensor, F, torch._C._nn, torch._VF, torch._C._linalg)
    missing = {name for name in CALLS if not any(callable(getattr(owner, name, None)) for owner in owners)}
    assert missing <= newer


@pytest.mark.skipif(not READ.exists(), reason=f"{READ} isn't there: what was read from PopTorch's sources")
def test_the_table_is_what_was_read_from_poptorchs_sources():
    read = json.loads(READ.read_text())
    ours = set(TABLE["own"]) | {name.partition("::")[2] for name in read["other_libraries"]}
    assert TABLE["handled"] == sorted(read["handlers"]) and len(TABLE["handled"]) == 285
    assert TABLE["own"] == sorted(read["operators"]) and TABLE["libraries"] == read["other_libraries"]
    assert set(TABLE["kept_whole"]) <= set(read["intercepted"])
    others = {name for name in read["intercepted"] if name not in TABLE["kept_whole"]}
    assert not [name for name in others - ours if hasattr(torch.ops.aten, name.partition(".")[0])]


def test_a_row_is_not_of_what_poptorch_has_and_its_parts_exist():
    known = {name.partition(".")[0].removesuffix("_") for name in TABLE["handled"] + TABLE["kept_whole"]}
    assert not known & set(TABLE["becomes"])
    parts = set(itertools.chain(*TABLE["becomes"].values())) - known - set(TABLE["becomes"])
    assert {name for name in parts if hasattr(torch.ops.aten, name)} == parts


def _outcomes(operation, samples=3):
    """What becomes of some samples of an entry of PyTorch's operator database: None, or the error's text."""
    types = operation.supported_dtypes("cpu")
    preferred = [torch.float32, torch.int32, torch.int64, torch.bool]
    dtype = next((one for one in preferred if one in types), None)
    if dtype is None:
        return
    usable = (
        sample
        for sample in operation.sample_inputs("cpu", dtype)
        if all(
            tensor.numel() > 0 and tensor.layout is torch.strided and not tensor.is_complex()
            for tensor in _tensors(sample)
        )
    )
    for sample in itertools.islice(usable, samples):
        given = [sample.input, list(sample.args), dict(sample.kwargs)]

        def call(*tensors, given=given):
            first, args, kwargs = _filled(given, iter(tensors))
            return operation.op(first, *args, **kwargs)

        try:
            compiled(call, *_tensors(sample))
        except poptorch.Error as error:
            yield error.message
        else:
            yield None


def _tensors(sample):
    found = []

    def find(part):
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, (list, tuple)):
            for one in part:
                find(one)

    find([sample.input, sample.args, list(sample.kwargs.values())])
    return found


def _filled(part, tensors):
    """A nest of lists, tuples and dictionaries with its tensors replaced."""
    if isinstance(part, torch.Tensor):
        return next(tensors)
    if isinstance(part, dict):
        return {key: _filled(value, tensors) for key, value in part.items()}
    if type(part) in (list, tuple):
        return type(part)(_filled(one, tensors) for one in part)
    return part


# Refused for another reason than a missing handler: values, sizes, complex numbers, restrictions.
OTHERWISE = (
    "aten::item is only supported",
    "Zero-sized tensors",
    "Complex numbers",
    "OneHot num classes",
    "aten::embedding with",
    "aten::_embedding_bag",
    "aten::convolution with transposed=True",
    "aten::bincount with minlength=0",
    "aten::nll_loss_forward with weight",
    "aten::ctc_loss with reduction='none'",
    "aten::upsample_",
    "Unsupported ops found in compiled model: [aten::triu]",  # a handler that refuses
    "aten::max_pool",
)
# Measured with the host's linspace, of which windows are made; reaches beyond its tensor, which is copied.
LEFT_OUT = ("signal.windows", "as_strided.partial_views")


@pytest.mark.slow
def test_each_operation_of_pytorch_runs_or_is_refused_as_on_an_ipu(monkeypatch):
    # Importing the database would freeze the process's backend flags.
    monkeypatch.setattr(torch.backends, "disable_global_flags", lambda: None)
    database = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db
    # For each operation the database looks for a unittest among its callers, which takes most of the time.
    monkeypatch.setattr(inspect, "stack", lambda: [])
    wrong, seen = {}, 0
    for operation in database:
        name = operation.name + (f".{operation.variant_test_name}" if operation.variant_test_name else "")
        expected = next(
            (kind for kind in ("refused", "refused_in_part", "runs") if name in MEASURED[kind]), None
        )
        if expected is None or name.startswith(LEFT_OUT):
            continue
        for outcome in _outcomes(operation):
            seen += 1
            if outcome is not None and outcome.startswith(OTHERWISE):
                continue
            refused = outcome is not None
            named = not refused or outcome.startswith("Unsupported ops found in compiled model: [aten::")
            if not named or (expected != "refused_in_part" and refused != (expected == "refused")):
                wrong[name] = outcome, expected
    assert not wrong and seen > 900


# With the inputs that PyTorch's own tests take first; recurrent layers have two layers there.
REFUSED_MODULES = set(
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d FractionalMaxPool2d FractionalMaxPool3d "
    "GaussianNLLLoss GRU HuberLoss LSTM MultiLabelMarginLoss MultiMarginLoss RNN ReflectionPad3d".split()
)


@pytest.mark.slow
def test_each_module_of_pytorch_runs_or_is_refused_as_on_an_ipu(monkeypatch):
    monkeypatch.setattr(torch.backends, "disable_global_flags", lambda: None)
    modules = pytest.importorskip("torch.testing._internal.common_modules").module_db
    refused, seen = set(), set()
    for info in modules:
        given = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
        )
        inputs = next((one for one in given if one.forward_input is not None), None)
        if inputs is None or "Lazy" in info.name:
            continue
        made = inputs.constructor_input
        module = info.module_cls(*made.args, **made.kwargs).eval()
        call = inputs.forward_input
        name = type(module).__name__
        seen.add(name)
        try:
            poptorch.inferenceModel(module).compile(*call.args, **call.kwargs)
        except poptorch.Error as error:
            assert "nsupported" in error.message or "aten::item" in error.message, name
            refused.add(name)
    assert refused == REFUSED_MODULES & seen and len(seen) > 30


@pytest.mark.skipif(not READ.exists(), reason=f"{READ} isn't there: what was read from PopTorch's guide")
def test_what_the_guide_lists_is_never_refused():
    documented = {
        name.rpartition(".")[2].removesuffix("_") for name in json.loads(READ.read_text())["documented"]
    }
    assert documented & set(MEASURED["runs"]) and not documented & set(MEASURED["refused"])
    assert documented & REFUSED_MODULES == {"GRU", "LSTM", "RNN"}  # those of two layers


# ---- restrictions of handlers

SEQUENCE = torch.ones(3, 2, 4)
IMAGE = torch.arange(32.0).reshape(1, 2, 4, 4)
LABELS = torch.tensor([0, 3, 1, 2])


@pytest.mark.parametrize(
    "layer", [nn.LSTM, nn.GRU, nn.RNN, lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)]
)
@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"num_layers": 2}, "num_layers=2"),
        ({"dropout": 0.5, "num_layers": 1}, r"dropout=0\.5"),
        ({"bidirectional": True}, "bidirectional=True"),
        ({"bias": False}, "has_biases=False"),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_recurrent_layers_have_one_layer_one_direction_and_a_bias(layer, settings, shown):
    refused = layer(4, 3, **settings)
    plain = layer(4, 3)
    assert compiled(Runs(lambda x: plain(x)[0], plain), SEQUENCE)(SEQUENCE).shape == (3, 2, 3)
    refuses = Runs(lambda x: refused(x)[0], refused)
    if layer is nn.GRU and "bias" in settings:
        torch.testing.assert_close(compiled(refuses, SEQUENCE)(SEQUENCE), refused(SEQUENCE)[0])
        return
    with pytest.raises(
        poptorch.Error, match=rf"aten::(lstm|gru|rnn_tanh|rnn_relu) with {shown} is unsupported"
    ):
        compiled(refuses, SEQUENCE)


def test_so_do_those_of_packed_sequences_and_cells_are_free():
    lengths = torch.tensor([3, 2])

    def packed(layer):
        return Runs(lambda x: layer(nn.utils.rnn.pack_padded_sequence(x, lengths))[0].data, layer)

    with pytest.raises(poptorch.Error, match="aten::lstm with num_layers=2"):
        compiled(packed(nn.LSTM(4, 3, num_layers=2)), SEQUENCE)
    cell = nn.LSTMCell(4, 3, bias=False)
    compiled(Runs(lambda x: cell(x[0])[0], cell), SEQUENCE)


@pytest.mark.parametrize(
    ("function", "runs"),
    [
        (lambda x: F.interpolate(x, scale_factor=2), True),
        (lambda x: F.interpolate(x, scale_factor=1.5), True),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), True),
        (lambda x: F.interpolate(x, size=(8, 12), mode="bilinear", align_corners=True), True),
        (lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"), True),
        (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), False),
        (lambda x: F.interpolate(x, size=(8, 6), mode="bilinear"), False),
        (lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"), False),
        (lambda x: F.interpolate(x, scale_factor=2.2, mode="bilinear"), False),
        (lambda x: F.interpolate(x[0], scale_factor=2, mode="linear"), False),
        (lambda x: F.interpolate(x[None], scale_factor=2, mode="trilinear"), False),
        (nn.UpsamplingBilinear2d(scale_factor=2), True),
        (nn.Upsample(scale_factor=3, mode="trilinear"), False),
    ],
)
def test_upsampling(function, runs):
    image = IMAGE[None] if isinstance(function, nn.Upsample) and function.mode == "trilinear" else IMAGE
    if runs:
        torch.testing.assert_close(compiled(function, image)(image), function(image))
    else:
        with pytest.raises(poptorch.Error, match=r"aten::upsample_\w+ is unsupported: .*upsampling is"):
            compiled(function, image)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: F.ctc_loss(*_ctc(x), reduction="none"), "aten::ctc_loss with reduction='none'"),
        (lambda x: nn.CTCLoss(reduction="none")(*_ctc(x)), "aten::ctc_loss with reduction='none'"),
        (lambda x: torch.ctc_loss(*_ctc(x), 0, 0), "aten::ctc_loss with reduction=0"),
        (lambda x: x.to(torch.int8) & 1, "aten::bitwise_and .*int8|aten::__and__ .*int8"),
        (
            lambda x: torch.bitwise_or(x.to(torch.int8), x.to(torch.int8)),
            "aten::bitwise_or is unsupported: .*int8",
        ),
        (lambda x: torch.bitwise_xor(x.to(torch.int8), x.int()), "aten::bitwise_xor is unsupported: .*int8"),
        (lambda x: ~x.to(torch.int8), "aten::bitwise_not is unsupported: .*int8"),
        (
            lambda x: x.to(torch.int8).bitwise_and_(x.to(torch.int8)),
            "aten::bitwise_and is unsupported: .*int8",
        ),
        (lambda x: F.embedding(LABELS.to(x.device), x, sparse=True), "aten::embedding with sparse=True"),
        (lambda x: F.embedding(LABELS.to(x.device), x, scale_grad_by_freq=True), "scale_grad_by_freq=True"),
        (lambda x: F.embedding(LABELS.to(x.device), x, max_norm=1.0), r"\[aten::embedding_renorm\]"),
        (
            lambda x: F.embedding_bag(LABELS.to(x.device)[None], x, sparse=True),
            "aten::_embedding_bag.* sparse=True",
        ),
        (
            lambda x: F.embedding_bag(LABELS.to(x.device)[None], x, padding_idx=1),
            "_embedding_bag.* padding_idx=1",
        ),
        (
            lambda x: F.cross_entropy(x, LABELS.to(x.device), weight=x[0].abs()),
            "aten::nll_loss_forward with weight=",
        ),
        (
            lambda x: F.nll_loss(x, LABELS.to(x.device), weight=x[0].abs()),
            "aten::nll_loss_forward with weight=",
        ),
        (
            lambda x: F.nll_loss(x[None, :, None], LABELS.to(x.device)[None, None], weight=x[0].abs()),
            "aten::nll_loss2d_forward with weight=",
        ),
        (lambda x: F.cross_entropy(x, LABELS.to(x.device), label_smoothing=0.1), r"\[aten::masked_select\]"),
        (lambda x: torch.bincount(x[0].abs().int()), "aten::bincount with minlength=0"),
        (torch.triu, r"\[aten::triu\]"),
        (lambda x: x.clone().triu_(), r"\[aten::triu\]"),
        (torch.tril, r"\[aten::tril\]"),
        (lambda x: x.topk(2, sorted=False), "aten::topk with sorted=False"),
        (
            lambda x: F.conv_transpose1d(x[None], x[..., None], dilation=2),
            "transposed convolutions have no dilation",
        ),
        (lambda x: F.max_pool1d(x, 2, return_indices=True), "aten::max_pool1d_with_indices is unsupported"),
        (nn.MaxPool1d(2, return_indices=True), "aten::max_pool1d_with_indices is unsupported"),
        (lambda x: x.repeat_interleave(2), r"\[aten::repeat_interleave\]"),
        (
            lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
            r"\[aten::tril\]",
        ),
        (lambda x: torch.linalg.norm(x, ord="nuc"), r"\[aten::_linalg_svd\]"),
        (lambda x: torch.linalg.norm(x, ord=2), r"\[aten::_linalg_svd\]"),
        (lambda x: x + torch.eye(4), r"\[aten::eye\]"),
        (lambda x: x + torch.linspace(0, 1, 4, device=x.device), r"\[aten::linspace\]"),
        (lambda x: x.index_add(0, LABELS.to(x.device), x), r"\[aten::index_add\]"),
        (lambda x: x.clone().lerp_(x, 0.5), r"\[aten::lerp\]"),
    ],
)
def test_what_poptorch_refuses(function, message):
    with pytest.raises(poptorch.Error, match=message):
        compiled(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gaussian_nll_loss(x, x, x.abs() + 1),
        torch.cov,
        torch.corrcoef,
        nn.BatchNorm1d(4, momentum=None),  # the average of all batches so far
    ],
)
def test_a_value_that_pytorch_reads_in_every_version(function):
    with pytest.raises(poptorch.Error, match="aten::item is only supported in eager mode"):
        compiled(function)
    compiled(nn.BatchNorm1d(4))
    compiled(nn.BatchNorm1d(4, momentum=None).eval())


def test_a_gradient_in_the_forward_is_made_of_operations_that_poptorch_lacks():
    """PopART differentiates the graph: PopTorch has no handler for PyTorch's backward operations."""
    weight = nn.Parameter(torch.ones(4))
    model = Runs(
        lambda x: poptorch.identity_loss(torch.autograd.grad(F.gelu(x * weight).sum(), weight)[0], "sum")
    )
    model.weight = weight
    with pytest.raises(poptorch.Error, match=r"\[aten::gelu_backward\]"):
        poptorch.trainingModel(model).compile(X)


def _ctc(x):
    steps = x[:, None].log_softmax(-1)
    return steps, LABELS[None, 1:2].to(x.device), torch.tensor([4]), torch.tensor([1])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.ctc_loss(*_ctc(x)),
        lambda x: F.ctc_loss(*_ctc(x), reduction="sum"),
        lambda x: x.int() & 1,
        lambda x: (x > 0) ^ (x > 1),
        lambda x: F.embedding(LABELS.to(x.device), x, padding_idx=0),
        lambda x: F.embedding_bag(LABELS.to(x.device)[None], x, mode="mean"),
        lambda x: F.cross_entropy(x, LABELS.to(x.device), ignore_index=3),
        lambda x: F.cross_entropy(x, LABELS.to(x.device), label_smoothing=0.1, reduction="sum"),
        lambda x: F.cross_entropy(x, x.softmax(1), label_smoothing=0.1, weight=x[0]),
        lambda x: F.binary_cross_entropy_with_logits(x, x.sigmoid(), weight=x[0], pos_weight=x[1]),
        lambda x: F.kl_div(x, x.softmax(1), reduction="batchmean"),
        lambda x: torch.bincount(x[0].abs().int(), minlength=8),
        lambda x: x.topk(2).values,
        lambda x: F.conv_transpose1d(x[None], x[..., None]),
        lambda x: F.max_pool1d(x, 2),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=x > 0),
        lambda x: torch.linalg.norm(x) + torch.linalg.vector_norm(x, ord=3),
        lambda x: F.interpolate(x[None, None], size=(2, 2), mode="area"),
        lambda x: F.instance_norm(x[None]) + F.layer_norm(x, (4,)) + F.group_norm(x, 2),
        lambda x: F.gelu(x.clone().fill_(2.0)) + torch.zeros_like(x) + torch.isinf(x),
        lambda x: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()(x[None]).shape,
        lambda x: nn.MultiheadAttention(4, 2).eval()(x, x, x)[0].shape,
        lambda x: torch.distributions.Normal(x, x.abs() + 1, validate_args=False).log_prob(x),
    ],
)
def test_what_runs(function):
    result, expected = compiled(function)(X), function(X)
    if isinstance(result, torch.Tensor):
        torch.testing.assert_close(result, expected, check_dtype=False)
    else:
        assert result == expected


# ---- who asks, and what is said


class Outer(nn.Module):
    """A layer inside a module."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"mask": Runs(lambda x: x.tril())})

    def forward(self, x):
        return self.inner["mask"](x * 2)


def test_the_error_names_the_operation_the_module_and_the_line():
    line = Outer.__init__.__code__.co_firstlineno + 2
    place = rf"^In {Path(__file__).name}:{line}: 'poptorch_cpp_error': "
    with pytest.raises(
        poptorch.Error,
        match=place + r"Unsupported ops found in compiled model: \[aten::tril\](.|\n)*module inner\.mask$",
    ):
        compiled(Outer())


@pytest.mark.parametrize(
    "body", ["torch.tril(x)", "torch.nn.GRU(4, 3, num_layers=2)(x)[0]", "x.topk(1, sorted=False)[0]"]
)
def test_a_library_newer_than_poptorch_may(body, tmp_path, monkeypatch, caplog):
    path = tmp_path / "layers.py"
    path.write_text(f"import torch\ndef call(x):\n    return {body}\n")
    call = runpy.run_path(str(path), run_name="transformers.layers")["call"]
    with caplog.at_level(logging.WARNING, logger="poptorch::python"):
        compiled(call)
    assert "layers.py:3" in caplog.text and "IPU_SIMULATOR_STRICT=1" in caplog.text
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    with pytest.raises(poptorch.Error, match=r"^In layers\.py:3: .*nsupported"):
        compiled(call)
    program = runpy.run_path(str(path), run_name="somebodys.layers")["call"]
    monkeypatch.delenv("IPU_SIMULATOR_STRICT")
    with pytest.raises(poptorch.Error, match="nsupported"):
        compiled(program)


def test_inference_mode_which_takes_composites_as_a_whole_changes_nothing():
    with torch.inference_mode():
        with pytest.raises(poptorch.Error, match=r"\[aten::_linalg_svd\]"):
            compiled(lambda x: x + torch.linalg.svdvals(x))
        expected = F.linear(F.layer_norm(X, (4,)), X)
        torch.testing.assert_close(compiled(lambda x: F.linear(F.layer_norm(x, (4,)), x))(X), expected)


@pytest.mark.skipif(torch.__version__ < "2.3", reason="a graph needs torch 2.3")
def test_a_graph_for_a_verdict_is_refused_alike_but_for_its_backward_pass():
    class Trained(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.layer, self.function = nn.Linear(4, 4), function

        def forward(self, x):
            return poptorch.identity_loss(self.function(self.layer(x)), "sum")

    def captured(function):
        from poptorch import simulator

        return simulator.capture(Trained(function), (X,), {}, poptorch.Options(), training=True)

    assert "gelu_backward" in {op.name for op in captured(F.gelu).ops}
    with pytest.raises(poptorch.Error, match=r"\[aten::tril\]"):
        captured(nn.Sequential(Runs(torch.tril)))
    with pytest.raises(poptorch.Error, match="aten::gru with num_layers=2"):
        captured(lambda x: nn.GRU(4, 4, 2)(x)[0])


def test_the_host_may_do_anything():
    triangle = torch.tril(torch.ones(4, 4))
    model = Runs(lambda x: x * triangle.to(x.device))
    torch.testing.assert_close(compiled(model)(X), X * triangle)
    on_host = poptorch.CPU(lambda x: torch.tril(x), "triangle")
    torch.testing.assert_close(compiled(lambda x: on_host(x))(X), X.tril())


def test_an_operation_of_another_library():
    library = torch.library.Library("tests_of_supported", "DEF")
    library.define("thrice(Tensor x) -> Tensor")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: x * 3, "CPU")
    library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
    operations = torch.ops.tests_of_supported
    with pytest.raises(poptorch.Error, match=r"\[tests_of_supported::thrice\]"):
        compiled(lambda x: operations.thrice(x))
    assert torch.equal(compiled(lambda x: operations.twice(x))(X), X * 2)
