"""Reads and writes the files of a model's folder; nothing unsafe is unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Dict

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
VOCABULARY_FILE = "vocab.txt"


class ConversionError(ValueError):
    """A folder that holds no model, or not the one asked for."""


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json as a dictionary. Raises ConversionError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConversionError(f"{folder} has no {CONFIG_FILE}: give a folder that holds a saved model")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, but must hold an object of settings")
    return content


def read_weights(folder: Path) -> Dict[str, Tensor]:
    """The tensors of model.safetensors or, without one, of pytorch_model.bin, by name. Raises
    ConversionError."""
    if (folder / WEIGHTS_FILE).is_file():
        return _read_safetensors(folder / WEIGHTS_FILE)
    if (folder / PICKLED_WEIGHTS_FILE).is_file():
        return _read_pickle(folder / PICKLED_WEIGHTS_FILE)
    raise ConversionError(f"{folder} has neither {WEIGHTS_FILE} nor {PICKLED_WEIGHTS_FILE}")


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ConversionError(f"{path} is damaged or no safetensors file ({error}): copy it anew") from error


def _read_pickle(path: Path) -> Dict[str, Tensor]:
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} is damaged, or holds more than tensors, which could run code when read, and was refused "
            f"({_first_line(error)}): save it as {WEIGHTS_FILE} with the library it comes from"
        ) from error
    # A damaged archive or pickle stream can end in any of these.
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path} is damaged or no PyTorch file ({_first_line(error)}): copy it anew"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ConversionError(f"{path} doesn't hold a dictionary of tensors, as a model's state has to be")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Raises ConversionError if the folder's vocab.txt, where there is one, has more entries than the
    model."""
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return
    with path.open("rb") as lines:
        entries = sum(1 for _ in lines)
    if entries > vocab_size:
        raise ConversionError(
            f"{path} has {entries} entries, {entries - vocab_size} more than the model's vocabulary of "
            f"{vocab_size}: it belongs to another model"
        )


def write(folder: Path, config: Dict[str, Any], weights: Dict[str, Tensor]) -> None:
    """Writes config.json and model.safetensors into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # transformers refuses a file without this note.
    save_file(contiguous, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
