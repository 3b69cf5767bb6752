"""The model card: what it says of a run, and its upload."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml

import config as configuration
import ipu
import model as models
from training.errors import TrainingError
from training.model_card import commit, model_card, push_to_hub


def card_of(name: str, **changes: object) -> str:
    config = replace(configuration.load(name), **changes)
    model = models.TASKS[config.task](config.model_config())
    record = {
        "step": 3,
        "loss": 1.25,
        "learning_rate": 0.1,
        "samples_per_s": 9.0,
        "eval_f1": 0.5,
        "eval_x": None,
    }
    device = ipu.select_device("simulator")
    arguments = ["--config", name, "--output", "somewhere"]
    return model_card(config, model, record, step=3, device=device, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "pipeline", "kind"),
    [
        ("test_groupbert", "fill-mask", "AutoModelForMaskedLM"),
        ("test_squad", "question-answering", "AutoModelForQuestionAnswering"),
        ("test_glue", "text-classification", "AutoModelForSequenceClassification"),
    ],
)
def test_it_says_what_the_run_was(name: str, pipeline: str, kind: str) -> None:
    card = card_of(name)
    _, head, text = card.split("---\n", 2)
    settings = yaml.safe_load(head)
    assert settings["pipeline_tag"] == pipeline and settings["tags"][0] == "groupbert"
    assert f"| recipe | `{name}` of configs.yml |" in text
    assert "| weight updates | 3 of 4, 36 sequences in all |" in text
    assert "| loss | last update | 1.25 |" in text and "| f1 | held-out | 0.5 |" in text
    assert "| x | held-out | not defined |" in text and "samples_per_s" not in text
    assert f'{kind}.from_pretrained("THIS FOLDER", trust_remote_code=True)' in text
    assert "simulator of IPUs in float32" in text
    assert commit() in text and len(commit()) >= 40


def test_it_names_what_differs() -> None:
    between = card_of("test_groupbert", convolution=False)
    assert "# Encoder between BERT and GroupBERT, 2 layers" in between and "trust_remote_code=True" in between
    assert "trust_remote_code" not in card_of("test_bert")
    for precision in ("ipu-float16", "ipu-float16-fast"):
        assert "tanh form of GELU" in card_of("test_bert", simulator_precision=precision)
    assert "| training data | `my.csv` |" in card_of("test_glue", glue_task="csv", train_data="my.csv")
    assert card_of("test_bert") == card_of("test_bert")


def test_uploading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub:
        def create_repo(self, name: str, **options: object) -> object:
            asked.append(("create", name, options))
            return types.SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, **options: object) -> None:
            asked.append(("upload", options))
            if asked[0][1] == "refused":
                raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    push_to_hub(tmp_path, "mine")
    (_, name, options), (_, uploaded) = asked
    assert name == "mine" and options == {"private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/mine" and uploaded["folder_path"] == str(tmp_path)
    assert uploaded["ignore_patterns"] == ["optimizer.safetensors", "state.json"]
    asked.clear()
    with pytest.raises(
        TrainingError, match=r"uploaded to 'refused' \(ConnectionError: no network\).*--resume"
    ):
        push_to_hub(tmp_path, "refused")
