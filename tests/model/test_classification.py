"""The classification model against transformers' BertForSequenceClassification, and its place on IPUs."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

import ipu
from ipu.placement import placement
from model import ClassificationModel, SquadModel, annotate, save_pretrained, saved_classes
from tests.model.builders import BERT, GROUPBERT, batch, perturb

ipu.select_device("simulator")


def test_parameters_are_those_of_transformers() -> None:
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=BERT.vocab_size,
            hidden_size=BERT.hidden_size,
            num_hidden_layers=BERT.num_layers,
            num_attention_heads=BERT.num_heads,
            intermediate_size=4 * BERT.hidden_size,
            max_position_embeddings=BERT.max_position_embeddings,
        )
    )
    ours = ClassificationModel(BERT)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = ClassificationModel(GROUPBERT, num_classes=3).eval()
    perturb(model)
    inputs = batch(GROUPBERT)[:3]
    labels = torch.arange(len(inputs[0])) % 3
    loss, logits = model(*inputs, labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels))
    assert torch.equal(model(*inputs)[0], logits)
    # Only the first token decides, so what the others' labels or padding say doesn't show.
    labels[0] = -100
    torch.testing.assert_close(
        model(*inputs, labels)[0], torch.nn.functional.cross_entropy(logits[1:], labels[1:])
    )


def test_its_head_stands_with_the_last_layers() -> None:
    assert placement(4, (1, 3), ClassificationModel.place)[-1] == ("Classifier", 1)
    model = ClassificationModel(BERT)
    annotate(model, (1, 1))
    assert "Classifier, ipu_id=1" in repr(next(iter(model.pooler._forward_pre_hooks.values())))


def test_a_saved_classifier_names_its_classes(tmp_path: Path) -> None:
    save_pretrained(ClassificationModel(BERT, labels=("low", "middle", "high")), tmp_path / "ours")
    assert saved_classes(tmp_path / "ours") == ("low", "middle", "high")
    save_pretrained(SquadModel(BERT), tmp_path / "squad")
    assert saved_classes(tmp_path / "squad") == ()
