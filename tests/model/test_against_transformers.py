"""A BERT of ours is transformers' with the same weights: logits, losses and gradients, both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, Tuple

import pytest
import torch
import transformers
from torch import Tensor

from model import ModelConfig, PretrainingModel, SquadModel, from_pretrained, save_pretrained
from model.files import to_file
from tests.model.builders import BERT, batch, perturb

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
CONFIGS = {eps: replace(BERT, layer_norm_eps=eps) for eps in (1e-3, 1e-12)}


def their_config(config: ModelConfig) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.layer_norm_eps,
    )


def saved_by_them(config: ModelConfig, folder: Path, kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(their_config(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def inputs_with_distinct_positions() -> Tuple[Tensor, ...]:
    """A batch of ours, whose labels can also be written at their positions; and those labels, [B, S]."""
    ids, mask, types, _, labels, next_sentence = batch(BERT, lengths=(20, 11, 16, 8))
    generator = torch.Generator().manual_seed(3)
    positions = torch.stack([torch.randperm(8, generator=generator)[:5] for _ in range(4)]).int()
    labels_bs = torch.full(ids.shape, -100).scatter(1, positions.long(), labels.long())
    return ids, mask, types, torch.where(labels >= 0, positions, 0), labels, next_sentence, labels_bs


def gradients(model: torch.nn.Module) -> Dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_pretraining(ours: PretrainingModel, theirs: torch.nn.Module) -> None:
    ids, mask, types, positions, labels, next_sentence, labels_bs = inputs_with_distinct_positions()
    outputs = ours(ids, mask, types, positions, labels, next_sentence)
    expected = theirs(
        input_ids=ids.long(),
        attention_mask=mask.long(),
        token_type_ids=types.long(),
        labels=labels_bs,
        next_sentence_label=next_sentence.long(),
    )
    mlm_logits, nsp_logits = ours.logits(ids, mask, types, positions)
    at_positions = expected.prediction_logits[torch.arange(4).unsqueeze(1), positions.long()]
    torch.testing.assert_close(mlm_logits.view(4, 5, -1), at_positions, **TOLERANCE)
    torch.testing.assert_close(nsp_logits, expected.seq_relationship_logits, **TOLERANCE)
    torch.testing.assert_close(outputs[0], expected.loss, **TOLERANCE)

    ours.zero_grad()
    theirs.zero_grad()
    outputs[0].backward()
    expected.loss.backward()
    expected_gradients = gradients(theirs)
    our_gradients = to_file(gradients(ours), ours.config)
    assert set(our_gradients) == set(expected_gradients) == {name for name, _ in theirs.named_parameters()}
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], **TOLERANCE, msg=f"gradient of {name}")


@pytest.mark.parametrize("eps", CONFIGS)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_theirs_read_by_us(eps: float, safe: bool, tmp_path: Path) -> None:
    theirs = saved_by_them(CONFIGS[eps], tmp_path, transformers.BertForPreTraining)
    if not safe:  # as older versions of transformers saved it, tied copies and buffers included
        (tmp_path / "model.safetensors").unlink()
        buffers = {"bert.embeddings.position_ids": torch.arange(24).unsqueeze(0)}
        torch.save({**theirs.state_dict(), **buffers}, tmp_path / "pytorch_model.bin")
    ours = from_pretrained(tmp_path)
    assert ours.config == CONFIGS[eps]
    assert_same_pretraining(ours, theirs.eval())


@pytest.mark.parametrize("eps", CONFIGS)
def test_ours_read_by_them(eps: float, tmp_path: Path) -> None:
    ours = PretrainingModel(CONFIGS[eps])
    perturb(ours)
    save_pretrained(ours, tmp_path)
    theirs, report = transformers.BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_pretraining(ours, theirs.eval())

    ids, mask, types = (tensor.long() for tensor in batch(BERT)[:3])
    masked_lm, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    positions = torch.arange(20).expand(4, 20)
    logits = ours.logits(ids, mask, types, positions)[0].view(4, 20, -1)
    with torch.no_grad():
        expected = masked_lm.eval()(ids, attention_mask=mask, token_type_ids=types).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_our_file_has_exactly_their_names(tmp_path: Path) -> None:
    import safetensors.torch

    saved_by_them(BERT, tmp_path / "theirs", transformers.BertForPreTraining)
    save_pretrained(PretrainingModel(BERT), tmp_path / "ours")
    theirs, ours = (
        safetensors.torch.load_file(tmp_path / whose / "model.safetensors") for whose in ("theirs", "ours")
    )
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_question_answering(tmp_path: Path) -> None:
    theirs = saved_by_them(BERT, tmp_path / "theirs", transformers.BertForQuestionAnswering).eval()
    ours = from_pretrained(tmp_path / "theirs", head="squad")
    save_pretrained(ours, tmp_path / "ours")
    again, report = transformers.BertForQuestionAnswering.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask, types = (tensor.long() for tensor in batch(BERT)[:3])
    starts, ends = torch.tensor([1, 2, 15, 20]), torch.tensor([3, 4, 5, 20])
    outputs = ours(ids, mask, types, starts, ends)
    for model in (theirs, again.eval()):
        expected = model(
            ids, attention_mask=mask, token_type_ids=types, start_positions=starts, end_positions=ends
        )
        torch.testing.assert_close(outputs[0], expected.loss, **TOLERANCE)
        torch.testing.assert_close(outputs[1], expected.start_logits, **TOLERANCE)
        torch.testing.assert_close(outputs[2], expected.end_logits, **TOLERANCE)


def test_dropout_stands_where_theirs_does(tmp_path: Path) -> None:
    """The same share of zeros can't be told apart, but a missing or additional dropout can: as many in each
    model."""
    theirs = transformers.BertForPreTraining(their_config(BERT))

    def count(model: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.Dropout) for module in model.modules())

    assert count(PretrainingModel(BERT)) == count(theirs)
    assert count(SquadModel(BERT)) == count(theirs.bert)
