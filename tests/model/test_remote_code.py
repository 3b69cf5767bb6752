"""A saved GroupBERT in `transformers`, by the code beside it, in a process that can't import this program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

import model as models
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ClassificationModel, PretrainingModel, SquadModel, save_pretrained
from tests.model.builders import GROUPBERT, batch, perturb

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer([*SPECIAL_TOKENS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "is"])
CONFIG = replace(GROUPBERT, vocab_size=TOKENIZER.vocab_size)
# Encoders between BERT and GroupBERT.
BETWEEN = {
    "post_norm": replace(CONFIG, norm="post"),
    "no_convolution": replace(CONFIG, convolution=False),
    "grouped_alone": replace(CONFIG, norm="post", convolution=False, feed_forward="grouped"),
    "pre_norm_alone": replace(CONFIG, convolution=False, feed_forward="dense", intermediate_size=48),
    "convolution_alone": replace(CONFIG, norm="post", feed_forward="dense"),
}

PROGRAM = """
    import json, sys
    import torch
    import transformers
    from transformers import AutoModel, AutoTokenizer

    folder = sys.argv[1]
    expected = torch.load(f"{folder}/expected.pt")
    inputs = {name: tensor.long() for name, tensor in expected["inputs"].items()}
    found = {}
    for name, (kind, saved, outputs, extra) in expected["models"].items():
        model, report = getattr(transformers, kind).from_pretrained(
            f"{folder}/{saved}", trust_remote_code=True, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["mismatched_keys"], report
        with torch.no_grad():
            given = model.eval()(**inputs, **extra)
        found[name] = max(float((given[key] - tensor).abs().max()) for key, tensor in outputs.items())
    model = transformers.AutoModelForMaskedLM.from_pretrained(f"{folder}/pretraining", trust_remote_code=True)
    model.save_pretrained(f"{folder}/again")
    again = AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True)
    fill = transformers.pipeline("fill-mask", model=f"{folder}/pretraining", trust_remote_code=True)
    found["filled"] = len(fill("the [MASK] is", top_k=3))
    classify = transformers.pipeline("text-classification", model=f"{folder}/glue", trust_remote_code=True)
    found["class"] = classify("the is")[0]["label"]
    random = transformers.AutoModelForSequenceClassification.from_pretrained(
        f"{folder}/pretraining", trust_remote_code=True, num_labels=5
    )
    found["fresh"] = [float(random.classifier.weight.std()), float(random.classifier.bias.abs().max())]
    refused = []
    for kind in ("BertForMaskedLM", "BertModel", "BertForQuestionAnswering", "BertForSequenceClassification"):
        for saved in ("pretraining", "squad", "glue", "again", *expected["between"]):
            try:
                getattr(transformers, kind).from_pretrained(f"{folder}/{saved}")
            except Exception as error:
                refused.append(f"{kind} {saved}")
    found["refused"] = len(refused)
    assert not {"model", "data", "training", "ipu"} & set(sys.modules)
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    folder = tmp_path_factory.mktemp("saved")
    made = {
        "pretraining": PretrainingModel(CONFIG),
        "squad": SquadModel(CONFIG),
        "glue": ClassificationModel(CONFIG, labels=("wrong", "right", "either")),
        "rating": ClassificationModel(CONFIG, labels=("score",)),
        **{name: PretrainingModel(config) for name, config in BETWEEN.items()},
    }
    for name, model in made.items():
        perturb(model)
        save_pretrained(model.eval(), folder / name)
        TOKENIZER.save(folder / name)
    ids, mask, types = batch(CONFIG)[:3]
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    with torch.no_grad():
        every_token = torch.arange(20).expand(4, 20)
        words, sentences = made["pretraining"].logits(ids, mask, types, every_token)
        words = words.view(4, 20, -1)
        encoded = made["pretraining"].encoder(ids, mask, types)
        starts, ends = made["squad"](ids, mask, types)
        positions = torch.tensor([1, 5, 30, 0])
        span_loss = made["squad"](ids, mask, types, positions, positions)[0]
        labels = torch.tensor([2, 0, -100, 1])
        class_loss, classes = made["glue"](ids, mask, types, labels)
        numbers = torch.tensor([0.5, 2.0, -1.0, 4.0])
        error, _ = made["rating"](ids, mask, types, numbers)
    several = {
        "masked": ("AutoModelForMaskedLM", "pretraining", {"logits": words}, {}),
        "pretraining": (
            "AutoModelForPreTraining",
            "pretraining",
            {"prediction_logits": words, "seq_relationship_logits": sentences},
            {},
        ),
        "encoder": ("AutoModel", "pretraining", {"last_hidden_state": encoded}, {}),
        "encoder_of_squad": ("AutoModel", "squad", {}, {}),
        "answers": (
            "AutoModelForQuestionAnswering",
            "squad",
            {"start_logits": starts, "end_logits": ends, "loss": span_loss},
            {"start_positions": positions, "end_positions": positions},
        ),
        "classes": (
            "AutoModelForSequenceClassification",
            "glue",
            {"logits": classes, "loss": class_loss},
            {"labels": labels},
        ),
        "number": ("AutoModelForSequenceClassification", "rating", {"loss": error}, {"labels": numbers}),
    }
    several["encoder_of_squad"] = (
        "AutoModel",
        "squad",
        {"last_hidden_state": made["squad"].encoder(ids, mask, types).detach()},
        {},
    )
    for name in BETWEEN:
        with torch.no_grad():
            logits = made[name].logits(ids, mask, types, every_token)[0].view(4, 20, -1)
        several[name] = ("AutoModelForMaskedLM", name, {"logits": logits}, {})
    expected = {"inputs": inputs, "models": several, "between": list(BETWEEN)}
    torch.save(expected, folder / "expected.pt")
    ours = ("PYTHONPATH", "IPU_SIMULATOR", "POPTORCH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(folder / "modules"), CUDA_VISIBLE_DEVICES="")
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # which decides the order of sums
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "name",
    ["masked", "pretraining", "encoder", "encoder_of_squad", "answers", "classes", "number", *BETWEEN],
)
def test_outputs_are_ours(name: str, found: Dict[str, Any]) -> None:
    assert found[name] <= 1e-6


def test_pipelines_find_model_and_tokenizer(found: Dict[str, Any]) -> None:
    assert found["filled"] == 3
    assert found["class"] in ("wrong", "right", "either")


def test_a_new_head_is_drawn_as_at_the_start_of_pretraining(found: Dict[str, Any]) -> None:
    deviation, bias = found["fresh"]
    assert 0.014 < deviation < 0.021 and bias == 0


def test_a_bert_class_refuses_it(found: Dict[str, Any]) -> None:
    assert found["refused"] == 4 * (4 + len(BETWEEN))


def test_a_bert_has_no_code_beside_it(tmp_path: Path) -> None:
    config = replace(CONFIG, norm="post", convolution=False, feed_forward="dense")
    models.save_pretrained(PretrainingModel(config), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
