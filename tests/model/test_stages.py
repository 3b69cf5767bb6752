from __future__ import annotations

from dataclasses import replace
from typing import List

import pytest
import torch

import ipu
from ipu.placement import placement
from model import PretrainingModel, SquadModel, StagesError, annotate
from model.heads import gather_positions
from tests.model.builders import BERT, GROUPBERT, batch, perturb

ipu.select_device("simulator")


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def blocks_of(model: torch.nn.Module) -> List[str]:
    return [repr(hook) for m in model.modules() for hook in m._forward_pre_hooks.values()]


def test_placement_of_the_published_recipe() -> None:
    blocks = placement(12, (0, 4, 4, 4), PretrainingModel.place)
    assert blocks[0] == ("Embedding", 0) and blocks[-1] == ("Classifier", 0)
    assert [ipu_id for _, ipu_id in blocks[1:-1]] == [1] * 4 + [2] * 4 + [3] * 4
    assert [name for name, _ in blocks[1:-1]] == [f"Encoder{layer}" for layer in range(12)]


def test_placement_of_a_squad_head_is_beside_the_last_layer() -> None:
    assert placement(4, (1, 3), SquadModel.place)[-1] == ("QA Outputs", 1)
    assert placement(4, (1, 3, 0), SquadModel.place)[-1] == ("QA Outputs", 1)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((3, 3, 3, 4), ["13", "12", "1 too many"]),
        ((0, 4, 4), ["8", "12", "4 too few"]),
        ((), ["0 encoder layers", "12 too few"]),
        ((13, -1), ["-1", "IPU 1"]),
        ((11.3, 0.7), ["11.3", "IPU 0", "0.5"]),
    ],
)
def test_impossible_placements(layers: tuple, words: List[str]) -> None:
    with pytest.raises(StagesError) as caught:
        placement(12, layers, PretrainingModel.place)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "factor", "nearest"),
    [(30522, 4, "3, 6"), (30522, 40000, "30522"), (96, 5, "4, 6"), (96, 0, "1")],
)
def test_slices_of_unequal_size(vocabulary: int, factor: int, nearest: str) -> None:
    model = PretrainingModel(replace(BERT, vocab_size=vocabulary))
    with pytest.raises(StagesError, match=rf"is {factor}, .*{vocabulary} .*nearest: {nearest}\)"):
        annotate(model, (0, 2), embedding_serialization_factor=factor)
    assert hooks(model) == 0


def test_a_refused_placement_changes_nothing() -> None:
    model = PretrainingModel(BERT)
    with pytest.raises(StagesError):
        annotate(model, (1, 2))
    with pytest.raises(StagesError, match="squad model has no vocabulary projection"):
        annotate(SquadModel(BERT), (1, 1), embedding_serialization_factor=2)
    assert hooks(model) == 0


def test_blocks_stand_on_the_modules() -> None:
    model = PretrainingModel(GROUPBERT)
    annotate(model, (0, 1, 1))
    assert blocks_of(model) == [
        "BeginBlock(user_id=Embedding, ipu_id=0)",
        "BeginBlock(user_id=Encoder0, ipu_id=1)",
        "BeginBlock(user_id=Encoder1, ipu_id=2)",
        "BeginBlock(user_id=Classifier, ipu_id=0)",
    ]


@pytest.mark.parametrize(("config", "second_half"), [(BERT, "feed_forward"), (GROUPBERT, "attention")])
def test_a_layer_over_two_ipus(config: object, second_half: str) -> None:
    assert placement(2, (0.5, 1.5), PretrainingModel.place) == [
        ("Embedding", 0),
        ("Encoder0", 0),
        ("Encoder0 second half", 1),
        ("Encoder1", 1),
        ("Classifier", 0),
    ]
    model = PretrainingModel(config)
    annotate(model, (0.5, 1.5))
    hooks_of_half = getattr(model.encoder.layers[0], second_half)._forward_pre_hooks.values()
    assert [repr(hook) for hook in hooks_of_half] == ["BeginBlock(user_id=Encoder0 second half, ipu_id=1)"]
    assert hooks(model) == 5 + 2 + 1


@pytest.mark.parametrize("kind", [PretrainingModel, SquadModel])
@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_annotations_change_no_number_and_go_without_a_trace(config: object, kind: type) -> None:
    model = kind(config)
    perturb(model)
    inputs = (
        batch(config) if kind is PretrainingModel else (*batch(config)[:3], torch.arange(4), torch.arange(4))
    )
    before, keys = model(*inputs), list(model.state_dict())
    factor = 3 if kind is PretrainingModel else 1
    annotations = annotate(model, (1, 1), embedding_serialization_factor=factor)
    assert hooks(model) == 4 + 2 + 1
    assert list(model.state_dict()) == keys
    for annotated, plain in zip(model(*inputs), before):
        torch.testing.assert_close(annotated, plain)
    annotations.undo()
    annotations.undo()
    assert hooks(model) == 0
    assert kind is SquadModel or model.heads.masked_lm.serialized_matmul is None
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs), before))


def test_a_squad_model_answers_on_the_simulator() -> None:
    """Without positions there is no loss, and the annotations leave the logits alone."""
    model = SquadModel(GROUPBERT)
    perturb(model)
    inputs = batch(GROUPBERT)[:3]
    expected = model.eval()(*inputs)
    annotate(model, (1, 1), recompute_checkpoint_every_layer=False)
    options = ipu.poptorch.Options()
    options.deviceIterations(2)
    executor = ipu.poptorch.inferenceModel(model, options)
    for logits, plain in zip(executor(*inputs), expected):
        torch.testing.assert_close(logits, plain.detach())


def test_only_losses_are_marked_as_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []
    monkeypatch.setattr(
        ipu.poptorch, "identity_loss", lambda x, reduction: marked.append((x.dim(), reduction)) or x
    )
    model = SquadModel(BERT)
    annotate(model, (1, 1))
    inputs = batch(BERT)[:3]
    model(*inputs)
    assert marked == []
    model(*inputs, torch.arange(4), torch.arange(4))
    assert marked == [(0, "none")]


def test_annotating_again_after_undoing() -> None:
    model = PretrainingModel(BERT)
    annotate(model, (1, 1)).undo()
    annotate(model, (0, 2), recompute_checkpoint_every_layer=False)
    assert hooks(model) == 4 + 1


def test_the_vocabulary_projection_is_serialised(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def recording(lhs: torch.Tensor, rhs: torch.Tensor, mode: object, factor: int) -> torch.Tensor:
        calls.append((tuple(lhs.shape), tuple(rhs.shape), mode, factor))
        return torch.matmul(lhs, rhs)

    monkeypatch.setattr(ipu.poptorch, "serializedMatMul", recording)
    model = PretrainingModel(BERT)
    annotate(model, (1, 1), embedding_serialization_factor=4)
    model(*batch(BERT))
    assert calls == [((20, 32), (32, 96), ipu.poptorch.MatMulSerializationMode.OutputChannels, 4)]


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_trained_on_the_simulator_and_restored(config: object) -> None:
    """The executor's step is PyTorch's, whatever the annotations; afterwards the model is plain again."""
    poptorch = ipu.poptorch
    accumulation = 5
    model, plain = PretrainingModel(config, seed=1), PretrainingModel(config, seed=1)
    annotations = annotate(model, (1, 1), embedding_serialization_factor=2)
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.5))
    micro_batches = [batch(config, seed=seed) for seed in range(accumulation)]
    outputs = executor(*(torch.cat(tensors) for tensors in zip(*micro_batches)))

    losses = [plain(*inputs)[0] for inputs in micro_batches]
    (sum(losses) / accumulation).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.5 * parameter.grad
    torch.testing.assert_close(outputs[0], torch.stack(losses).detach())

    executor.destroy()
    annotations.undo()
    assert hooks(model) == 0
    trained = model.state_dict()
    assert list(trained) == list(plain.state_dict())
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(trained[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("config", [BERT, GROUPBERT])
def test_one_hot_positions_pick_what_a_gather_picks(config: object) -> None:
    """Losses are equal to the bit, as a product with one-hot rows adds zeros; gradients up to rounding."""
    found = []
    for one_hot in (False, True):
        model = PretrainingModel(config, seed=3)
        perturb(model)
        annotations = annotate(model, (1, 1), one_hot_masked_positions=one_hot)
        outputs = model(*batch(config))
        outputs[0].backward()
        found.append((outputs, {name: weight.grad for name, weight in model.named_parameters()}))
        annotations.undo()
        assert model.heads.gather is gather_positions
    (outputs, gradients), (of_product, gradients_of_product) = found
    for one, other in zip(outputs, of_product):
        assert torch.equal(one, other)
    torch.testing.assert_close(gradients_of_product, gradients, rtol=1e-4, atol=1e-7)
