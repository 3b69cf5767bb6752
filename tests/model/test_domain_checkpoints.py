"""BERTs that others saved: without some heads, with other sizes, called with a tokeniser's output."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import (
    ClassificationModel,
    ConversionError,
    ModelConfig,
    PretrainingModel,
    SquadModel,
    from_pretrained,
    save_pretrained,
)
from model.flops import flops_per_sequence
from tests.model.builders import BERT, GROUPBERT, batch, perturb

THEIRS = transformers.BertConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def theirs(kind: type, folder: Path, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(transformers.BertConfig.from_dict({**THEIRS.to_dict(), **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def test_another_intermediate_size_and_epsilon(tmp_path: Path) -> None:
    other = theirs(transformers.BertForPreTraining, tmp_path)
    ours = from_pretrained(tmp_path).eval()
    assert (ours.config.inner_size, ours.config.layer_norm_eps) == (48, 1e-12)
    ids, mask, types = (field.long() for field in batch(BERT)[:3])
    with torch.no_grad():
        words, sentences = ours(input_ids=ids, attention_mask=mask, token_type_ids=types)
        expected = other(ids, attention_mask=mask, token_type_ids=types)
    torch.testing.assert_close(words, expected.prediction_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sentences, expected.seq_relationship_logits, rtol=1e-5, atol=1e-5)
    save_pretrained(ours, tmp_path / "again")
    assert from_pretrained(tmp_path / "again").config == ours.config
    assert json.loads((tmp_path / "again" / "config.json").read_text())["intermediate_size"] == 48


def test_the_usual_intermediate_size_has_one_form() -> None:
    assert replace(BERT, intermediate_size=128) == BERT and BERT.inner_size == 128
    assert replace(BERT, intermediate_size=128, hidden_size=64).inner_size == 128
    narrow = replace(BERT, intermediate_size=64)
    saved = flops_per_sequence(BERT, 20, 5) - flops_per_sequence(narrow, 20, 5)
    assert saved == 2 * (2 * 20 * 2 * 32 * 64)  # layers, tokens, products of 32 x 64 fewer
    with pytest.raises(ValueError, match="intermediate_size is 64, but a grouped feed-forward's"):
        replace(GROUPBERT, intermediate_size=64)


@pytest.mark.parametrize(
    ("kind", "fresh"),
    [
        (transformers.BertForMaskedLM, ("heads.pooler", "heads.next_sentence")),
        (transformers.BertModel, ("heads.masked_lm", "heads.next_sentence")),
        (transformers.BertForTokenClassification, ("heads.masked_lm", "heads.pooler", "heads.next_sentence")),
        (transformers.BertForPreTraining, ()),
    ],
)
def test_what_pretraining_lacks_is_new(kind: type, fresh: tuple, tmp_path: Path) -> None:
    theirs(kind, tmp_path)
    if fresh:
        with pytest.raises(ConversionError, match="missing heads"):
            from_pretrained(tmp_path)
    model = from_pretrained(tmp_path, fresh_head=True, seed=3)
    assert model.fresh_modules == fresh
    new = PretrainingModel(model.config, seed=3).state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith(tuple(f"{part}." for part in fresh)):
            assert torch.equal(tensor, new[name]), name


def test_a_part_that_is_missing_by_half_is_damage(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs(transformers.BertForPreTraining, tmp_path)
    weights = load_file(str(tmp_path / "model.safetensors"))
    del weights["bert.pooler.dense.bias"]
    save_file(weights, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    for head in ("pretraining", "glue"):
        with pytest.raises(ConversionError, match=r"missing (heads\.)?pooler\.bias"):
            from_pretrained(tmp_path, head=head, fresh_head=True)


@pytest.mark.parametrize("labels", [("no", "yes", "maybe"), ("score",)])
def test_a_classifier_of_theirs(labels: tuple, tmp_path: Path) -> None:
    settings = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    other = theirs(transformers.BertForSequenceClassification, tmp_path, **settings)
    ours = from_pretrained(tmp_path, head="glue", fresh_head=False).eval()
    assert isinstance(ours, ClassificationModel)
    assert ours.labels == labels and ours.is_regression == (len(labels) == 1)
    ids, mask, types = (field.long() for field in batch(BERT)[:3])
    given = torch.tensor([0.5, 2.0, 3.0, -1.0]) if ours.is_regression else torch.tensor([0, 2, 1, 1])
    with torch.no_grad():
        loss, logits = ours(ids, mask, types, given)
        expected = other(ids, attention_mask=mask, token_type_ids=types, labels=given)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    save_pretrained(ours, tmp_path / "again")
    again, report = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(again.config.id2label.values()) == list(labels)


def test_classes_keep_the_order_of_their_file_or_are_new(tmp_path: Path) -> None:
    model = ClassificationModel(GROUPBERT, labels=("b", "a"))
    perturb(model)
    save_pretrained(model, tmp_path)
    kept = from_pretrained(tmp_path, head="glue", labels=("A", "B"))
    assert kept.labels == ("b", "a") and kept.fresh_modules == ()
    assert torch.equal(kept.classes.weight, model.classes.weight)
    new = from_pretrained(tmp_path, head="glue", labels=("a", "b", "c"), seed=1)
    assert new.labels == ("a", "b", "c") and new.fresh_modules == ("classes",)
    assert torch.equal(new.pooler.weight, model.pooler.weight)
    with pytest.raises(ConversionError, match=r"2 classes \('b', 'a'\), not of 2 classes \('a', 'c'\)"):
        from_pretrained(tmp_path, head="glue", labels=("a", "c"), fresh_head=False)
    # Classes without names are the ones asked for.
    save_pretrained(ClassificationModel(GROUPBERT), tmp_path / "nameless")
    named = from_pretrained(tmp_path / "nameless", head="glue", labels=("no", "yes"), fresh_head=False)
    assert named.labels == ("no", "yes")


def test_a_pooler_of_pretraining_is_the_classifiers(tmp_path: Path) -> None:
    for config in (BERT, GROUPBERT, replace(GROUPBERT, norm="post")):
        model = PretrainingModel(config)
        perturb(model)
        save_pretrained(model, tmp_path)
        classifier = from_pretrained(tmp_path, head="glue", seed=1)
        assert torch.equal(classifier.pooler.weight, model.heads.pooler.weight)
        assert classifier.fresh_modules == ("classes",)
        save_pretrained(classifier, tmp_path)
        again = from_pretrained(tmp_path, head="glue", fresh_head=False)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), classifier.parameters()))
        assert from_pretrained(tmp_path, head="squad", seed=2).fresh_modules == ("span",)


@pytest.mark.parametrize("named", [["a", "b"], {"0": "a"}, {"0": "a", "2": "b"}, "ab"])
def test_names_that_dont_match_the_classifier(named: object, tmp_path: Path) -> None:
    save_pretrained(ClassificationModel(BERT), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "id2label": named}))
    with pytest.raises(ConversionError, match="id2label must name 2 classes"):
        from_pretrained(tmp_path, head="glue")


def test_an_output_folder_is_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (9, 100_000_000):  # by number, not by name
        model = PretrainingModel(BERT, seed=step)
        save_pretrained(model, tmp_path / "checkpoints" / f"step_{step:08d}")
    assert torch.equal(from_pretrained(tmp_path).heads.pooler.weight, model.heads.pooler.weight)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConversionError, match=r"has no config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [PretrainingModel, SquadModel, ClassificationModel])
@pytest.mark.parametrize("config", [BERT, GROUPBERT])
def test_a_tokenizers_output_is_enough(kind: type, config: ModelConfig, tmp_path: Path) -> None:
    Tokenizer([*SPECIAL_TOKENS, "the", "is", "old"]).save(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, tokenizer_class="BertTokenizer")
    model = kind(config, seed=1).eval()
    encoded = tokenizer(["the old", "the is old"], padding=True, return_tensors="pt")
    outputs = model(**encoded)
    assert all(len(output) == 2 for output in outputs)
    alone = model(tokenizer("the is old", return_tensors="pt")["input_ids"])
    for one, two in zip(alone, outputs):
        torch.testing.assert_close(one[0], two[1], rtol=1e-5, atol=1e-5)
    if kind is PretrainingModel:
        assert outputs[0].shape == (2, 5, config.vocab_size)
        positions = torch.tensor([[1, 2], [3, 0]])
        picked = model(**encoded, masked_lm_positions=positions)[0]
        torch.testing.assert_close(picked[1, 0], outputs[0][1, 3])
