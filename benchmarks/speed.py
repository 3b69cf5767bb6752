"""The simulator compared with plain PyTorch and Hugging Face's Trainer on this host: ratios of step times.

All sides compute the same model, batch and optimizer. A and B alternate, each in a separate process, and each
ratio is that of an adjacent pair, so a busy machine slows both: trust the ratios, not the times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

import command_line
import config as configuration
import data
import ipu
import model as models
import training
from config import Config, ConfigError
from ipu.options import DevicePlan, training_options
from training.optimizer import parameter_groups

from . import micro_batches
from .results import Column, Result, missing_note, publish, quartiles
from .steps import random_batch, samples_per_call
from .trainings import Budget

# The first step creates the optimizer's state; the second is timed.
_TRAINER_STEPS = 2


class Contender:
    """One side of a comparison: `step_s()` makes a weight update and returns its seconds.

    `model` is the module whose weights are updated, if it is in this process.
    """

    def __init__(self, step_s: Callable[[], float], model: Optional[nn.Module] = None) -> None:
        self.step_s = step_s
        self.model = model


def _timed(step: Callable[[], None], model: nn.Module) -> Contender:
    def step_s() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return Contender(step_s, model)


class _InDtype(nn.Module):
    """The pretraining model, returning only its loss, optionally in mixed precision."""

    def __init__(self, config: Config, dtype: str) -> None:
        super().__init__()
        self.model = models.PretrainingModel(config.model_config(), seed=config.seed)
        self.dtype_name = dtype

    def forward(self, *batch: Tensor) -> Tensor:
        with _precision(self.dtype_name):
            loss: Tensor = self.model(*batch)[0]
        return loss.float()


def _precision(dtype: str) -> ContextManager[Any]:
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


class _OnDevice(_InDtype):
    def forward(self, *batch: Tensor) -> Tensor:
        loss: Tensor = ipu.poptorch.identity_loss(super().forward(*batch), reduction="none")
        return loss


def simulator(config: Config, dtype: str) -> Contender:
    """An update of `config` by the simulator's executor, as in run_pretraining; float32 or bfloat16."""
    ipu.select_device(config.device, target=config.target)
    model = _OnDevice(config, dtype)
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    options = training_options(config.section(DevicePlan))
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    batch = _batch(config)

    def step() -> None:
        executor.setOptimizer(optimizer)
        executor(*batch)

    return _timed(step, model)


def plain_loop(config: Config, dtype: str) -> Contender:
    """The same update in plain PyTorch: micro batches one by one, then a fused AdamW."""
    model = _InDtype(config, dtype)
    optimizer = torch.optim.AdamW(
        _groups(model, config),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.optimizer_eps,
        fused=True,
    )
    micro_batches = _micro_batches(config)

    def step() -> None:
        for micro_batch in micro_batches:
            (model(*micro_batch) / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step, model)


def plain_loop_that_keeps_memory(config: Config, dtype: str) -> Contender:
    """`plain_loop` with the simulator's allocator settings, which are those of its process."""
    _keep_memory()
    return plain_loop(config, dtype)


def one_batch(config: Config, dtype: str) -> Contender:
    """As `plain_loop_that_keeps_memory`, with all sequences of the update in one batch: another loss."""
    _keep_memory()
    samples = config.micro_batch_size * config.gradient_accumulation
    return plain_loop(replace(config, gradient_accumulation=1, micro_batch_size=samples), dtype)


def _keep_memory() -> None:
    """The first model that is compiled in a process makes it keep freed memory."""
    ipu.select_device("simulator")
    ipu.poptorch.inferenceModel(nn.Identity())(torch.zeros(1))


def trainer(config: Config, dtype: str) -> Contender:
    """The same update by transformers.Trainer with default settings, no logging and no checkpoints."""
    try:
        import accelerate  # noqa: F401 (the Trainer needs it, and says so less plainly)
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the comparison with Hugging Face's Trainer needs {error.name}: pip install {error.name}, "
            "or choose others with --only"
        ) from error
    transformers.logging.set_verbosity_error()
    model = _ForTrainer(config)
    rows = [
        dict(zip(data.BATCH_FIELDS, sample)) for micro in _micro_batches(config) for sample in zip(*micro)
    ] * _TRAINER_STEPS

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: List[float] = []

        def on_step_begin(self, *_arguments: Any, **_more: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    def step_s() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config.micro_batch_size,
                gradient_accumulation_steps=config.gradient_accumulation,
                max_steps=_TRAINER_STEPS,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                adam_beta1=config.adam_beta1,
                adam_beta2=config.adam_beta2,
                adam_epsilon=config.optimizer_eps,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                bf16=dtype == "bfloat16",
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=config.seed,
            )
            side = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock])
            side.remove_callback(transformers.PrinterCallback)
            side.train()
        return clock.seconds[-1]

    return Contender(step_s, model)


class _ForTrainer(nn.Module):
    """The Trainer passes fields by name and reads the loss from a dictionary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = models.PretrainingModel(config.model_config(), seed=config.seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        masked_lm_positions: Tensor,
        masked_lm_labels: Tensor,
        next_sentence_labels: Tensor,
    ) -> Dict[str, Tensor]:
        return {
            "loss": self.model(
                input_ids,
                attention_mask,
                token_type_ids,
                masked_lm_positions,
                masked_lm_labels,
                next_sentence_labels,
            )[0]
        }


def _groups(model: nn.Module, config: Config) -> List[Dict[str, Any]]:
    return parameter_groups(model, config.weight_decay, lamb=False)


def _batch(config: Config) -> Tuple[Tensor, ...]:
    return random_batch(config, samples_per_call(config), config.seed)


def _micro_batches(config: Config) -> List[Sequence[Tensor]]:
    split = [field.split(config.micro_batch_size) for field in _batch(config)]
    return list(zip(*split))


# In the process of `Apart`: the contender whose steps are timed.
_contender: List[Contender] = []


class Apart:
    """A process for one contender at a time, so that the two sides share no allocator, threads or caches.

    A context manager; leaving it ends the process.

    :param name: of the side, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Not forked: this process may have threads, and a configured allocator.
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def contender(self, build: Callable[..., Contender], *arguments: Any) -> Contender:
        """Replaces the process's contender with `build(*arguments)`. Raises what `build` raises."""
        # Ctrl-C is handled in this process; the child inherits that it is ignored.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            made = self._pool.submit(_make, build, arguments)
        finally:
            signal.signal(signal.SIGINT, before)
        self._result(made)
        return Contender(lambda: float(self._result(self._pool.submit(_step_s))))

    def _result(self, asked: Any) -> Any:
        try:
            return asked.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"the process of {self._name} died in the middle of a step, perhaps out of memory: "
                "choose smaller comparisons with --only"
            ) from error

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: Optional[object]) -> None:
        self._pool.shutdown()


def _make(build: Callable[..., Contender], arguments: Any) -> None:
    _contender.clear()
    _contender.append(build(*arguments))


def _step_s() -> float:
    return _contender[0].step_s()


# Comparisons in which the simulator must not be slower.
_GOAL = 1.0
# Warm-up until the allocator is in a steady state: the first steps allocate memory from the system.
WARM_UP_ROUNDS = 3

# Name -> the other side, model, dtype and batch: sequences per micro batch, micro batches per update.
_COMPARISONS: Tuple[Tuple[str, str, str, str, int, int], ...] = (
    tuple(
        (f"{size}_{dtype}_vs_{other}", other, size, dtype, batch, 1)
        for size, batch in (("mini", 16), ("medium", 8))
        for dtype in ("float32", "bfloat16")
        for other in ("plain_loop", "trainer")
    )
    + micro_batches.COMPARISONS
)
_OTHERS: Dict[str, Callable[[Config, str], Contender]] = {
    "trainer": trainer,
    micro_batches.PLAIN: plain_loop,
    micro_batches.KEEPS_MEMORY: plain_loop_that_keeps_memory,
    micro_batches.ONE_BATCH: one_batch,
}

_COLUMNS = (
    Column("name", "simulator against"),
    Column("rounds", "rounds", "given"),
    Column("ours_s", "simulator s/step", "measured", "{:.4f}"),
    Column("theirs_s", "other s/step", "measured", "{:.4f}"),
    Column("median", "ratio", "derived", "{:.3f}"),
    Column("low", "quartile", "derived", "{:.3f}"),
    Column("high", "quartile", "derived", "{:.3f}"),
    Column("goal", "goal", "given", "{:.2f}"),
    Column("stretch", "stretch", "given", "{:.2f}"),
)
_SIZES = {"tiny": (128, 2, 2), "mini": (256, 4, 4), "medium": (512, 8, 8)}
_LENGTHS = {"tiny": (32, 5, 1024), "mini": (128, 20, 30522), "medium": (128, 20, 30522)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    names = [comparison[0] for comparison in _COMPARISONS]
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios to this file")
    parser.add_argument("--rounds", type=int, default=7, help="pairs per comparison [7]")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="comparisons [all]")


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if flags.rounds < 1:
        raise configuration.ConfigError(f"--rounds {flags.rounds}: at least 1")
    command_line.choose_device(config_of("tiny", 1, 1))
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    chosen = [comparison for comparison in _COMPARISONS if comparison[0] in flags.only]
    with Apart("the simulator") as our_process, Apart("the other side") as their_process:
        for name, other, size, dtype, batch, accumulation in chosen:
            if budget.is_spent:
                missing.append(name)
                continue
            config = config_of(size, batch, accumulation)
            ours = our_process.contender(simulator, config, dtype)
            theirs = their_process.contender(_OTHERS[other], config, dtype)
            goal, stretch = micro_batches.GOALS.get(name, (_GOAL, _GOAL))
            measured = compare(ours, theirs, flags.rounds, budget)
            rows.append({"name": name, **measured, "goal": goal, "stretch": stretch})
            print(_COLUMNS[0].text(rows[-1]), f"{rows[-1]['median']:.3f}", flush=True)
    ratios = {
        row["name"]: {key: row[key] for key in ("median", "low", "high", "goal", "stretch", "better")}
        for row in rows
    }
    result = Result(
        "speed",
        "Host speed of the simulator's training step",
        _COLUMNS,
        rows,
        [
            "Ratio: the other's time over the simulator's in an adjacent pair, median and quartiles; "
            "above 1 the simulator is faster. Both use the same model and batch, no dropout and a fused "
            "AdamW. Each runs in a separate process, with the allocator's default or own settings.",
            *missing_note(missing),
        ],
        extra={"ratios": ratios},
    )
    publish(result, output, lambda figure: _draw(figure, rows))
    if flags.json is not None:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        training.write_atomically(flags.json, json.dumps({"ratios": ratios}, indent=2) + "\n")
    return result


def compare(
    ours: Contender, theirs: Contender, rounds: int, budget: Optional[Budget] = None
) -> Dict[str, Any]:
    """Alternates the two, and which one starts, after at least one warm-up round."""
    for _ in range(WARM_UP_ROUNDS):
        ours.step_s()
        theirs.step_s()
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = theirs.step_s()
            first = ours.step_s()
        else:
            first = ours.step_s()
            second = theirs.step_s()
        pairs.append((first, second))
        if budget is not None and budget.is_spent:
            break
    low, median, high = quartiles([second / first for first, second in pairs])
    return {
        "rounds": len(pairs),
        "ours_s": quartiles([first for first, _ in pairs])[1],
        "theirs_s": quartiles([second for _, second in pairs])[1],
        "median": median,
        "low": low,
        "high": high,
        "better": "higher",
    }


def config_of(size: str, batch: int, accumulation: int) -> Config:
    hidden, layers, heads = _SIZES[size]
    length, masks, vocabulary = _LENGTHS[size]
    return Config(
        model="bert",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        sequence_length=length,
        mask_tokens=masks,
        micro_batch_size=batch,
        gradient_accumulation=accumulation,
        training_steps=1,
        learning_rate=1e-4,
        lr_schedule="constant",
        weight_decay=0.01,
        device="simulator",
        target="pod4",
        ipus_per_replica=1,
        layers_per_ipu=(layers,),
    )


def _draw(figure: Any, rows: Sequence[Dict[str, Any]]) -> None:
    axes = figure.subplots()
    names = [row["name"] for row in rows]
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    axes.barh(names, medians, xerr=spread, capsize=4)
    axes.axvline(_GOAL, color="k", ls="--", lw=1)
    axes.invert_yaxis()
    axes.set(xlabel="other's step time over the simulator's (higher: simulator faster)", title="Host speed")
