"""Custom operations: PyTorch functions instead of PopART's code."""

from __future__ import annotations

import textwrap

import pytest
import torch

from tests.poptorch.executor_models import poptorch
from tests.poptorch.test_front_door import door, write

FUNCTIONS = """
    import torch

    def cube(inputs, attributes):
        (x,) = inputs
        float(x.detach().sum())  # the device's own work may look at values
        return x**3 * attributes.get("scale", 1.0)

    CUSTOM_OPS = {
        ("Cube", "com.acme", 1): cube,
        ("Sum", "com.acme", 1): lambda inputs, attributes: inputs[0].sum(),
        ("Text", "com.acme", 1): lambda inputs, attributes: [inputs[0], "text"],
        ("Split", "com.acme", 2): lambda inputs, attributes: [inputs[0] + 1, inputs[0].argmax().int()],
    }
"""


class Cubed(torch.nn.Module):
    """scale * weight^3, and its sum as the loss."""

    def __init__(self, version=1, example=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.version, self.example = version, example

    def forward(self, scale):
        example = self.weight if self.example is None else self.example
        (cubed,) = poptorch.custom_op(
            [self.weight * scale], "Cube", "com.acme", self.version, [example], attributes={"scale": 2.0}
        )
        return cubed, poptorch.identity_loss(cubed, "sum")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    path = tmp_path / "functions.py"
    path.write_text(textwrap.dedent(FUNCTIONS))
    monkeypatch.setenv("IPU_SIMULATOR_CUSTOM_OPS", str(path))
    return path


def test_poptorchs_own_gather_needs_no_function():
    class Gathers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]]))

        def forward(self, places):
            example = torch.zeros_like(places).to(self.table.dtype)
            (taken,) = poptorch.custom_op(
                [self.table, places], "FastGatherLastDim", "poptorch.custom_ops", 1, [example], {"axis": -1}
            )
            return taken, poptorch.identity_loss(taken, "sum")

    model = Gathers()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))
    taken, _ = executor(torch.tensor([[2, 0, 2, 2]]))
    assert torch.equal(taken, torch.tensor([[3.0, 1.0, 3.0, 3.0]]))
    assert torch.equal(model.table.detach(), torch.tensor([[0.5, 2.0, 1.5]]))


def test_the_function_computes_and_trains(functions):
    model = Cubed()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.1))
    cubed, loss = executor(torch.ones(2))
    assert torch.equal(cubed, torch.tensor([2.0, -16.0])) and loss == -14.0
    # The gradient is 2 * 3 w^2 = [6, 24].
    torch.testing.assert_close(model.weight.detach(), torch.tensor([0.4, -4.4]))
    assert torch.equal(Cubed()(torch.ones(2))[0], torch.zeros(2))  # on the host, zeros


def test_several_outputs_of_several_types(functions):
    class Splits(torch.nn.Module):
        def forward(self, x):
            examples = (x, torch.zeros((), dtype=torch.int64))
            return poptorch.custom_op((x,), "Split", "com.acme", 2, examples)

    more, place = poptorch.inferenceModel(Splits())(torch.tensor([1.0, 5.0, 2.0]))
    assert torch.equal(more, torch.tensor([2.0, 6.0, 3.0]))
    assert place == 1 and place.dtype is torch.int32


class Custom(torch.nn.Module):
    """One custom operation of one input."""

    def __init__(self, name, examples, **attributes):
        super().__init__()
        self.name, self.examples, self.attributes = name, examples, attributes

    def forward(self, x):
        examples = [x if example is None else example for example in self.examples]
        return poptorch.custom_op([x], self.name, "com.acme", 1, examples, attributes=self.attributes)


def test_shapes_and_types_are_the_operations_not_the_examples(functions):
    for example in (None, torch.zeros(7), torch.zeros(1, dtype=torch.int32)):
        executor = poptorch.inferenceModel(Custom("Sum", [example]))
        for _ in range(2):  # the first call compiles
            (total,) = executor(torch.tensor([1.0, 2.0, 4.0]))
            assert total.shape == () and total == 7.0 and total.dtype is torch.float32
    (cubed,) = poptorch.inferenceModel(Custom("Cube", [torch.zeros(5).half()]))(torch.ones(2, 2))
    assert torch.equal(cubed, torch.ones(2, 2))


def test_the_number_of_outputs_is_the_examples(functions):
    with pytest.raises(poptorch.Error, match=r"has 2 example_outputs, but its function returns 1"):
        poptorch.inferenceModel(Custom("Sum", [None, None]))(torch.ones(2))
    with pytest.raises(poptorch.Error, match=r"output 1 of its function is a <class 'str'>"):
        poptorch.inferenceModel(Custom("Text", [None, None]))(torch.ones(2))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1e39, poptorch.Error, r"1e\+39 is too high for a Popart float attribute\."),
        ([0.5, -1e39], poptorch.Error, r"-1e\+39 is too low for a Popart float attribute\."),
        (float("inf"), poptorch.Error, "inf is too high"),
        ("naïve", ValueError, "aren't ASCII"),
        (["plain", "größer"], ValueError, "aren't ASCII"),
        (2**63, ValueError, "beyond 64 bits"),
    ],
)
def test_attributes_are_what_popart_can_hold(functions, value, error, message, on_device):
    call = poptorch.inferenceModel(Custom("Cube", [None], scale=value)) if on_device else None
    with pytest.raises(error, match=message):
        (call or Custom("Cube", [None], scale=value))(torch.ones(2))


def test_attributes_at_the_limits_pass(functions):
    limits = {
        "low": -3.4028234e38,
        "tiny": 1e-300,
        "nan": float("nan"),
        "big": 2**63 - 1,
        "text": "~",
        "yes": True,
    }
    (cubed,) = poptorch.inferenceModel(Custom("Cube", [None], **limits))(torch.ones(2))
    assert torch.equal(cubed, torch.ones(2))
    with pytest.raises(ValueError, match="aren't ASCII"):
        poptorch.custom_op([torch.ones(1)], "Cube", "com.acme", 1, [torch.ones(1)], attributes={"é": 1})


@pytest.mark.parametrize(
    ("data", "indices", "message"),
    [
        (torch.ones(2, 3), torch.zeros(3, dtype=torch.int32), r"got \[2, 3\] and \[3\]"),
        (torch.ones(2, 3), torch.zeros(1, 3, dtype=torch.int32), r"got \[2, 3\] and \[1, 3\]"),
        (torch.ones(2, 4, 3), torch.zeros(2, 3, 3, dtype=torch.int32), r"\[2, 4, 3\] and \[2, 3, 3\]"),
        (torch.ones(2, 3), torch.zeros(2, 3), "indices must be integers, not torch.float32"),
    ],
)
def test_the_gather_takes_equal_dimensions_but_the_last(data, indices, message):
    class Gathers(torch.nn.Module):
        def forward(self, table, places):
            return poptorch.custom_op([table, places], "FastGatherLastDim", "poptorch.custom_ops", 1, [table])

    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Gathers())(data, indices)


def test_without_a_function_the_error_says_how_to_bring_one(functions, monkeypatch):
    with pytest.raises(poptorch.Error, match=r"com\.acme\.Cube \(version 7\) .*functions\.py has none"):
        poptorch.inferenceModel(Cubed(version=7))(torch.ones(2))
    monkeypatch.delenv("IPU_SIMULATOR_CUSTOM_OPS")
    with pytest.raises(poptorch.Error, match=r"written for PopART: .* --custom-ops FILE\.py SCRIPT"):
        poptorch.inferenceModel(Cubed())(torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "KeyError: 'CUSTOM_OPS'"),
        ("1/0", "ZeroDivisionError"),
        ("CUSTOM_OPS = [1]", "must be a dictionary"),
    ],
)
def test_a_file_that_cant_be_used_is_named(tmp_path, monkeypatch, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    monkeypatch.setenv("IPU_SIMULATOR_CUSTOM_OPS", str(path))
    with pytest.raises(poptorch.Error, match=rf"broken\.py: .*{message}"):
        poptorch.inferenceModel(Cubed())(torch.ones(2))


@pytest.mark.slow
def test_the_command_brings_the_file(tmp_path):
    write(tmp_path / "ops.py", FUNCTIONS)
    script = write(
        tmp_path / "script.py",
        """
        import sys, poptorch, torch

        class Model(torch.nn.Module):
            def forward(self, x):
                return poptorch.custom_op([x], "Cube", "com.acme", 1, [x])[0]

        print(sys.argv[1:], poptorch.inferenceModel(Model())(torch.tensor([3.0])).item())
        """,
    )
    result = door("--custom-ops", "ops.py", script, "--lr", "1", folder=tmp_path)
    assert result.stdout == "['--lr', '1'] 27.0\n"
    result = door("--custom-ops", "none.py", script, folder=tmp_path, status=2)
    assert "there is no file 'none.py'" in result.stderr
    assert "--custom-ops needs a file" in door("--custom-ops", folder=tmp_path, status=2).stderr
