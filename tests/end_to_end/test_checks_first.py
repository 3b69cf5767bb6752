"""Cheap checks come first: a run that can't start doesn't prepare its text before it says so."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import config as configuration
import model as models
import run_pretraining
import run_squad
from data.tokenizer import SPECIAL_TOKENS
from model import ConversionError
from training import CheckpointError

pytestmark = pytest.mark.slow

CASED = [*SPECIAL_TOKENS, *"The the of a is in and to ##s ##ing ##ed".split()]


@pytest.fixture
def weights(tmp_path):
    """A folder of a Hugging Face kind: config.json, weights and vocab.txt."""
    folder = tmp_path / "weights"
    config = configuration.load("test_groupbert").model_config()
    models.save_pretrained(models.PretrainingModel(config, seed=1), folder)
    letters = [*map(chr, range(33, 127)), *("##" + chr(code) for code in range(33, 127))]
    words = [word for word in [*CASED, *letters] if word not in SPECIAL_TOKENS]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*SPECIAL_TOKENS, *words])) + "\n")
    return folder


def test_a_folder_with_a_bare_vocabulary_keeps_case_if_the_run_does(tmp_path, flags, weights):
    words = ("--checkpoint", weights, "--tokenizer", weights / "vocab.txt", "--training-steps", 1)
    result = run_pretraining.main(flags(tmp_path / "run", *words, "--no-lowercase"))
    assert result.step == 1
    # The checkpoint that this left says that it keeps case.
    words = ("--checkpoint", result.checkpoint, "--tokenizer", weights / "vocab.txt", "--training-steps", 1)
    with pytest.raises(CheckpointError, match="lowercase is False there and True here"):
        run_pretraining.main(flags(tmp_path / "second", *words))


def renamed(weights):
    tensors = load_file(weights / "model.safetensors")
    save_file({f"another.{name}": tensor for name, tensor in tensors.items()}, weights / "model.safetensors")


def diverged(weights):
    tensors = load_file(weights / "model.safetensors")
    tensors[sorted(tensors)[0]].fill_(torch.nan)
    save_file(tensors, weights / "model.safetensors")


def of_tensorflow(weights):
    (weights / "model.safetensors").rename(weights / "tf_model.h5")


def another_vocabulary(weights):
    lines = (weights / "vocab.txt").read_text().splitlines()
    (weights / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]))


DAMAGES = {
    renamed: "none of its .* weights belongs to",
    diverged: "NaN or infinity",
    of_tensorflow: "TensorFlow",
    another_vocabulary: "is not the vocabulary of the data",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_unusable_weights_are_refused_before_text_is_prepared(tmp_path, flags, weights, damage):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text((weights / "vocab.txt").read_text())
    damage(weights)
    cache = tmp_path / "cache"
    words = ("--checkpoint", weights, "--tokenizer", vocabulary, "--cache-folder", cache)
    with pytest.raises((ConversionError, CheckpointError), match=DAMAGES[damage]):
        run_pretraining.main(flags(tmp_path / "run", *words))
    assert not cache.exists()


def test_unusable_weights_are_refused_before_questions_are_read(tmp_path, weights):
    renamed(weights)
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps({"data": "not read"}))
    with pytest.raises(ConversionError):
        run_squad.main(
            [
                *("--config", "test_squad", "--device", "simulator"),
                *("--checkpoint", str(weights), "--output", str(tmp_path / "run")),
                *("--train-data", str(questions), "--validation-data", str(questions)),
            ]
        )
