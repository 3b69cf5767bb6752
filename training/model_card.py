"""The model card beside a checkpoint, README.md in the Hugging Face hub's format, and its upload."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence

import yaml

import ipu
import model as models

from .compilation import computes_as_ipu
from .errors import TrainingError
from .metrics_file import Record

if TYPE_CHECKING:
    from config import Config

CARD_FILE = "README.md"
_ROOT = Path(__file__).resolve().parents[1]
_CLASSES = {"pretraining": "AutoModelForMaskedLM", "squad": "AutoModelForQuestionAnswering"}
_PIPELINES = {"pretraining": "fill-mask", "squad": "question-answering", "glue": "text-classification"}
_SHOWN = (
    "hidden_size num_layers num_heads vocab_size sequence_length optimizer learning_rate lr_schedule "
    "lr_warmup weight_decay hidden_dropout attention_dropout seed"
).split()


def model_card(
    config: Config,
    model: models.TaskModel,
    record: Record,
    *,
    step: int,
    device: ipu.DeviceChoice,
    arguments: Sequence[str],
) -> str:
    """The card of a model after `step` updates, with the metrics of `record`. It has no date, so that a run
    and its repetition write the same card."""
    family = "BERT" if model.config.is_bert else "GroupBERT"
    head: Dict[str, Any] = {"library_name": "transformers", "tags": [family.lower(), config.task]}
    if not (model.config.is_bert or model.config.is_groupbert):
        family = "Encoder between BERT and GroupBERT"
    if config.task in _PIPELINES:
        head["pipeline_tag"] = _PIPELINES[config.task]
    recipe = _recipe(arguments)
    samples = step * config.global_batch_size
    rows = [
        ("recipe", f"`{recipe}` of configs.yml" if recipe else "not named"),
        ("task", _task(config)),
        ("training data", f"`{_data(config)}`"),
        ("weight updates", f"{step:,} of {config.training_steps:,}, {samples:,} sequences in all"),
        *((key, f"{getattr(config, key)}") for key in _SHOWN),
        ("device", f"{device.name}, {_arithmetic(config, device)}"),
        ("program", f"commit `{commit()}`" if commit() else "commit not known"),
    ]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {family}, {config.num_layers} layers of {config.hidden_size} features",
        "",
        f"Trained with PopTorch's interface ({_task(config)}).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "## Losses and metrics",
        "",
        *_metrics(record),
        "",
        "## Use",
        "",
        *_use(config, model),
        "",
        "## Limits",
        "",
        *_limits(config, model, device),
        "",
    ]
    return "\n".join(lines)


def _recipe(arguments: Sequence[str]) -> str:
    for place, word in enumerate(arguments):
        if word == "--config" and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return ""


def _task(config: Config) -> str:
    if config.task == "pretraining":
        return "masked language modelling and next sentence prediction"
    if config.task == "squad":
        return f"question answering, SQuAD {config.squad_version}"
    return f"classification, GLUE task {config.glue_task}" if config.task == "glue" else config.task


def _data(config: Config) -> str:
    if config.task == "pretraining":
        return config.corpus
    return config.train_data or "the published data set"


def _arithmetic(config: Config, device: ipu.DeviceChoice) -> str:
    if device.name == "simulator":
        return (
            "arithmetic of float32" if config.simulator_precision == "float32" else config.simulator_precision
        )
    return config.precision


def _metrics(record: Record) -> List[str]:
    shown = {
        key: value for key, value in record.items() if key not in ("step", "learning_rate", "samples_per_s")
    }
    if not shown:
        return ["None were recorded."]
    rows = []
    for key, value in shown.items():
        where = "held-out" if key.startswith("eval_") else "last update"
        number = "not defined" if value is None else f"{value:.6g}"
        rows.append(f"| {key[len('eval_') :] if where == 'held-out' else key} | {where} | {number} |")
    return ["| metric | of | value |", "|---|---|---|", *rows]


def _use(config: Config, model: models.TaskModel) -> List[str]:
    kind = _CLASSES.get(config.task, "AutoModelForSequenceClassification")
    trust = "" if model.config.is_bert else ", trust_remote_code=True"
    text = ["```python", f"from transformers import AutoTokenizer, {kind}", ""]
    text += [f'model = {kind}.from_pretrained("THIS FOLDER"{trust})']
    text += [f'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER"{trust})', "```"]
    if trust:
        text += ["", "The model's code is beside the weights; classes of BERT refuse them."]
    return text


def _limits(config: Config, model: models.TaskModel, device: ipu.DeviceChoice) -> List[str]:
    limits = [
        "- The model has seen the training data above and nothing else, and has its errors and prejudices. "
        "The metrics are of one held-out set and one seed.",
        f"- Sequences of training had at most {config.sequence_length} tokens"
        + (", in lower case." if config.lowercase else "."),
    ]
    if not computes_as_ipu(config, device):
        limits.append(
            f"- It was trained on a simulator of IPUs in {config.simulator_precision}, not on an IPU."
        )
    else:
        limits.append("- It was trained with the tanh form of GELU, which `hidden_act` in config.json names.")
    return limits


@lru_cache(maxsize=None)
def commit() -> str:
    """The commit of this program's checkout, with "+changes" if it has some; empty if there is none."""
    done = []
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done.append(
                subprocess.run(
                    ["git", *words],
                    cwd=str(_ROOT),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    timeout=10,
                    check=True,
                ).stdout.strip()
            )
        except (OSError, subprocess.SubprocessError):  # no git, or no repository
            return ""
    return done[0] + (" with changes" if done[1] else "")


# What a run needs to resume and a model's user doesn't.
NOT_UPLOADED = ("optimizer.safetensors", "state.json")


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads a checkpoint's model, tokeniser and card to a repository; returns its address.

    The repository is created, private, if it doesn't exist. Raises TrainingError: the checkpoint stays as it
    is.
    """
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=str(folder),
            ignore_patterns=list(NOT_UPLOADED),
            commit_message=f"Model of {folder.name}",
        )
    except Exception as error:  # the hub's client raises its HTTP library's errors too, of many types
        raise TrainingError(
            f"{folder} can't be uploaded to {repository!r} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). The checkpoint is saved: run `hf auth login` and check "
            "name and network, then repeat the command with --resume"
        ) from error
    return str(address)
