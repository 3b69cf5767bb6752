"""A model's files, and the mapping of parameter names to those of other libraries. No unsafe unpickling.

Two layouts: Hugging Face's for a BERT, optimum-graphcore's for a GroupBERT and the encoders between (names in
both begin with `bert.` or `cls.`). This program's names, in which it once saved these encoders, can be read
too. The tables map modules; `weight` or `bias` follows. In optimum-graphcore a GroupBERT's values and gates
are one matrix: gates in the first half of its rows, values in the second.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import ModelConfig

CONFIG_FILE = "config.json"
_MOST_CONFIG_BYTES = 1 << 24
WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
VOCABULARY_FILE = "vocab.txt"
_INDEX = ".index.json"  # after the name of a weights file: the names of the shards that hold it
# Weights of other libraries, and how to convert them.
_OTHER_WEIGHTS = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "*.ckpt.index": "TensorFlow",
    "*.ckpt": "PyTorch Lightning or TensorFlow",
    "*.gguf": "llama.cpp",
    "*.onnx": "ONNX",
}
# What DistributedDataParallel, torch.compile and wrapping modules put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# Where training scripts keep a model's state: Lightning, NVIDIA's BERT, DeepSpeed, PyTorch's tutorials.
_STATES = ("state_dict", "model", "module", "model_state_dict")


class ConversionError(ValueError):
    """A folder without a model, or with another model than requested."""


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json as a dictionary. Raises ConversionError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConversionError(f"{folder} has no {CONFIG_FILE}: use the folder of a saved model")
    return _read_object(path)


def _read_object(path: Path) -> Dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_CONFIG_BYTES + 1)
        if len(text) > _MOST_CONFIG_BYTES:
            raise ConversionError(f"{path} has more than {_MOST_CONFIG_BYTES} bytes: it is no configuration")
        content = json.loads(text.decode("utf-8"))
    # Besides malformed JSON: nested brackets, numbers of thousands of digits.
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, but must hold an object of settings")
    return content


def read_weights(folder: Path) -> Dict[str, Tensor]:
    """The tensors of model.safetensors or, if there is none, of pytorch_model.bin, by name.

    Either may be split into shards, with an index. Raises ConversionError.
    """
    for name in (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE):
        if (folder / name).is_file():
            return _read_tensors(folder / name)
        if (folder / (name + _INDEX)).is_file():
            return _read_shards(folder / (name + _INDEX))
    others = [
        f"{found.name} ({library})"
        for pattern, library in _OTHER_WEIGHTS.items()
        for found in sorted(folder.glob(pattern))
    ]
    convert = (
        f". It has {', '.join(others[:3])}: load it with the library that wrote it and save PyTorch weights"
        if others
        else ""
    )
    raise ConversionError(f"{folder} has neither {WEIGHTS_FILE} nor {PICKLED_WEIGHTS_FILE}{convert}")


def _read_tensors(path: Path) -> Dict[str, Tensor]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_shards(index: Path) -> Dict[str, Tensor]:
    """The tensors of the files that an index names, as transformers saves with max_shard_size."""
    places = _read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise ConversionError(f"{index} has no weight_map of weights to file names: copy it again")
    weights: Dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if not (index.parent / file).is_file():
            count = len(set(places.values()))
            raise ConversionError(f"{index.parent} lacks {file}, one of {count} shards: copy all of them")
        weights.update(_read_tensors(index.parent / file))
    missing = [name for name in places if name not in weights]
    if missing:
        raise ConversionError(
            f"{index} names {len(missing)} weights that its shards lack, {missing[0]} first: copy the folder "
            "again"
        )
    return weights


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ConversionError(
            f"{path} is damaged or not a safetensors file ({error}): copy it again"
        ) from error


def _read_pickle(path: Path) -> Dict[str, Tensor]:
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} is damaged, or contains more than tensors, which could execute code when loaded "
            f"({_first_line(error)}). Save it as {WEIGHTS_FILE} with the library that wrote it"
        ) from error
    # A damaged archive or pickle stream can raise any of these.
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path} is damaged or not a PyTorch file ({_first_line(error)}): copy it again"
        ) from error
    state = _state_of(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else ""
        raise ConversionError(
            f"{path} must hold a model's state, a dictionary of tensors, but holds a {type(content).__name__}"
            f"{f' of {keys}' if keys else ''}: save the model's state_dict() alone"
        )
    return state


def _state_of(content: Any) -> Optional[Dict[str, Tensor]]:
    """The model's state: an unpickled checkpoint or the one part of it that is a state; None if none is."""
    parts = (content, *map(content.get, _STATES)) if isinstance(content, dict) else ()
    states = [state for state in map(_tensors_of, parts) if state]
    return states[0] if len(states) == 1 else None


def _tensors_of(content: Any) -> Dict[str, Tensor]:
    """The content, if it is a dictionary of tensors by name."""
    if isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        return dict(content)
    return {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Raises ConversionError if the folder has a vocab.txt with more entries than the model."""
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return
    entries = len(path.read_bytes().rstrip().split(b"\n"))  # blank lines at the end are no entries
    if entries > vocab_size:
        raise ConversionError(
            f"{path} has {entries} entries, {entries - vocab_size} more than the model's vocabulary of "
            f"{vocab_size}: it belongs to another model"
        )


def write(folder: Path, config: Dict[str, Any], weights: Dict[str, Tensor]) -> None:
    """Writes config.json and model.safetensors to `folder`, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # transformers rejects a file without this metadata.
    save_file(contiguous, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})


# Names of modules: this program's -> the names in both layouts.
_AROUND_THE_LAYERS = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.norm": "bert.encoder.LayerNorm",
    "heads.pooler": "bert.pooler.dense",
    "heads.masked_lm": "cls.predictions",
    "heads.masked_lm.transform": "cls.predictions.transform.dense",
    "heads.masked_lm.norm": "cls.predictions.transform.LayerNorm",
    "heads.next_sentence": "cls.seq_relationship",
    "span": "qa_outputs",
}
# Of a classifier; when it is read, TaskModel.adopts takes the pooler of a pretrained model too.
_OF_A_CLASSIFIER = {"pooler": "bert.pooler.dense", "classes": "classifier"}
_IN_EVERY_LAYER = {
    "attention.body.query": "attention.self.query",
    "attention.body.key": "attention.self.key",
    "attention.body.value": "attention.self.value",
    "attention.body.output": "attention.output.dense",
}
_IN_A_BERT_LAYER = {
    **_IN_EVERY_LAYER,
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.body.expansion": "intermediate.dense",
    "feed_forward.body.contraction": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
_IN_A_GROUPBERT_LAYER = {
    **_IN_EVERY_LAYER,
    "convolution.norm": "convolution.prenorm",
    "convolution.body.gates_and_values": "convolution.glu",
    "convolution.body.convolution": "convolution.groupconv",
    "convolution.body.norm": "convolution.conv_norm",
    "convolution.body.output": "convolution.output_projection",
    "first_feed_forward.norm": "intermediate_first.LayerNorm",
    "first_feed_forward.body.expansion": "intermediate_first.dense",
    "first_feed_forward.body.contraction": "output_first.grouped_matmul",
    "first_feed_forward.body.projection": "output_first.dense_output_projection",
    "attention.norm": "attention.LayerNorm",
    "feed_forward.norm": "intermediate_second.LayerNorm",
    "feed_forward.body.expansion": "intermediate_second.dense",
    "feed_forward.body.contraction": "output_second.grouped_matmul",
    "feed_forward.body.projection": "output_second.dense_output_projection",
}

_OUR_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_THEIR_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)")
_WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def to_file(weights: Mapping[str, Tensor], config: ModelConfig) -> Dict[str, Tensor]:
    """A model's state -> the tensors of its file, in the layout for `config`."""
    table = _layer_table(config)
    file = {}
    for name, tensor in _join_gates_and_values(weights).items():
        module, _, leaf = name.rpartition(".")
        layer = _OUR_LAYER.fullmatch(module)
        if layer:
            module = f"bert.encoder.layer.{layer[1]}.{table[layer[2]]}"
        else:
            # A head without a name in the layouts keeps its own.
            module = {**_AROUND_THE_LAYERS, **_OF_A_CLASSIFIER}.get(module, module)
        file[f"{module}.{leaf}"] = tensor
    return file


def from_file(weights: Mapping[str, Tensor], config: ModelConfig) -> Dict[str, Tensor]:
    """The tensors of a file in any layout -> a model's state. Names not in the tables don't change.

    Raises ConversionError if the vocabulary projection isn't tied to the word embeddings.
    """
    theirs = _normalised(weights)
    _drop_tied_copies(theirs)
    if _WORD_EMBEDDINGS not in theirs:
        return theirs  # this program's layout
    around = {theirs: ours for ours, theirs in _AROUND_THE_LAYERS.items()}
    table = {theirs: ours for ours, theirs in _layer_table(config).items()}
    ours = {}
    for name, tensor in theirs.items():
        module, _, leaf = name.rpartition(".")
        layer = _THEIR_LAYER.fullmatch(module)
        if layer and layer[2] in table:
            name = f"encoder.layers.{layer[1]}.{table[layer[2]]}.{leaf}"
        elif module in around:
            name = f"{around[module]}.{leaf}"
        ours[name] = tensor
    return _split_gates_and_values(ours)


def _layer_table(config: ModelConfig) -> Dict[str, str]:
    return _IN_A_BERT_LAYER if config.is_bert else _IN_A_GROUPBERT_LAYER


def _normalised(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Renames the parameters of old files (LayerNorm.gamma and beta) and of bare encoders (without `bert.`);
    drops the buffer of positions, and prefixes that all names have."""
    wrapper = _common_wrapper(weights)
    while wrapper:
        weights = {name[len(wrapper) :]: tensor for name, tensor in weights.items()}
        wrapper = _common_wrapper(weights)
    bare = any(name.startswith("embeddings.") for name in weights)
    normalised = {}
    for name, tensor in weights.items():
        if name.endswith("embeddings.position_ids"):
            continue
        if bare and name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        normalised[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    return normalised


def _common_wrapper(names: Mapping[str, Tensor]) -> Optional[str]:
    wrappers = (one for one in _WRAPPERS if all(name.startswith(one) for name in names))
    return next(wrappers, None) if names else None


def _drop_tied_copies(weights: Dict[str, Tensor]) -> None:
    """Removes the vocabulary projection, tied to the word embeddings, from files that store both; if they
    store the projection only, it becomes the word embeddings.

    Raises ConversionError if they differ.
    """
    for copy, original in (
        ("cls.predictions.decoder.weight", _WORD_EMBEDDINGS),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ):
        tensor = weights.pop(copy, None)
        if tensor is not None and not torch.equal(tensor, weights.setdefault(original, tensor)):
            raise ConversionError(
                f"{copy} differs from {original}: this model's vocabulary projection isn't tied to its word "
                "embeddings, which this program doesn't support"
            )


def _join_gates_and_values(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    joined = dict(weights)
    for name in weights:
        if ".convolution.body.gates." in name:
            halves = joined.pop(name), joined.pop(name.replace(".gates.", ".values."))
            joined[name.replace(".gates.", ".gates_and_values.")] = torch.cat(halves)
    return joined


def _split_gates_and_values(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    split = dict(weights)
    for name, tensor in weights.items():
        if ".gates_and_values." in name:
            del split[name]
            half = (tensor.shape[0] + 1) // 2
            split[name.replace(".gates_and_values.", ".gates.")] = tensor[:half]
            split[name.replace(".gates_and_values.", ".values.")] = tensor[half:]
    return split
