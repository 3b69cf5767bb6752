"""Loads and saves models.

A model's folder has config.json and model.safetensors (pytorch_model.bin can be read too), with the parameter
names of transformers' BERT, of optimum-graphcore's GroupBERT, or of this program (files.py).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type, Union

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
    "intermediate_size": "intermediate_size",
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
# transformers' defaults for settings that config.json lacks; intermediate_size is 4 * hidden_size.
_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}
_MOST_NAMES_SHOWN = 5


# The code with which transformers loads what isn't a BERT, and its classes by those of transformers that find
# them.
_REMOTE_CODE = Path(__file__).resolve().parent / "remote_code"
_REMOTE_CODE_FILES = ("configuration_groupbert.py", "modeling_groupbert.py")
_AUTO_MAP = {
    "AutoConfig": "configuration_groupbert.GroupBertConfig",
    "AutoModel": "modeling_groupbert.GroupBertModel",
    **{
        f"AutoModelFor{task}": f"modeling_groupbert.GroupBertFor{task}"
        for task in (
            "PreTraining",
            "MaskedLM",
            "QuestionAnswering",
            "SequenceClassification",
            "TokenClassification",
        )
    },
}
# transformers' BERT would draw random weights for a GroupBERT's layers, whose names it doesn't know, and
# only warn. With this standard deviation drawing is an error. The code above doesn't read it.
_NO_RANDOM_WEIGHTS = {"initializer_range": -1.0}

# GELU's exact form, which PyTorch computes, and names of its tanh form, which an IPU computes.
_EXACT_GELU, _TANH_GELU = "gelu", ("gelu_pytorch_tanh", "gelu_new")


def save_pretrained(model: TaskModel, folder: Union[str, Path], *, tanh_gelu: bool = False) -> None:
    """Writes config.json and model.safetensors into `folder`, in the model's dtype.

    `tanh_gelu`: the weights were trained with GELU's tanh form; config.json says so in `hidden_act`.
    transformers can load a BERT saved here, and all other encoders with trust_remote_code, by the code that
    is written beside them. Not atomic: for an atomic save, write to a temporary folder and rename it.
    """
    activation = _TANH_GELU[0] if tanh_gelu else _EXACT_GELU
    settings = {**_file_config(model), **model.file_settings(), "hidden_act": activation}
    write(Path(folder), settings, to_file(model.state_dict(), model.config))
    if not model.config.is_bert:
        for name in _REMOTE_CODE_FILES:
            shutil.copyfile(str(_REMOTE_CODE / name), str(Path(folder) / name))


def from_pretrained(
    folder: Union[str, Path],
    *,
    head: str = "pretraining",
    hidden_dropout: Optional[float] = None,
    attention_dropout: Optional[float] = None,
    seed: Optional[int] = None,
    fresh_head: Optional[bool] = None,
    labels: Sequence[str] = (),
) -> TaskModel:
    """The model saved in `folder`, in float32, with its configuration in `.config`.

    `folder` is a model's, or the output folder of a run, of which the newest checkpoint counts. `head`
    is a task. With `fresh_head` (by default for all tasks but pretraining) the parts of the head that the
    folder lacks are initialised from `seed`; the model's `fresh_modules` names them. `labels` names the
    classes of a classifier, in the order wanted where the folder has none of these names; by default they are
    the folder's. Dropouts other than None replace the saved ones. Raises ConversionError for missing, damaged
    or unsafe files, for unsupported settings, and for weights that don't belong to the model.
    """
    folder = model_folder(Path(folder))
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
    kind = TASKS[head]
    weights = _of_task(weights, kind, strict=kind.is_pretraining and not fresh_head)
    fresh_head = not kind.is_pretraining if fresh_head is None else fresh_head
    classes = _saved_labels(folder, weights) if kind.has_classes else ()
    if labels and not _matches(classes, labels):
        if classes and not fresh_head:
            raise ConversionError(
                f"{folder} has a classifier of {_quoted(classes)}, not of {_quoted(labels)}: use the data "
                "that it was trained for, or fine-tune it"
            )
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("classes.")}
        classes = ()
    if labels and (not classes or classes == _generic(len(labels))):
        classes = tuple(labels)
    model = kind.build(config, seed=seed, labels=classes)
    fresh = [part for part in model.parts_of_head if not any(n.startswith(f"{part}.") for n in weights)]
    if fresh and not model.is_pretraining and not fresh_head:
        raise ConversionError(
            f"{folder} has no fine-tuned model: the weights of a {head} head are missing. Fine-tune it "
            "first, or use the folder of a fine-tuned model"
        )
    if fresh_head:
        model.fresh_modules = tuple(fresh)
        state = model.state_dict()
        names = [name for name in state if name.startswith(tuple(f"{part}." for part in fresh))]
        weights.update({name: state[name] for name in names})
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
    settings.update(intermediate_size=config.inner_size, pad_token_id=0)
    kind = "bert" if config.is_bert else "groupbert"
    if not config.is_bert:
        settings.update({name: getattr(config, name) for name in _GROUPBERT_SETTINGS}, **_NO_RANDOM_WEIGHTS)
        pooled = any(name.endswith("pooler") for name in (*model.head_modules, *model.parts_of_head))
        # transformers 4 finds the tokeniser of a family that it doesn't know by its class alone.
        settings.update(auto_map=_AUTO_MAP, has_pooler=pooled, tokenizer_class="BertTokenizer")
    family = "Bert" if config.is_bert else "GroupBert"
    return {**settings, "model_type": kind, "architectures": [f"{family}For{model.architecture}"]}


def model_folder(folder: Path) -> Path:
    """`folder`, or its newest checkpoint if it is the output folder of a run."""
    if (folder / CONFIG_FILE).is_file():
        return folder
    steps = [path for path in folder.glob("checkpoints/step_*") if path.name[len("step_") :].isdigit()]
    return max(steps, key=lambda path: int(path.name[len("step_") :]), default=folder)


def _of_task(weights: Dict[str, Tensor], kind: Type[TaskModel], *, strict: bool) -> Dict[str, Tensor]:
    """Without the heads of other tasks. `strict`: keeps weights that no task of this program has."""
    renamed = dict(weights)
    for ours, theirs in kind.adopts.items():
        if not any(name.startswith(f"{ours}.") for name in weights):
            for name in [name for name in weights if name.startswith(f"{theirs}.")]:
                renamed[ours + name[len(theirs) :]] = renamed.pop(name)
    own = _prefixes(kind)
    others = {prefix for task in TASKS.values() for prefix in _prefixes(task)}
    if not strict:
        others |= {f"{theirs}." for task in TASKS.values() for theirs in task.adopts.values()}
    dropped = tuple(prefix for prefix in others if not prefix.startswith(own))
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(dropped)}


def _generic(count: int) -> Tuple[str, ...]:
    """transformers' names of classes that have none."""
    return tuple(f"LABEL_{number}" for number in range(count))


def _saved_labels(folder: Path, weights: Dict[str, Tensor]) -> Tuple[str, ...]:
    """The classes of the folder's classifier, in order; none if it has none. Raises ConversionError."""
    if "classes.weight" not in weights:
        return ()
    count = weights["classes.weight"].shape[0]
    named = read_config(folder).get("id2label") or dict(enumerate(_generic(count)))
    if not isinstance(named, dict) or {str(key) for key in named} != {str(number) for number in range(count)}:
        raise ConversionError(
            f"{folder / CONFIG_FILE}: id2label must name {count} classes, one for each of the classifier's "
            f"rows, by the numbers from 0 to {count - 1}, but is {str(named)[:200]}"
        )
    by_number = {int(key): str(value) for key, value in named.items()}
    return tuple(by_number[number] for number in range(count))


def saved_classes(folder: Path) -> Tuple[str, ...]:
    """The classes that the folder's config.json names, without reading weights; none if it names none."""
    named = read_config(folder).get("id2label")
    return tuple(map(str, named.values())) if isinstance(named, dict) else ()


def _matches(saved: Sequence[str], wanted: Sequence[str]) -> bool:
    """True if the classes are the same ones, in any order, or have no names but the same number."""
    same = {label.lower() for label in saved} == {label.lower() for label in wanted}
    return len(saved) == len(wanted) and (same or tuple(saved) == _generic(len(saved)))


def _quoted(labels: Sequence[str]) -> str:
    return f"{len(labels)} classes ({_listed(list(map(repr, labels)))})"


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
