"""A model that is attached holds its IPUs: others can't have them until it lets go."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from tests.poptorch.executor_models import Classifier, batch, poptorch


class OnTwoIpus(torch.nn.Module):
    """Two blocks on two IPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = poptorch.BeginBlock(torch.nn.Linear(4, 4), ipu_id=0)
        self.second = poptorch.BeginBlock(torch.nn.Linear(4, 4), ipu_id=1)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture(autouse=True)
def pod4(monkeypatch):
    """A machine of four IPUs, of which no other test's model holds one."""
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", "pod4")


def on(ipus, model=None, **settings):
    """An inference model that needs this many IPUs, with the options' setters in `settings`."""
    options = poptorch.Options().replicationFactor(ipus)
    for name, value in settings.items():
        getattr(options, name)(value)
    return poptorch.inferenceModel(torch.nn.Linear(4, 2) if model is None else model, options)


def x(ipus):
    return torch.ones(ipus, 4)


def test_training_and_then_evaluating_needs_a_detached_training_model():
    model = Classifier()
    options = poptorch.Options().replicationFactor(4)
    training = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
    validation = poptorch.inferenceModel(model, options)
    training(*batch(4))
    with pytest.raises(poptorch.Error) as refused:
        validation(*batch(4))
    text = str(refused.value)
    assert refused.value.type == "poptorch_cpp_error"
    assert "Failed to acquire 4 IPU(s)" in text and "detachFromDevice()" in text
    assert "pod4 has 4 IPUs: the training model of Classifier holds 4 IPU(s)" in text
    assert not validation.isCompiled() and not validation.isAttachedToDevice()
    training.detachFromDevice()
    validation(*batch(4))
    with pytest.raises(poptorch.Error, match=r"the inference model of Classifier holds 4"):
        training(*batch(4))
    validation.detachFromDevice()
    assert not training.isAttachedToDevice()
    training(*batch(4))
    assert training.isAttachedToDevice()


def test_a_refused_training_model_compiles_later_with_its_optimizers_state():
    taken = on(4)
    taken(x(4))
    model = Classifier()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    training = poptorch.trainingModel(model, poptorch.Options(), optimizer)
    for _ in range(2):
        with pytest.raises(poptorch.Error, match=r"Failed to acquire 1 IPU\(s\)"):
            training(*batch(2))
    assert optimizer.state_dict()["ipu_state"] is None
    taken.destroy()
    training(*batch(2))
    assert optimizer.state_dict()["ipu_state"] is not None


@pytest.mark.parametrize(
    "let_go",
    [
        lambda model: model.detachFromDevice(),
        lambda model: model.destroy(),
        lambda model: model.__dict__.clear(),
    ],
    ids=["detach", "destroy", "collected"],
)
def test_releasing(let_go):
    first = on(4)
    first.compile(x(4))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        on(2)(x(2))
    let_go(first)
    on(4)(x(4))


def test_a_model_that_is_no_longer_used_holds_nothing():
    for _ in range(5):
        model = Classifier()
        poptorch.trainingModel(model, poptorch.Options().replicationFactor(4))(*batch(4))


def test_models_share_the_machine_as_far_as_it_reaches():
    models = [on(1), on(1), on(2)]
    for model, ipus in zip(models, (1, 1, 2)):
        model(x(ipus))
    with pytest.raises(poptorch.Error) as refused:
        on(1)(x(1))
    text = str(refused.value)
    assert text.count("the inference model of Linear holds 1 IPU(s)") == 2 and "holds 2 IPU(s)" in text
    # The free IPU 0 isn't half of a device with two: those are 0 and 1, 2 and 3.
    models[0].detachFromDevice()
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)"):
        on(2)(x(2))
    models[1].detachFromDevice()
    on(2)(x(2))


def test_a_model_on_three_ipus_holds_four():
    on(3, autoRoundNumIPUs=True).compile(x(3))
    kept = on(3, autoRoundNumIPUs=True)
    kept.compile(x(3))
    with pytest.raises(poptorch.Error, match=r"holds 4 IPU\(s\)"):
        on(1)(x(1))


def test_ipus_of_blocks_count_for_each_replica():
    kept = on(2, OnTwoIpus(), deviceIterations=2)
    kept(x(4))
    with pytest.raises(poptorch.Error, match=r"model of OnTwoIpus holds 4 IPU\(s\)"):
        on(1)(x(1))


def test_attaching_by_hand_is_refused_too():
    first, second = on(4), on(4)
    first(x(4))
    first.detachFromDevice()
    second(x(4))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        first.attachToDevice()
    assert not first.isAttachedToDevice()


# ids of pod4's devices: 0 to 3 have one IPU, 4 and 5 two, 6 all four
def test_a_device_by_its_id_is_taken_once():
    first, second = on(1, useIpuId=2), on(1, useIpuId=2)
    first(x(1))
    with pytest.raises(poptorch.Error, match=r"Failed to acquire device Id: 2\n.*Linear holds 1 IPU"):
        second(x(1))
    on(1, useIpuId=3)(x(1))
    first.detachFromDevice()
    second(x(1))


@pytest.mark.parametrize(
    ("taken", "ipus", "overlapping", "apart"), [(0, 1, 4, 5), (5, 2, 3, 1), (1, 1, 6, 2)]
)
def test_devices_that_share_an_ipu_exclude_each_other(taken, ipus, overlapping, apart):
    kept = on(ipus, useIpuId=taken)
    kept(x(ipus))
    with pytest.raises(poptorch.Error, match=f"Failed to acquire device Id: {overlapping}"):
        on(1, useIpuId=overlapping)(x(1))
    on(1, useIpuId=apart)(x(1))


def test_a_model_without_an_id_takes_what_ids_have_left():
    kept = [on(1, useIpuId=0), on(1)]
    for model in kept:
        model(x(1))
    with pytest.raises(poptorch.Error, match="device Id: 1"):
        on(1, useIpuId=1)(x(1))
    on(2)(x(2))


@pytest.mark.parametrize("unknown", [7, 100, -1])
def test_an_id_that_the_machine_lacks(unknown):
    with pytest.raises(poptorch.Error, match=rf"Failed to acquire device Id: {unknown}\n.*ids 0 to 6"):
        on(1, useIpuId=unknown)(x(1))


def test_a_device_with_too_few_ipus():
    with pytest.raises(poptorch.Error, match=r"device Id: 1\nIt has 1 IPUs, the model needs 2: .* 4"):
        on(2, useIpuId=1)(x(2))


def test_offline_models_and_the_ipu_model_hold_nothing():
    options = poptorch.Options().replicationFactor(4).useOfflineIpuTarget()
    for _ in range(2):
        poptorch.inferenceModel(torch.nn.Linear(4, 2), options).compile(x(4))
    models = [on(1, useIpuModel=True) for _ in range(5)]
    for model in models:
        model(x(1))
    on(4)(x(4))


def test_a_loaded_executable_holds_the_ipus_it_was_compiled_for(tmp_path):
    compiled = on(2, OnTwoIpus(), deviceIterations=2)
    compiled.compile(x(4))
    compiled.save(str(tmp_path / "model.poptorch"))
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 4 IPU\(s\)"):
        poptorch.load(str(tmp_path / "model.poptorch"))
    expected = compiled(x(4))
    compiled.detachFromDevice()
    loaded = poptorch.load(str(tmp_path / "model.poptorch"))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        compiled(x(4))
    assert torch.equal(loaded(x(4)), expected)


def test_a_loaded_executable_needs_a_large_enough_machine(tmp_path, monkeypatch):
    compiled = on(4)
    compiled.compileAndExport(str(tmp_path / "model.poptorch"), x(4))
    compiled.destroy()
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", "pod16")
    eight = on(8)
    eight.compileAndExport(str(tmp_path / "eight.poptorch"), x(8))
    eight.destroy()
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", "pod4")
    poptorch.load(str(tmp_path / "model.poptorch")).destroy()
    with pytest.raises(poptorch.Error, match=r"No device found on the system with 8 IPUs"):
        poptorch.load(str(tmp_path / "eight.poptorch"))


def test_processes_share_the_machine():
    def in_process(index, processes, replicas):
        options = poptorch.Options().replicationFactor(replicas)
        options.Distributed.configureProcessId(index, processes)
        return poptorch.inferenceModel(torch.nn.Linear(4, 2), options)

    first, other = in_process(0, 2, 2), in_process(1, 2, 2)
    first(x(2))
    with pytest.raises(poptorch.Error, match="of which each of 2 processes has 2: the inference model"):
        in_process(0, 2, 2)(x(2))
    other(x(2))
    with pytest.raises(poptorch.Error, match="each of 3 processes has 1; IPU_SIMULATOR_TARGET"):
        in_process(0, 3, 2)(x(2))


def test_waiting_for_ipus_is_refused_because_it_would_never_end(monkeypatch):
    monkeypatch.setenv("POPTORCH_WAIT_FOR_IPU", "1")
    kept = on(4)
    kept(x(4))
    with pytest.raises(poptorch.Error, match="POPTORCH_WAIT_FOR_IPU makes the program wait"):
        on(1)(x(1))


def test_threads_take_different_ipus():
    models = [on(1) for _ in range(8)]
    barrier = threading.Barrier(8)
    refused = []

    def run(model):
        barrier.wait(60)
        try:
            model.compile(x(1))
        except poptorch.Error:
            refused.append(model)

    threads = [threading.Thread(target=run, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_attached_model_holds_nothing(copied):
    model = on(4)
    model(x(4))
    other = copied(model)
    model.detachFromDevice()
    on(4).compile(x(4))
    other.detachFromDevice()
