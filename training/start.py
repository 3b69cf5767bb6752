"""The start of a run: the checkpoint that it resumes, matching weights from a folder, or random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

import torch

import data
import ipu
import model as models
from config import defaults, keys_that_alter

from .checkpoints import Checkpoint, newest_checkpoint, warn_of_bad_checkpoints
from .errors import CheckpointError, TrainingError
from .folder import step_folders
from .loop import Progress, Speed


def checkpoint_to_resume(output: Path, config: Mapping[str, Any], *, resume: bool) -> Optional[Checkpoint]:
    """The newest valid checkpoint of `output` if `resume`, else None for a new run.

    `config` is the run's configuration as a flat mapping. Raises TrainingError if a new run would write into
    another run's folder, CheckpointError if there is nothing to resume or the configuration differs.
    """
    if not resume:
        refuse_folder_of_a_run(output, "add --resume to continue it, or use another --output")
        return None
    checkpoint, problems = newest_checkpoint(output)
    warn_of_bad_checkpoints(problems)
    if checkpoint is None:
        raise CheckpointError(
            f"--resume: no valid checkpoint in {output / 'checkpoints'}; omit --resume to start a new run"
        )
    _refuse_another_run(checkpoint, config)
    return checkpoint


def refuse_folder_of_a_run(output: Path, remedy: str = "use another --output") -> None:
    """Raises TrainingError if `output` holds checkpoints."""
    if step_folders(output):
        raise TrainingError(f"the output folder {output} holds the checkpoints of another run: {remedy}")


def _refuse_another_run(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    # A longer or shorter training is the same run, but its schedule changes: print a warning.
    may_change = keys_that_alter("nothing", "evaluation", "machine") | {"training_steps"}
    # A key that is newer than the checkpoint had its default's meaning.
    newer = {key: value for key, value in defaults().items() if key in config}
    then = {**json.loads(json.dumps(newer)), **checkpoint.state["config"]}
    now = json.loads(json.dumps(dict(config)))
    for key in sorted(set(then) | set(now)):
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if key not in may_change:
            raise CheckpointError(
                f"--resume: {key} was {json.dumps(before)} in {checkpoint.folder} and is {json.dumps(after)} "
                "now, but a resumed run must have the same configuration. To start a new run from these "
                f"weights, use --checkpoint {checkpoint.folder} and another --output"
            )
        if key == "training_steps" and after < checkpoint.step:
            raise CheckpointError(
                f"--resume: training_steps is {after}, but {checkpoint.folder} is already at step "
                f"{checkpoint.step}"
            )
        if key == "training_steps":
            print(
                f"warning: training_steps was {before} and is now {after}: the learning rates change",
                file=sys.stderr,
            )


def progress_of(checkpoint: Optional[Checkpoint], samples_per_call: int) -> Progress:
    """The progress at a run's start: that of the checkpoint it resumes, or before the first evaluation.

    `samples_per_call` is for checkpoints of earlier versions, which don't count the sequences of a run.
    """
    if checkpoint is None:
        return Progress(0, {"step": 0}, evaluation_due=True, checkpoint=None)
    saved = checkpoint.state["progress"]
    totals = saved.get("speed", {})  # checkpoints of earlier versions have none
    speed = Speed(**{"samples": totals.get("calls", 0) * samples_per_call, **totals})
    return Progress(checkpoint.step, saved["record"], saved["evaluation_due"], checkpoint.folder, speed)


def random_state(
    checkpoint: Optional[Checkpoint], device: ipu.DeviceChoice, instances: ipu.Instances
) -> Optional[List[int]]:
    """This instance's random state in the checkpoint that the run resumes; None: it starts from the seed.

    Prints a warning if the state can't be restored. An instance's state covers the IPUs that it drives, so
    the number of instances must be that of the checkpoint. On the simulator all instances have the same
    state: random numbers belong to a replica, wherever it runs.
    """
    if checkpoint is None:
        return None
    states: List[List[int]] = [checkpoint.state["rng_state"], *checkpoint.state.get("other_rng_states", [])]
    if device.name == "simulator":
        return states[0]
    if len(states) == instances.count:
        return states[instances.index]
    if instances.is_first:
        print(
            f"warning: {checkpoint.folder} has the random states of {len(states)} instances, this run has "
            f"{instances.count}: random numbers start from the seed again, so the run doesn't continue to "
            f"the bit. For that, start {len(states)}",
            file=sys.stderr,
        )
    return None


def resuming_arguments(arguments: Sequence[str]) -> List[str]:
    """The command line that resumes the run started with `arguments`."""
    kept: List[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--checkpoint":
            next(words)
        elif word != "--resume" and not word.startswith("--checkpoint="):
            kept.append(word)
    return [*kept, "--resume"]


def check_weights_folder(folder: Path, config: models.ModelConfig) -> None:
    """Checks, before anything slow, that `folder` has the model that `config` describes, except for dropout.

    Raises CheckpointError that names the flags that would make them equal, and the errors of
    `model.read_model_config`.
    """
    found = models.read_model_config(folder)
    differences = [
        f"{key} is {getattr(found, key)!r} there and {getattr(config, key)!r} here"
        for key in config.__dataclass_fields__
        if not key.endswith("dropout") and getattr(found, key) != getattr(config, key)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint {folder} has another model than the configuration: {'; '.join(differences)}. "
            "Each of these keys is a flag, for example --layer-norm-eps 1e-12 for a Hugging Face BERT"
        )


def check_vocabulary(folder: Path, tokenizer: data.Tokenizer) -> None:
    """Raises CheckpointError if `folder` has a vocabulary and it isn't the tokenizer's."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return
    # A folder with a bare vocab.txt doesn't say whether it lower-cases.
    theirs = data.load_tokenizer(str(folder), lowercase=tokenizer.lowercase)
    if theirs.fingerprint() == tokenizer.fingerprint():
        return
    if theirs.vocabulary == tokenizer.vocabulary:
        differences = [
            f"{name} is {getattr(theirs, name)} there and {getattr(tokenizer, name)} here"
            for name in ("lowercase", "strip_accents", "added")
            if getattr(theirs, name) != getattr(tokenizer, name)
        ]
        raise CheckpointError(
            f"the vocabulary of the checkpoint {folder} is that of the data, but it is used in another way: "
            f"{'; '.join(differences)}. Use the checkpoint's, --tokenizer {folder}"
        )
    raise CheckpointError(
        f"the vocabulary of the checkpoint {folder} ({theirs.vocab_size} entries) is not the "
        f"vocabulary of the data ({tokenizer.vocab_size} entries): use the checkpoint's, "
        f"--tokenizer {folder}"
    )


def initial_model(
    config: models.ModelConfig,
    *,
    head: str,
    seed: int,
    folder: Optional[Path],
    labels: Sequence[str] = (),
    is_resumed: bool = False,
) -> models.TaskModel:
    """A model of the task `head`, with weights from `folder` (checked before) or, without one, from `seed`.

    The parts of the head that the folder lacks are initialised from `seed`, and printed; the folder of a run
    that is resumed has all. `labels`: see `model.from_pretrained`.
    """
    if folder is None:
        return models.TASKS[head].build(config, seed=seed, labels=labels)
    model = models.from_pretrained(
        folder,
        head=head,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        seed=seed,
        fresh_head=not is_resumed,
        labels=labels,
    )
    if model.fresh_modules:
        print(f"not in the checkpoint, so new from seed {seed}: {', '.join(model.fresh_modules)}", flush=True)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"the checkpoint {folder}: its weight {name} holds NaN or infinity, so the run that wrote it "
                "had diverged, or the file is damaged. Start from an earlier checkpoint or from another copy"
            )
    return model
