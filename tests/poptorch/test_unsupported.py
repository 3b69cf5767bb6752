"""Tracing refuses everything that a graph can't hold: shapes that depend on values, reads of values, complex
numbers, and operations that PopTorch lacks.
"""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import pytest
import torch

from tests.poptorch.executor_models import poptorch

X = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -6.0]])


class Runs(torch.nn.Module):
    """A model that calls a function of one tensor, which uses these modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.modules_used = torch.nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x)


def run(function, *modules):
    executor = poptorch.inferenceModel(Runs(function, *modules))
    executor(X)
    return executor(X)  # the first call compiles


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (torch.nonzero, "nonzero"),
        (lambda x: torch.nonzero(input=x, as_tuple=True), "nonzero"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: torch.masked_select(x, x > 0), "masked_select"),
        (torch.unique, "_unique2"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x.repeat_interleave((x[:, 0] + 1).int(), dim=0), "repeat_interleave"),
    ],
)
def test_a_shape_that_depends_on_values(function, operation):
    with pytest.raises(
        poptorch.Error, match=rf"Unsupported ops found in compiled model: \[aten::{operation}\]"
    ):
        run(function)


@pytest.mark.parametrize("index", [lambda x: x > 0, lambda x: (x[:, 0] > 0, 1), lambda x: (x > 0).byte()])
def test_an_index_that_is_a_mask(index):
    with pytest.raises(poptorch.Error, match=r"boolean or byte tensor masks .* cannot have dynamic shapes"):
        run(lambda x: x[index(x)])


def test_one_hot_needs_the_number_of_classes():
    with pytest.raises(poptorch.Error, match="OneHot num classes must be specified"):
        run(lambda x: torch.nn.functional.one_hot(x[0].abs().long()))


def test_complex_numbers():
    with pytest.raises(poptorch.Error, match="Complex numbers are unsupported"):
        run(lambda x: x.to(torch.complex64))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 1.0 in x,
        lambda x: f"{x[0, 0]:.2f}",
        lambda x: torch.is_nonzero(x[0, 0]),
        lambda x: x[:, : x[0, 0].int()],
        lambda x: x[x[0, 0].int()],
        lambda x: x.narrow(0, x[0, 0].int(), 1),
        lambda x: x.repeat(x[0, 0].int(), 1),
        lambda x: x * 2 if torch.allclose(x, x.abs()) else x,
        lambda x: x * 2 if torch.equal(x, x.abs()) else x,
        lambda x: torch.zeros(x[0, 0].int()),
        lambda x: torch.add(x, x, alpha=x[0, 0]),
        lambda x: torch.nn.functional.dropout(x, x[1, 0]),
    ],
)
def test_values_in_disguise(function):
    with pytest.raises(poptorch.Error, match="aten::item is only supported in eager mode"):
        run(function)


SQUARE = torch.tensor([[2.0, 1.0], [1.0, 3.0]])


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (torch.linalg.svd, "_linalg_svd"),
        (lambda x: torch.linalg.norm(x, ord="nuc"), "_linalg_svd"),
        (torch.linalg.eigh, "_linalg_eigh"),
        (torch.linalg.cholesky, "linalg_cholesky_ex"),
        (torch.inverse, "linalg_inv_ex"),
        (torch.det, "_linalg_det"),
        (lambda x: torch.multinomial(x, 1), "multinomial"),
        (lambda x: torch.distributions.Categorical(x, validate_args=False).sample(), "multinomial"),
        (torch.poisson, "poisson"),
        (torch.digamma, "digamma"),
        (lambda x: x.digamma_(), "digamma"),
        (lambda x: x.to_sparse(), "_?to_sparse"),
        (torch.fft.rfft, "_fft_r2c"),
        (torch.ops.aten.nonzero, "nonzero"),
    ],
)
@pytest.mark.parametrize("folder", ["site-packages", "program"])
def test_what_poptorch_has_none_of(function, operation, folder, tmp_path):
    path = tmp_path / folder / "calls.py"
    path.parent.mkdir()
    path.write_text("def call(function, x):\n    return function(x)\n")
    call = runpy.run_path(str(path))["call"]
    executor = poptorch.inferenceModel(Runs(lambda x: call(function, x * 1)))
    with pytest.raises(poptorch.Error, match=rf"Unsupported ops .*: \[aten::{operation}\]"):
        executor(SQUARE)


def test_the_same_of_the_hosts_constants():
    inverse = run(lambda x: x[:, :2] @ torch.linalg.inv(SQUARE).to(x.device))
    torch.testing.assert_close(inverse, X[:, :2] @ torch.linalg.inv(SQUARE))
    products = run(lambda x: torch.linalg.norm(x) * torch.linalg.matrix_power(x @ x.T, 2))
    torch.testing.assert_close(products, X.norm() * torch.linalg.matrix_power(X @ X.T, 2))


def test_the_same_with_a_fixed_shape_runs():
    def fixed(x):
        y = x.clone()
        y[y < 0] = 0.5
        one_hot = torch.nn.functional.one_hot(x[0].abs().long(), 4)
        return y, torch.where(x > 0, x, 0.0), one_hot, x[:, [True, False, True]], x.repeat(2, 1)

    for result, expected in zip(run(fixed), fixed(X)):
        assert torch.equal(result, expected.to(result.dtype))


def test_what_returns_by_name_keeps_its_names():
    largest = run(lambda x: torch.max(x, dim=1))
    assert isinstance(largest, torch.return_types.max)
    assert torch.equal(largest.values, torch.tensor([3.0, 5.0]))
    assert largest.indices.dtype is torch.int32
    shape = run(lambda x: x.shape)
    assert isinstance(shape, torch.Size) and shape == X.shape


def test_a_library_may_need_what_a_program_may_not(tmp_path):
    """Libraries newer than PopTorch read values, and create empty temporary tensors."""
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(3, 8, [2, 5])
    labels = torch.tensor([1, 6])  # no label is in the second cluster
    function = _library(tmp_path, "def function(layer, x, labels):\n    return layer(x, labels).loss\n")
    loss = run(lambda x: function(layer, x, labels.to(x.device)), layer)
    torch.testing.assert_close(loss, layer(X, labels).loss.detach())
    with pytest.raises(poptorch.Error, match=r"Unsupported ops .*\[aten::nonzero\]"):
        run(lambda x: layer(x, labels.to(x.device)).loss)


def test_the_hosts_own_tensors_may_be_read():
    """Constants that are neither parameters nor buffers stay on the host."""
    constant = torch.tensor([1.0, 0.0, 2.0])

    def reads(x):
        kept = constant.cpu().to("cpu").nonzero().flatten().to(x.device)
        part = x[:, kept] * constant.sum().item() if constant[0] else x
        return part, x[: constant[0].int()], x[constant[0].int()], x.roll(constant[0].int().item())

    expected = X[:, [0, 2]] * 3, X[:1], X[1], X.roll(1)
    assert all(torch.equal(*pair) for pair in zip(run(reads), expected))
    with pytest.raises(poptorch.Error, match="Illegal move to CPU"):
        run(lambda x: x + (x * constant.to(x.device)).cpu())


@pytest.mark.parametrize("folder", ["site-packages", "program"])
@pytest.mark.parametrize("package", ["transformers", "somebodys_library"])
def test_what_a_library_may_do_depends_on_its_name_not_on_its_folder(folder, package, tmp_path):
    """PopTorch's rules apply to all code; the simulator exempts only known libraries newer than PopTorch."""
    path = tmp_path / folder / "positive.py"
    path.parent.mkdir()
    path.write_text("def positive(x):\n    return x[x > 0]\n")
    positive = runpy.run_path(str(path), run_name=f"{package}.positive")["positive"]
    if package == "transformers":
        assert torch.equal(run(positive), torch.tensor([1.0, 3.0, 5.0]))
    else:
        with pytest.raises(poptorch.Error, match="tensor masks is unsupported"):
            run(positive)


@pytest.mark.parametrize(
    "reads",
    [
        "bool((x > 0).all())",
        "x.min().tolist() > 0",
        "len(x[x > 0]) == x.numel()",
        "torch.equal(x, x.abs())",
        "torch.allclose(x, x.abs())",
    ],
)
def test_a_library_reads_the_values_of_each_run(reads, tmp_path):
    """transformers tests whether a mask is all ones; the result may differ between runs."""
    function = _library(tmp_path, f"import torch\ndef function(x):\n    return x * 2 if {reads} else x\n")
    executor = poptorch.inferenceModel(Runs(function))
    positive = torch.ones(2)
    for x, expected in ((positive, positive * 2), (-positive, -positive), (positive, positive * 2)):
        assert torch.equal(executor(x), expected)


def _library(tmp_path, source):
    path = tmp_path / "library.py"
    path.write_text(source)
    return runpy.run_path(str(path), run_name="transformers.library")["function"]


def _line_of(function):
    return function.__code__.co_firstlineno


def test_a_library_is_warned_of_once_with_the_program_s_line(tmp_path, caplog):
    function = _library(tmp_path, "def function(x):\n    return x * 2 if (x > 0).all() and x.any() else x\n")
    forward = lambda x: function(function(x))  # noqa: E731 (one line)
    with caplog.at_level(logging.WARNING, logger="poptorch::python"):
        poptorch.inferenceModel(Runs(forward))(torch.ones(2))
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.startswith(f"{Path(__file__).name}:{_line_of(forward)}: ") and "library.py:2" in text
    assert "aten::item" in text and "IPU_SIMULATOR_STRICT=1" in text


@pytest.mark.parametrize(
    "body",
    ["x * 2 if (x > 0).all() else x", "x[x > 0]", "x.nonzero()", "x[:0].sum() + x", "x.sum().tolist()"],
)
def test_libraries_too_are_refused_where_that_is_asked_for(tmp_path, monkeypatch, body):
    function = _library(tmp_path, f"def function(x):\n    return {body}\n")
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    with pytest.raises(poptorch.Error, match=r"^In library\.py:2: 'poptorch_cpp_error'"):
        run(function)
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "0")
    run(function)


def test_poptorch_s_own_operations_may_read_values_where_libraries_may_not(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    result = run(lambda x: poptorch.cond(x.sum() > 0, lambda y: y, [x], lambda y: -y, [x])[0])
    assert torch.equal(result, X)


def test_a_package_beside_pytorch_is_not_pytorch(tmp_path):
    """Only the separator tells site-packages/torch from site-packages/torch_mine."""
    path = f"{Path(torch.__file__).parent}_mine/layers.py"
    space = {"__name__": "torch_mine.layers"}
    exec(compile("def positive(x):\n    return x[x > 0]\n", path, "exec"), space)
    with pytest.raises(poptorch.Error, match=r"^In layers\.py:2: .*tensor masks is unsupported"):
        run(space["positive"])


def test_an_error_names_the_program_s_line():
    forward = lambda x: x[x > 0]  # noqa: E731 (one line)
    with pytest.raises(poptorch.Error, match=rf"^In {Path(__file__).name}:{_line_of(forward)}: "):
        run(forward)
