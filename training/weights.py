"""A run's first weights: fresh, or those of a checkpoint that is checked against the run."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

import data
import model as models

from .errors import CheckpointError


def check_weights_folder(folder: Path, config: models.ModelConfig) -> None:
    """Before anything slow: does `folder` hold the model that `config` describes, dropouts aside?

    Raises CheckpointError that names the flags which would make them equal, and what
    `model.read_model_config` raises.
    """
    found = models.read_model_config(folder)
    differences = [
        f"{key} is {getattr(found, key)!r} there and {getattr(config, key)!r} here"
        for key in config.__dataclass_fields__
        if not key.endswith("dropout") and getattr(found, key) != getattr(config, key)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint {folder} holds another model than the configuration: {'; '.join(differences)}. "
            "Each of these keys is a flag, for example --layer-norm-eps 1e-12 for a BERT of Hugging Face"
        )


def check_vocabulary(folder: Path, tokenizer: data.Tokenizer) -> None:
    """Raises CheckpointError if `folder` has a vocabulary and it isn't the tokenizer's."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return
    theirs = data.load_tokenizer(str(folder))
    if theirs.fingerprint() != tokenizer.fingerprint():
        raise CheckpointError(
            f"the vocabulary of the checkpoint {folder} ({theirs.vocab_size} entries) is not the one that "
            f"the data is made with ({tokenizer.vocab_size} entries): use the checkpoint's, "
            f"--tokenizer {folder}"
        )


def initial_model(
    config: models.ModelConfig, *, head: str, seed: int, folder: Optional[Path]
) -> Union[models.PretrainingModel, models.SquadModel]:
    """A model with the `head` "pretraining" or "squad": with weights from `folder` (checked before), where
    a fine-tuning head that isn't there is drawn from `seed`, or with all weights drawn from `seed`."""
    if folder is None:
        return (models.SquadModel if head == "squad" else models.PretrainingModel)(config, seed=seed)
    return models.from_pretrained(
        folder,
        head=head,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        seed=seed,
    )
