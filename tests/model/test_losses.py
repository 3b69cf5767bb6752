from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import PRETRAINING_OUTPUTS, PretrainingModel, SquadModel
from model.heads import mean_cross_entropy
from tests.model.builders import GROUPBERT, batch, perturb
from tests.old_hosts import needs_float16_on_cpu


def perturbed(head: type) -> torch.nn.Module:
    model = head(GROUPBERT)
    perturb(model)
    return model


def test_outputs_by_name() -> None:
    model = perturbed(PretrainingModel)
    inputs = batch(GROUPBERT)
    outputs = dict(zip(PRETRAINING_OUTPUTS, model(*inputs)))
    assert len(outputs) == len(model(*inputs))
    mlm_logits, nsp_logits = model.logits(*inputs[:4])
    labels, next_sentence = inputs[4].flatten().long(), inputs[5].long()
    kept, kept_nsp = labels >= 0, next_sentence >= 0
    mlm_loss = F.cross_entropy(mlm_logits[kept], labels[kept])
    nsp_loss = F.cross_entropy(nsp_logits[kept_nsp], next_sentence[kept_nsp])
    expected = {
        "loss": mlm_loss + nsp_loss,
        "mlm_loss": mlm_loss,
        "nsp_loss": nsp_loss,
        "mlm_correct": (mlm_logits[kept].argmax(-1) == labels[kept]).sum().float(),
        "mlm_count": torch.tensor(12.0),
        "nsp_correct": (nsp_logits[kept_nsp].argmax(-1) == next_sentence[kept_nsp]).sum().float(),
        "nsp_count": torch.tensor(3.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_correct_ones_are_counted() -> None:
    """With the likeliest tokens as labels all of the real ones are right."""
    model = perturbed(PretrainingModel)
    inputs = list(batch(GROUPBERT))
    mlm_logits, nsp_logits = model.logits(*inputs[:4])
    real = inputs[4] >= 0
    inputs[4] = torch.where(real, mlm_logits.argmax(-1).view(4, 5), -100)
    inputs[5] = nsp_logits.argmax(-1)
    outputs = dict(zip(PRETRAINING_OUTPUTS, model(*inputs)))
    assert outputs["mlm_correct"] == outputs["mlm_count"] == 12
    assert outputs["nsp_correct"] == outputs["nsp_count"] == 4
    inputs[4] = torch.where(real, (inputs[4] + 1) % GROUPBERT.vocab_size, -100)
    assert model(*inputs)[3] == 0


def test_a_batch_without_labels_costs_nothing() -> None:
    model = perturbed(PretrainingModel)
    inputs = list(batch(GROUPBERT))
    inputs[4], inputs[5] = torch.full_like(inputs[4], -100), torch.full_like(inputs[5], -100)
    outputs = model(*inputs)
    assert all(output == 0 for output in outputs)
    outputs[0].backward()
    assert all(torch.all(p.grad == 0) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_of_either_width(dtype: torch.dtype) -> None:
    model = perturbed(PretrainingModel)
    expected = model(*batch(GROUPBERT))
    outputs = model(*(tensor.to(dtype) for tensor in batch(GROUPBERT)))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected))


@needs_float16_on_cpu
def test_half_precision_losses_are_those_of_single_precision() -> None:
    model = perturbed(PretrainingModel)
    single = model(*batch(GROUPBERT))
    half = model.half()(*batch(GROUPBERT))
    for a, b in zip(half[:3], single[:3]):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@needs_float16_on_cpu
def test_half_precision_sums_in_single_precision() -> None:
    """20,000 labels of log(1000) each: their sum is beyond float16."""
    loss = mean_cross_entropy(torch.zeros(20_000, 1000, dtype=torch.float16), torch.zeros(20_000).int())
    torch.testing.assert_close(loss, torch.tensor(1000.0).log(), rtol=1e-3, atol=0.0)


def test_squad_loss_is_the_mean_over_starts_and_ends_within_the_text() -> None:
    model = perturbed(SquadModel)
    ids, mask, types = batch(GROUPBERT)[:3]
    starts = torch.tensor([3, -100, 20, 2], dtype=torch.int32)
    ends = torch.tensor([5, 4, -1, 19], dtype=torch.int32)
    loss, start_logits, end_logits = model(ids, mask, types, starts, ends)
    assert start_logits.shape == end_logits.shape == (4, 20)
    start_loss = F.cross_entropy(start_logits[[0, 3]], torch.tensor([3, 2]))
    end_loss = F.cross_entropy(end_logits[[0, 1, 3]], torch.tensor([5, 4, 19]))
    torch.testing.assert_close(loss, (start_loss + end_loss) / 2)
    without = model(ids, mask, types)
    assert torch.equal(without[0], start_logits) and torch.equal(without[1], end_logits)


def test_squad_without_a_position_within_the_text_costs_nothing() -> None:
    model = perturbed(SquadModel)
    ids, mask, types = batch(GROUPBERT)[:3]
    nowhere = torch.tensor([-100, 20, 99, -1])
    loss = model(ids, mask, types, nowhere, nowhere)[0]
    assert loss == 0
    loss.backward()
    assert all(torch.all(parameter.grad == 0) for parameter in model.parameters())
