"""A run's first weights: fresh, or those of a checkpoint that is checked against the run."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import data
import model as models

from .errors import CheckpointError


def initial_model(
    config: models.ModelConfig, *, seed: int, folder: Optional[Path], tokenizer: Optional[data.Tokenizer]
) -> models.PretrainingModel:
    """A pretraining model with weights from `folder`, or fresh ones drawn from `seed`.

    Raises CheckpointError if the folder holds another model or another vocabulary, and what
    `model.from_pretrained` raises if it holds none.
    """
    if folder is None:
        return models.PretrainingModel(config, seed=seed)
    loaded = models.from_pretrained(
        folder, hidden_dropout=config.hidden_dropout, attention_dropout=config.attention_dropout
    )
    assert isinstance(loaded, models.PretrainingModel)
    if loaded.config != config:
        differences = [
            f"{key} is {getattr(loaded.config, key)!r} there and {getattr(config, key)!r} here"
            for key in config.__dataclass_fields__
            if getattr(loaded.config, key) != getattr(config, key)
        ]
        raise CheckpointError(
            f"the checkpoint {folder} holds another model than the configuration: {'; '.join(differences)}"
        )
    if tokenizer is not None:
        _refuse_other_vocabulary(folder, tokenizer)
    return loaded


def _refuse_other_vocabulary(folder: Path, tokenizer: data.Tokenizer) -> None:
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return
    theirs = data.load_tokenizer(str(folder))
    if theirs.fingerprint() != tokenizer.fingerprint():
        raise CheckpointError(
            f"the vocabulary of the checkpoint {folder} ({theirs.vocab_size} entries) is not the one that "
            f"the data is made with ({tokenizer.vocab_size} entries): use the checkpoint's, "
            f"--tokenizer {folder}"
        )
