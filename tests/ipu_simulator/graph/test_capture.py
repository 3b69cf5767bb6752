from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from ipu_simulator.graph.recorder import Place, Recorder, Scope
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import model as models
from tests.ipu_simulator.graph.programs import (
    BERT,
    GROUPBERT,
    captured,
    captured_pretraining,
    names,
    options,
    poptorch,
    pretraining,
)
from tests.model.builders import VARIANTS, batch

TOKENS = 4 * 20


def flops(graph, phase: str) -> int:
    """Of products and convolutions, from shapes alone."""
    total = 0
    for op in graph.ops:
        shapes = [graph.tensors[number].shape for number in op.inputs]
        outputs = [graph.tensors[number].shape for number in op.outputs]
        if op.phase != phase:
            continue
        if op.name in ("mm", "bmm"):
            total += 2 * math.prod(outputs[0]) * shapes[0][-1]
        elif op.name == "addmm":
            total += 2 * math.prod(outputs[0]) * shapes[1][-1]
        elif op.name == "convolution":
            total += 2 * math.prod(outputs[0]) * math.prod(shapes[1][1:])
        elif op.name == "convolution_backward":
            # Once for the gradient of the input, once for that of the weight.
            total += 4 * math.prod(shapes[0]) * math.prod(shapes[2][1:])
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_what_torch_counts_forward_and_twice_that_backward(name: str) -> None:
    config = VARIANTS[name]
    graph = captured_pretraining(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.PretrainingModel(config)
        model(*(tensor.to("meta") for tensor in batch(config)))
    assert flops(graph, "forward") == counter.get_total_flops()
    assert flops(graph, "backward") == 2 * flops(graph, "forward")


@pytest.mark.parametrize("name", ["bert_base", "groupbert_base"])
def test_flops_of_the_named_points_are_the_formula_s(name: str) -> None:
    config = models.PRESETS[name]
    model = pretraining(config, layers_per_ipu=(0, 4, 4, 4), half=True)
    shapes = [(2, 128)] * 3 + [(2, 20)] * 2 + [(2,)]
    graph = captured(model, *(torch.zeros(shape, dtype=torch.int32) for shape in shapes))
    assert flops(graph, "forward") == 2 * models.flops_per_sequence(config, 128, 20)
    assert sum(tensor.elements for tensor in graph.parameters) == models.count_parameters(model)


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_every_parameter_is_there_once_and_has_a_gradient(config: models.ModelConfig) -> None:
    graph = captured_pretraining(config)
    model = models.PretrainingModel(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in graph.parameters} == expected
    assert set(graph.gradients) == {tensor.id for tensor in graph.parameters}


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_gradients_stand_where_their_forward_operations_stand(config: models.ModelConfig) -> None:
    graph = captured_pretraining(config)
    places = {(op.module, op.stage, op.ipu, op.segment) for op in graph.ops if op.phase == "forward"}
    assert {(op.module, op.stage, op.ipu, op.segment) for op in graph.ops if op.phase == "backward"} <= places
    for index, layer in enumerate(models.PretrainingModel(config).encoder.layers):
        for name, module in layer.named_modules():
            path = f"encoder.layers.{index}.{name}"
            if isinstance(module, torch.nn.Linear):
                assert names(graph, "forward", path).count("addmm") == 1
                assert names(graph, "backward", path).count("mm") == 2
            if isinstance(module, torch.nn.LayerNorm):
                assert names(graph, "forward", path) == ["native_layer_norm"]
                assert "native_layer_norm_backward" in names(graph, "backward", path)
        of_layer = [op for op in graph.ops if op.module.startswith(f"encoder.layers.{index}")]
        assert {(op.stage, op.ipu) for op in of_layer} == {(index + 1, index + 1)}


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_weights_with_and_without_memory_give_the_same_graph(config: models.ModelConfig) -> None:
    without_memory = captured_pretraining(config)
    assert captured_pretraining(config, without_memory=False) == without_memory
    with FakeTensorMode():
        fake = pretraining(config, without_memory=False)
    assert captured(fake, *batch(config)) == without_memory


def test_nothing_about_the_model_changes() -> None:
    model = pretraining(GROUPBERT, without_memory=False)
    inputs = batch(GROUPBERT)
    model.register_buffer("steps", torch.tensor(3))
    members = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.clone() for name, tensor in members.items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    random_states = torch.get_rng_state(), random.getstate()
    mkldnn = torch.backends.mkldnn.enabled
    before = [tensor.clone() for tensor in inputs]

    captured(model, *inputs)

    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(now) == list(members)
    for name, tensor in now.items():
        assert tensor is members[name]
        assert torch.equal(tensor, values[name])
        assert tensor.grad is None
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    assert torch.equal(random_states[0], torch.get_rng_state()) and random_states[1] == random.getstate()
    assert all(torch.equal(a, b) for a, b in zip(before, inputs))
    assert torch.backends.mkldnn.enabled == mkldnn


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = pretraining(BERT, without_memory=False)
    weight = model.heads.pooler.weight
    with pytest.raises(ValueError, match="position embeddings"):
        captured(model, *(torch.zeros(2, 30, dtype=torch.int32) for _ in range(5)), torch.zeros(2))
    assert model.heads.pooler.weight is weight
    assert captured(model, *batch(BERT)) == captured_pretraining(BERT)


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_float16_changes_types_and_casts_alone(config: models.ModelConfig) -> None:
    def skeleton(graph) -> list:
        return [
            (op.name, op.phase, op.module, op.stage, [graph.tensors[number].shape for number in op.outputs])
            for op in graph.ops
            if op.name not in ("_to_copy", "alias")
        ]

    half, single = captured_pretraining(config, half=True), captured_pretraining(config)
    assert skeleton(half) == skeleton(single)
    assert {tensor.dtype for tensor in half.parameters} == {"float16"}
    assert {tensor.dtype for tensor in single.tensors} == {"float32", "int32", "bool"}
    # A loss is summed in float32; everything as large as a hidden state is float16.
    large = [tensor for tensor in half.tensors if tensor.elements >= TOKENS * config.hidden_size]
    assert {tensor.dtype for tensor in large} == {"float16"}


def test_dropout_is_one_operation_each_way() -> None:
    graph = captured_pretraining(replace(BERT, hidden_dropout=0.1, attention_dropout=0.0))
    dropouts = [op for op in graph.ops if op.name == "native_dropout"]
    # Embeddings, and in each of two layers after attention and feed-forward.
    assert len(dropouts) == 5
    assert {op.attributes["p"] for op in dropouts} == {0.1}
    assert all(len(op.inputs) == len(op.outputs) == 1 for op in dropouts)
    assert names(graph, "backward").count("native_dropout_backward") == 5
    assert not {"bernoulli", "empty_like"} & set(names(graph, "forward"))


def test_inference_has_no_dropout_and_no_backward_pass() -> None:
    model = pretraining(replace(BERT, hidden_dropout=0.1)).eval()
    graph = captured(model, *batch(BERT), training=False)
    assert not graph.training
    assert {op.phase for op in graph.ops} == {"forward"}
    assert "native_dropout" not in names(graph, "forward")
    assert len(graph.outputs) == len(models.PRETRAINING_OUTPUTS)


def test_stages_begin_where_the_ipu_changes() -> None:
    graph = captured_pretraining(BERT, layers_per_ipu=(0, 1, 1))
    assert graph.stage_ipus == (0, 1, 2, 0)
    assert graph.num_ipus == 3
    assert {op.stage for op in graph.ops if op.module.startswith("heads")} == {3}
    # There is no pipeline on a single IPU.
    assert captured_pretraining(BERT, layers_per_ipu=(2,)).stage_ipus == (0,)


def test_checkpoints_end_segments() -> None:
    graph = captured_pretraining(BERT, layers_per_ipu=(0, 2))
    outputs = {op.outputs[0] for op in graph.ops if op.name == "native_layer_norm" and "layers" in op.module}
    assert len(graph.checkpoints) == 2
    assert graph.checkpoints <= outputs
    for index in range(2):
        of_layer = [op for op in graph.ops if op.module.startswith(f"encoder.layers.{index}")]
        assert {op.segment for op in of_layer} == {index}
    assert not captured_pretraining(BERT, checkpoints=False).checkpoints


def test_a_serialised_product_is_marked_forward_and_backward() -> None:
    graph = captured_pretraining(BERT, serialization=2)
    marked = Counter(
        (op.name, op.phase) for op in graph.ops if op.attributes.get("serialization") == ("OutputChannels", 2)
    )
    assert marked["mm", "forward"] == 1
    assert marked["mm", "backward"] == 2
    assert not any("serialization" in op.attributes for op in captured_pretraining(BERT, serialization=1).ops)


def test_constants_are_computed_by_the_compiler() -> None:
    graph = captured_pretraining(BERT)
    # The head's first rows of sequences: arange times the number of tokens.
    assert "arange" not in names(graph, "forward")
    rows = [tensor for tensor in graph.tensors if tensor.role == "constant" and tensor.shape == (4, 1)]
    assert rows and {tensor.dtype for tensor in rows} == {"int32"}


def test_errors_of_a_compilation_are_those_of_a_capture() -> None:
    too_shallow = options()
    too_shallow.Training.gradientAccumulation(2)
    with pytest.raises(Exception, match="must be greater than or equal to the number of pipeline stages"):
        captured(pretraining(BERT), *batch(BERT), made=too_shallow)


def test_a_tensor_made_on_the_device_of_another_is_on_the_device_in_a_capture_too() -> None:
    class Offsets(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * 2
            return poptorch.identity_loss(self.linear(x) + rows, "sum")

    captured(Offsets(), torch.ones(2, 3))


def test_storages_tell_memories_apart_even_where_elements_have_none():
    """Empty tensors and those of the meta device all have elements at address 0."""
    recorder = Recorder(lambda: Place(0, 0), {})
    whole = torch.arange(6.0)
    views = [whole, whole[2:], whole.view(2, 3), whole.detach()]
    assert len({recorder.value(view).address for view in views}) == 1
    others = [torch.empty(0), torch.empty(0), torch.ones(0, 3)]
    others += [torch.empty(3, device="meta"), torch.empty(3, device="meta")]
    assert len({recorder.value(tensor).address for tensor in [whole, *others]}) == 1 + len(others)


def test_scopes_and_marks_nest() -> None:
    """A named scope ends with its module's call at the latest, and never ends the module's own scope."""
    seen = []

    class Inner(torch.nn.Module):
        def forward(self) -> None:
            recorder.leave_scope()  # entered outside: stays
            seen.append((recorder.module_path, recorder.where().scopes))
            recorder.enter_scope("left open")

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self) -> None:
            recorder.enter_scope("part")
            self.inner()
            seen.append((recorder.module_path, recorder.where().scopes))
            recorder.leave_scope()
            seen.append((recorder.module_path, recorder.where().scopes))

    outer = Outer()
    recorder = Recorder(lambda: Place(0, 0), {id(outer): "", id(outer.inner): "inner"})
    with recorder.in_modules():
        outer()
    model, part, inner = Scope("", True), Scope("part", False), Scope("inner", True)
    assert seen == [("inner", (model, part, inner)), ("", (model, part)), ("", (model,))]
    assert recorder.module_path is None and recorder.where().scopes == ()
    with recorder.marked(a=1, b=2), recorder.marked(b=3):
        assert recorder.where().marks == {"a": 1, "b": 3}
    assert recorder.where().marks == {}
