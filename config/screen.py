"""What a run prints of its configuration and of the recipes there are: the quantities that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Mapping, Optional, Sequence

from .config import CONFIGS, Config, derived
from .recipes import read_recipes
from .schema import defaults


def summary(config: Config, name: str, given: Mapping[str, object]) -> Iterator[str]:
    """The lines of a run's first screen. `given`: the keys that were set on the command line."""
    facts = derived(config)
    sizes = f"{config.num_layers} layers of {config.hidden_size} features, {config.num_heads} heads"
    rows: Dict[str, str] = {
        "task": _task(config),
        "model": f"{config.model}: {sizes}, vocabulary {config.vocab_size:,}: "
        f"{facts['parameters']:,} parameters",
        "data": _data(config),
        "length": _length(config, facts),
        "batch": f"global_batch_size {facts['global_batch_size']:,} = micro batch "
        f"{config.micro_batch_size} x accumulation {config.gradient_accumulation} x replicas "
        f"{config.replication_factor}; {facts['tokens_per_step']:,} tokens per update",
        "optimizer": f"{config.optimizer}, learning rate {config.learning_rate:g}, {config.lr_schedule} "
        f"schedule, warm-up {_warmup(config)}",
        "machine": f"{config.target}, of whose IPUs {facts['ipus']} are used; pipeline stages: "
        f"{facts['pipeline_stages']}; seed {config.seed}",
    }
    if config.packed_data:
        rows["packing"] = (
            f"rows of up to {config.pack_depth} sequences, {config.separator_tokens} tokens of padding "
            f"between two; about {config.sequences_per_step:,} sequences in the "
            f"{config.global_batch_size:,} rows of an update"
        )
    if given:
        rows["flags"] = ", ".join(f"{key} {_shown(value)}" for key, value in given.items())
    yield f"configuration {name}:"
    for title, text in rows.items():
        yield f"  {title:<10}{text}"


def _task(config: Config) -> str:
    version = {"squad": f" {config.squad_version}", "glue": f": {config.glue_task}"}.get(config.task, "")
    return config.task + version


def _data(config: Config) -> str:
    if not config.task_facts.is_pretraining:
        train, held_out = config.train_data or "published", config.validation_data or "published"
        return f"train {train}, evaluate {held_out}; sequences of {config.sequence_length} tokens"
    held_out = config.validation_corpus or f"{config.validation_fraction:g} of its documents held out"
    return (
        f"{config.corpus}, {held_out}; sequences of {config.sequence_length} tokens, "
        f"tokenizer {config.tokenizer}"
    )


def _length(config: Config, facts: Mapping[str, Any]) -> str:
    if config.training_steps:
        return f"{config.training_steps:,} weight updates, {facts['samples_total']:,} sequences"
    return f"{config.epochs:g} epochs"


def _warmup(config: Config) -> str:
    if config.training_steps or config.lr_warmup >= 1:
        return f"{config.warmup_steps:,} updates"
    return f"{config.lr_warmup:.0%} of the updates"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def changed_batch(config: Config, recipe: Mapping[str, Any], name: str) -> Optional[str]:
    """A warning if flags gave the run another global batch than its recipe's; None if they didn't."""
    keys = ("micro_batch_size", "gradient_accumulation", "replication_factor")
    values = [recipe.get(key, defaults().get(key)) for key in keys]
    if not all(type(value) is int for value in values):  # "auto", which a search decides
        return None
    size = 1
    for value in values:
        size *= value
    if size == config.global_batch_size:
        return None
    rows = "rows" if config.packed_data else "sequences"
    return (
        f"warning: the global batch is {config.global_batch_size:,} {rows}, not {size:,} as in {name}, "
        "whose learning rate and training_steps were chosen for that"
    )


def recipe_lines(task: Optional[str], path: Path = CONFIGS) -> List[str]:
    """A line for each runnable recipe of a task (None: of every task) of a file. Raises ConfigError."""
    rows = []
    for name, recipe in read_recipes(Path(path)).items():
        values = {**defaults(), **recipe}
        if name.startswith("_") or (task is not None and values["task"] != task):
            continue
        size = f"{values.get('num_layers')} x {values.get('hidden_size')}"
        rows.append(
            (
                name,
                *(str(values[key]) for key in ("task", "model")),
                size,
                *(str(values.get(key, "")) for key in ("sequence_length", "target")),
            )
        )
    rows.insert(0, ("recipe", "task", "model", "layers", "tokens", "target"))
    return text_table(rows).splitlines()


_PIPE_CHARACTERS = 1 << 16  # of a line: nothing is cut where it may be read by a program


def text_table(
    rows: Sequence[Sequence[str]], *, headings: int = 1, right: Collection[int] = (), rule: bool = False
) -> str:
    """Rows of words as aligned columns, those in `right` to the right; the first `headings` rows name them.

    `rule`: a line of dashes below the headings. For standard output: in a terminal long words are wrapped to
    fit it, and headings are bold; in a pipe or a file a row is a plain line. Chinese, Japanese and emoji take
    two places.
    """
    from rich.cells import cell_len  # here: --help needs no tables
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_CHARACTERS)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(len(rows[0])):
        grid.add_column(justify="right" if column in right else "left", overflow="fold")
    for number, row in enumerate(rows):
        if rule and number == headings:
            dashes = ["-" * max(map(cell_len, column)) for column in zip(*rows)]
            grid.add_row(*(Text(one, no_wrap=True, overflow="crop") for one in dashes))
        grid.add_row(*map(Text, row), style="bold" if number < headings else None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
