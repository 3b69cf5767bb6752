"""PopTorch's private names that libraries and programs use."""

from __future__ import annotations

import contextlib
import importlib
import threading
import types

import pytest
import torch

from tests.poptorch.executor_models import Classifier, poptorch

core = poptorch.poptorch_core
args_parser = importlib.import_module("poptorch._args_parser")


# ---- errors of the C++ side


@pytest.mark.parametrize(
    ("kind", "error", "type_"),
    [
        ("Poptorch", poptorch.Error, "poptorch_cpp_error"),
        ("Popart", poptorch.Error, "popart_exception"),
        ("PopartInternal", poptorch.Error, "popart_internal_exception"),
        ("Poplibs", poptorch.Error, "poplibs_exception"),
        ("PoplarUnrecoverable", poptorch.UnrecoverableError, "poplar_unrecoverable_runtime_error"),
        ("PoplarUnknown", poptorch.Error, "poplar_unknown_runtime_error"),
        ("PoplarRecoverableFullReset", poptorch.RecoverableError, "poplar_recoverable_runtime_error"),
        ("PoplarLinkError", poptorch.Error, "poplar_link_error"),
    ],
)
def test_every_kind_of_error_can_be_provoked(kind, error, type_):
    with pytest.raises(poptorch.Error) as provoked:
        core._throwTestError(core.TestErrorType.__members__[kind])
    assert type(provoked.value) is error and provoked.value.type == type_
    assert f"'{type_}': {provoked.value.message}" in str(provoked.value)
    assert "throwTestError" in provoked.value.location and "Error raised in:\n  [0] " in str(provoked.value)
    recoverable = error is poptorch.RecoverableError
    assert getattr(provoked.value, "recovery_action", None) == ("FULL_RESET" if recoverable else None)


def test_all_kinds_are_tried():
    assert len(core.TestErrorType) == 8


# ---- where code runs


def test_the_dispatcher_compiles_while_a_forward_runs_on_the_device():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(core.isCompilingWithDispatcher())
            return x * 2

    Model()(torch.ones(1))
    poptorch.inferenceModel(Model())(torch.ones(1))
    assert seen == [False, True] and not core.isCompilingWithDispatcher()


# ---- wrapping


def test_a_wrapper_is_restored_if_it_was_taken_off():
    model = Classifier()
    poptorch.trainingModel(model)
    poptorch._impl.unwrapModelIfNecessary(model)
    assert type(model) is Classifier
    assert poptorch._impl._restoreWrapperIfNecessary(model) is model
    assert type(model).__name__ == "PoptorchClassifier"
    for thing in (Classifier(), torch.ones(1), "text"):
        before = type(thing)
        assert poptorch._impl._restoreWrapperIfNecessary(thing) is thing and type(thing) is before


# ---- options


@pytest.mark.parametrize(
    "section", ["Distributed", "Jit", "Precision", "TensorLocation", "Training", "Popart"]
)
def test_classes_of_options_have_poptorchs_names(section):
    of_options = {"TensorLocation": "TensorLocations", "Popart": "_Popart"}.get(section, section)
    options = poptorch.Options()
    assert type(getattr(options, of_options)) is getattr(poptorch.options, f"_{section}Options")


def test_an_instances_options_may_be_derived():
    class Fixed(poptorch.options._DistributedOptions):
        def disable(self):
            raise RuntimeError("not here")

    distributed = Fixed().configureProcessId(1, 4)
    assert (distributed.processId, distributed.numProcesses) == (1, 4)
    with pytest.raises(RuntimeError, match="not here"):
        distributed.disable()


# ---- arguments


class Forward(torch.nn.Module):
    def forward(self, x, y=None, *more, scale=1.0, **named):
        return x


def test_arguments_are_parsed_as_an_executor_does():
    parser = args_parser.ArgsParser(Forward())
    x, y = torch.ones(2, requires_grad=True), torch.zeros(2)
    parsed = parser((x,), {"scale": 2.0, "other": y, "y": y})
    assert len(parsed.args) == 1 and set(parsed.kwargs) == {"scale", "other", "y"}
    assert not parsed.args[0].requires_grad
    first, second, scale, other = parsed.asTuple()
    assert torch.equal(first, x) and torch.equal(second, y) and scale == 2.0 and torch.equal(other, y)
    assert len(parser((x, y, x), {}, fast_path=True).asTuple()) == 3
    with pytest.raises(poptorch.Error, match="Mandatory parameter x missing"):
        parser((), {"y": y})
    with pytest.raises(AssertionError, match="Parameter x was passed more than once"):
        parser((x,), {"x": x})


def test_batches_are_combined_position_by_position():
    batches = [[torch.full((2, 3), i), torch.tensor(i)] for i in range(3)]
    rows, numbers = poptorch._utils.combine_batch_tensors_gen(batches)
    assert rows.shape == (6, 3) and rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert numbers.tolist() == [0, 1, 2]
    (one,) = poptorch._utils.combine_batch_tensors_gen(iter([iter([torch.ones(1)])]))
    assert one.tolist() == [1]
    assert list(poptorch._utils.combine_batch_tensors_gen([])) == []
    with pytest.raises(ValueError, match=r"different numbers of tensors.*\[1, 2\]"):
        list(poptorch._utils.combine_batch_tensors_gen([[torch.ones(1)], [torch.ones(1)] * 2]))


# ---- substitution of other libraries' functions around a forward


def _host_only(x):
    raise RuntimeError("this runs on the host only")


library = types.SimpleNamespace(scaled=_host_only)
entered: list = []


class Substitution:
    """Replaces `library.scaled` by a function for the device."""

    def __enter__(self):
        entered.append(poptorch.isRunningOnIpu())
        self._original, library.scaled = library.scaled, lambda x: x * 3

    def __exit__(self, *error):
        library.scaled = self._original


class UsesLibrary(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return poptorch.identity_loss(library.scaled(x * self.weight), "mean")


@pytest.fixture
def substitution():
    manager = poptorch._poplar_executor._OverwriteContextManager
    for _ in range(2):  # a library may be imported twice
        manager.registerSubsitutionManager(Substitution)
    entered.clear()
    return manager


def test_functions_are_substituted_while_a_model_is_compiled(substitution):
    model = UsesLibrary()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    assert executor(torch.full((1,), 2.0)).item() == 6
    assert entered[0] is True and library.scaled is _host_only
    assert executor(torch.full((1,), 2.0)).item() == 6 * (1 - 6)
    with pytest.raises(RuntimeError, match="host only"):
        UsesLibrary()(torch.ones(1))


def test_a_failing_forward_undoes_the_substitution(substitution):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return library.scaled(x) / [1]

    with pytest.raises(TypeError):
        poptorch.inferenceModel(Broken())(torch.ones(1))
    assert library.scaled is _host_only


def test_a_manager_that_fails_undoes_those_before_it(substitution):
    fails = []

    @contextlib.contextmanager
    def sometimes():
        if fails:
            raise LookupError("no such function")
        yield

    substitution.registerSubsitutionManager(sometimes)
    fails.append(True)
    with pytest.raises(LookupError):
        poptorch.inferenceModel(UsesLibrary())(torch.ones(1))
    fails.clear()
    assert entered and library.scaled is _host_only


def test_a_verdict_substitutes_too(substitution):
    pytest.importorskip("torch.nn.attention")
    from poptorch import simulator

    assert simulator.verdict_of(UsesLibrary(), (torch.ones(1),)).fits
    assert library.scaled is _host_only


def test_threads_share_the_substitution(substitution):
    inside, leave = threading.Event(), threading.Event()

    class Waits(torch.nn.Module):
        def forward(self, x):
            inside.set()
            assert leave.wait(60)
            return library.scaled(x)

    results = []
    waiting = threading.Thread(
        target=lambda: results.append(poptorch.inferenceModel(Waits())(torch.ones(1)).tolist())
    )
    waiting.start()
    assert inside.wait(60)
    poptorch.inferenceModel(UsesLibrary())(torch.ones(1))  # begins and ends while the other one runs
    leave.set()
    waiting.join(60)
    assert results == [[3]] and library.scaled is _host_only
