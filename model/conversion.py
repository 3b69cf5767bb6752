"""Loads and saves models.

A model's folder has config.json and model.safetensors (pytorch_model.bin can be read too), with the parameter
names of transformers' BERT, of optimum-graphcore's GroupBERT, or of this program (files.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Type, Union

from torch import Tensor, nn

from .config import ModelConfig, ModelConfigError
from .files import (
    CONFIG_FILE,
    ConversionError,
    check_vocabulary,
    from_file,
    read_config,
    read_weights,
    to_file,
    write,
)
from .heads import TASKS, TaskModel

# Our name -> config.json's, for the settings that every BERT has.
_SETTINGS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
}
_GROUPBERT_SETTINGS = (
    "norm",
    "convolution",
    "feed_forward",
    "ffn_groups",
    "conv_group_size",
    "conv_kernel_size",
)
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# transformers' defaults for settings that config.json lacks.
_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}
_MOST_NAMES_SHOWN = 5


# GELU's exact form, which PyTorch computes, and names of its tanh form, which an IPU computes.
_EXACT_GELU, _TANH_GELU = "gelu", ("gelu_pytorch_tanh", "gelu_new")


def save_pretrained(model: TaskModel, folder: Union[str, Path], *, tanh_gelu: bool = False) -> None:
    """Writes config.json and model.safetensors into `folder`, in the model's dtype.

    `tanh_gelu`: the weights were trained with GELU's tanh form; config.json says so in `hidden_act`.
    transformers can load a BERT saved here. Not atomic: for an atomic save, write to a temporary folder and
    rename it.
    """
    activation = _TANH_GELU[0] if tanh_gelu else _EXACT_GELU
    settings = {**_file_config(model), "hidden_act": activation}
    write(Path(folder), settings, to_file(model.state_dict(), model.config))


def from_pretrained(
    folder: Union[str, Path],
    *,
    head: str = "pretraining",
    hidden_dropout: Optional[float] = None,
    attention_dropout: Optional[float] = None,
    seed: Optional[int] = None,
    fresh_head: bool = True,
) -> TaskModel:
    """The model saved in `folder`, in float32, with its configuration in `.config`.

    `head` is a task. "pretraining" needs all of its weights. Other tasks also accept the folder of a
    pretrained model: their head is then initialised from `seed`, unless `fresh_head` is false. Dropouts other
    than None replace the saved ones. Raises ConversionError for missing, damaged or unsafe files, for
    unsupported settings, and for weights that don't belong to the model.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    try:
        if hidden_dropout is not None:
            config = replace(config, hidden_dropout=hidden_dropout)
        if attention_dropout is not None:
            config = replace(config, attention_dropout=attention_dropout)
    except ModelConfigError as error:
        raise ConversionError(str(error)) from error
    check_vocabulary(folder, config.vocab_size)
    weights = from_file(read_weights(folder), config)

    if head not in TASKS:
        raise ConversionError(f"head is {head!r}, but must be one of {', '.join(TASKS)}")
    model = TASKS[head](config, seed=seed)
    own = _prefixes(model)
    others = {prefix for task in TASKS.values() for prefix in _prefixes(task)} - set(own)
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(others))}
    if not model.is_pretraining and not any(name.startswith(own) for name in weights):
        if not fresh_head:
            raise ConversionError(
                f"{folder} has no fine-tuned model: the weights of a {head} head are missing. Fine-tune it "
                "first, or use the folder of a fine-tuned model"
            )
        fresh = model.state_dict()
        weights.update({name: fresh[name] for name in fresh if name.startswith(own)})
    if not any(name.startswith("encoder.") for name in weights):
        raise ConversionError(
            f"{folder} has no encoder: none of its {len(weights)} weights belongs to a BERT or a "
            "GroupBERT. Use the folder of a complete model, pretrained or fine-tuned"
        )
    _check(weights, model, folder, head)
    model.load_state_dict(weights)
    return model


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration of the model in `folder`, from its config.json. Raises ConversionError."""
    settings = read_config(folder)
    path = folder / CONFIG_FILE
    kind = settings.get("model_type", "bert")
    if kind not in ("bert", "groupbert"):
        raise ConversionError(f"{path}: model_type is {kind!r}, but only 'bert' and 'groupbert' can be read")
    missing = [name for name in _REQUIRED if name not in settings]
    if missing:
        raise ConversionError(f"{path} has no {', '.join(missing)}")
    values: Dict[str, Any] = {
        ours: settings.get(theirs, _DEFAULTS.get(theirs)) for ours, theirs in _SETTINGS.items()
    }
    if kind == "groupbert":
        # optimum-graphcore's files have none of the three: its models differ only in size.
        values.update(norm="pre", convolution=True, feed_forward="grouped_projected")
        values.update({name: settings[name] for name in _GROUPBERT_SETTINGS if name in settings})
    try:
        config = ModelConfig(**values)
    except ModelConfigError as error:
        raise ConversionError(f"{path}: {error}") from error
    legal: Dict[str, Any] = {
        "intermediate_size": config.intermediate_size,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }
    # The device decides which form of GELU is computed.
    if settings.get("hidden_act") not in _TANH_GELU:
        legal["hidden_act"] = _EXACT_GELU
    for name, only in legal.items():
        if settings.get(name, only) != only:
            raise ConversionError(f"{path}: {name} is {settings[name]!r}, but only {only!r} is supported")
    return config


def _file_config(model: TaskModel) -> Dict[str, Any]:
    config = model.config
    settings = {theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()}
    settings.update(intermediate_size=config.intermediate_size, pad_token_id=0)
    kind = "bert" if config.is_bert else "groupbert"
    if not config.is_bert:
        settings.update({name: getattr(config, name) for name in _GROUPBERT_SETTINGS})
    family = "Bert" if config.is_bert else "GroupBert"
    return {**settings, "model_type": kind, "architectures": [f"{family}For{model.architecture}"]}


def _prefixes(model: Union[TaskModel, Type[TaskModel]]) -> Tuple[str, ...]:
    """The prefixes of the names of the head's weights."""
    return tuple(f"{module}." for module in model.head_modules)


def _check(weights: Dict[str, Tensor], model: nn.Module, folder: Path, head: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = []
    missing = [name for name in expected if name not in found]
    if missing:
        faults.append("missing " + _listed(missing))
    extra = [name for name in found if name not in expected]
    if extra:
        faults.append("unknown " + _listed(extra))
    mismatching = [
        f"{name} (is {found[name]}, must be {expected[name]})"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if mismatching:
        faults.append("of a different shape " + _listed(mismatching))
    whole = [f"{name} ({tensor.dtype})" for name, tensor in weights.items() if not tensor.is_floating_point()]
    if whole:
        faults.append("quantised, or no weights " + _listed(whole))
    if faults:
        raise ConversionError(
            f"the weights in {folder} don't match a {head} model with its {CONFIG_FILE}: "
            f"{'; '.join(faults)} (this program's names). Use the folder of a complete model, saved with its "
            "configuration"
        )


def _listed(names: List[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES_SHOWN])
    rest = len(names) - _MOST_NAMES_SHOWN
    return shown + (f" and {rest} more" if rest > 0 else "")
