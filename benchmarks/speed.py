"""The simulator compared with plain PyTorch and Hugging Face's Trainer on this host: ratios of step times.

All sides compute the same model, batch and optimizer. A and B alternate, each in a separate process, and each
ratio is that of an adjacent pair, so a busy machine slows both: trust the ratios, not the times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

import command_line
import config as configuration
import data
import ipu
import model as models
import training
from config import Config
from ipu.options import DevicePlan, training_options
from training.optimizer import parameter_groups

from . import host_rows
from .contenders import Apart, Contender, compare
from .results import Column, Result, missing_note, publish
from .steps import random_batch, samples_per_call
from .trainings import Budget

# The first step creates the optimizer's state; the second is timed.
_TRAINER_STEPS = 2
_FIELDS_AS_USED = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label")


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
    ipu.select_device(config.device, target=config.target, precision=config.simulator_precision)
    model = _OnDevice(config, dtype)
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    options = training_options(config.section(DevicePlan))
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    batch = _batch(config)

    def step() -> None:
        executor.setOptimizer(optimizer)
        executor(*batch)

    return _timed(step, model)


def emulated(config: Config) -> Contender:
    """An update of `config` with an IPU's float16, in CPU seconds of its process."""
    ipu.select_device(config.device, target=config.target, precision=config.simulator_precision)
    model = _OnDevice(config, "float32")
    if config.simulator_precision != "float32":
        model.half()
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    executor = ipu.poptorch.trainingModel(model, training_options(config.section(DevicePlan)), optimizer)
    batch = _batch(config)
    return Contender(host_rows.cpu_s(lambda: executor(*batch)), model)


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
    rows = [
        dict(zip(data.BATCH_FIELDS, sample)) for micro in _micro_batches(config) for sample in zip(*micro)
    ]
    return _by_trainer(config, dtype, _ForTrainer(config), rows)


def trainer_as_used(config: Config, dtype: str) -> Contender:
    """transformers' BertForPreTraining and Trainer, as their users have them: all positions are projected."""
    transformers = host_rows.transformers_or_error()
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.sequence_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    rows = []
    for micro in _micro_batches(config):
        for ids, mask, types, positions, masked, is_random in zip(*micro):
            labels = torch.full_like(ids, -100).scatter(0, positions.long(), masked)
            fields = (ids, mask, types, labels, is_random)
            rows.append({name: field.long() for name, field in zip(_FIELDS_AS_USED, fields)})
    return _by_trainer(config, dtype, model, rows)


def _by_trainer(config: Config, dtype: str, model: nn.Module, rows: List[Dict[str, Tensor]]) -> Contender:
    transformers = host_rows.transformers_or_error()
    rows = rows * _TRAINER_STEPS

    class Clock(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
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


@dataclass(frozen=True)
class Comparison:
    """A row. Each side is a function that builds it, and its arguments; `lacks()` says why this machine can't
    show it, or None. `better`: "higher" for their time over ours, "lower" for ours over theirs.
    """

    name: str
    ours: Tuple[Callable[..., Contender], Tuple[Any, ...]]
    theirs: Tuple[Callable[..., Contender], Tuple[Any, ...]]
    goal: float
    stretch: float
    better: str = "higher"
    lacks: Callable[[], Optional[str]] = lambda: None


def lacks_bfloat16() -> Optional[str]:
    """Why this machine can't show a row in bfloat16; None if it can."""
    if ipu.bfloat16_instructions() is not None:
        return None
    return "needs a CPU with AMX or AVX512-BF16"


_PLAIN_LOOPS: Dict[str, Callable[[Config, str], Contender]] = {
    host_rows.PLAIN: plain_loop,
    host_rows.KEEPS_MEMORY: plain_loop_that_keeps_memory,
    host_rows.ONE_BATCH: one_batch,
}


def _steps(size: str, batch: int, goals: Dict[str, Tuple[float, float]]) -> Iterator[Comparison]:
    """Rows of one model's training step against a plain loop and the Trainer, in float32."""
    config, narrow = config_of(size, batch, 1), config_of(size, batch, 1, "bfloat16")
    ours = (simulator, (config, "float32"))
    yield Comparison(
        f"{size}_float32_vs_trainer_as_used",
        ours,
        (trainer_as_used, (config, "float32")),
        *goals["trainer"],
        lacks=host_rows.lacks_transformers,
    )
    yield Comparison(
        f"{size}_float32_vs_trainer",
        ours,
        (trainer, (config, "float32")),
        1.0,
        1.0,
        lacks=host_rows.lacks_transformers,
    )
    by_onednn = (simulator, (config_of(size, batch, 1, "float32-onednn"), "float32"))
    yield Comparison(
        f"{size}_float32_onednn_vs_trainer_as_used",
        by_onednn,
        (trainer_as_used, (config, "float32")),
        *goals["trainer"],
        lacks=host_rows.lacks_transformers,
    )
    for other in (host_rows.PLAIN, host_rows.KEEPS_MEMORY):
        theirs = (_PLAIN_LOOPS[other], (config, "float32"))
        yield Comparison(f"{size}_float32_vs_{other}", ours, theirs, *goals["float32"])
        yield Comparison(f"{size}_float32_onednn_vs_{other}", by_onednn, theirs, *goals["float32"])
        yield Comparison(
            f"{size}_bfloat16_vs_float32_{other}",
            (simulator, (narrow, "float32")),
            theirs,
            *goals["bfloat16"],
            lacks=lacks_bfloat16,
        )


def _emulations() -> Iterator[Comparison]:
    """Rows of float16 emulation over float32, Mini, with float16 partials as in most recipes."""
    plain = config_of("mini", 16, 1)
    for precision in ("ipu-float16", "ipu-float16-fast"):
        for rounding, goal, stretch in (("nearest", 1.2, 1.1), ("stochastic", 1.6, 1.3)):
            by_chance = rounding == "stochastic"
            narrow = replace(plain, simulator_precision=precision, stochastic_rounding=by_chance)
            yield Comparison(
                f"mini_{precision.replace('-', '_')}_{rounding}_over_float32",
                (emulated, (narrow,)),
                (emulated, (plain,)),
                goal,
                stretch,
                "lower",
            )


def _encoders(
    name: str,
    ours: Tuple[host_rows.Family, str, int],
    theirs: Tuple[host_rows.Family, str, int],
    goal: float,
    flops: float,
) -> Iterator[Comparison]:
    """GroupBERT's encoder over BERT's: family, size and number of layers of each."""
    for precision in ("float32", "bfloat16"):
        yield Comparison(
            f"{name}_{precision}",
            (host_rows.layers, (host_rows.layers_of(*ours, precision),)),
            (host_rows.layers, (host_rows.layers_of(*theirs, precision),)),
            goal,
            flops,
            "lower",
            lacks_bfloat16 if precision == "bfloat16" else lambda: None,
        )


def comparisons() -> List[Comparison]:
    """All rows, with their goals: what a two-core machine should reach, and what would be better still."""
    mini = {"trainer": (3.8, 4.2), "float32": (1.2, 1.35), "bfloat16": (2.5, 3.0)}
    medium = {"trainer": (2.0, 2.3), "float32": (1.2, 1.35), "bfloat16": (3.2, 3.8)}
    merged = [
        Comparison(
            name,
            (simulator, (config_of(size, batch, count), dtype)),
            (_PLAIN_LOOPS[other], (config_of(size, batch, count), dtype)),
            *host_rows.MICRO_BATCH_GOALS[name],
        )
        for name, other, size, dtype, batch, count in host_rows.MICRO_BATCHES
    ]
    return [
        *_steps("mini", 16, mini),
        *_steps("medium", 8, medium),
        *merged,
        *_emulations(),
        *_encoders(
            "groupbert_layer_over_bert_layer", ("groupbert", "base", 1), ("bert", "base", 1), 1.65, 1.58
        ),
        *_encoders(
            "groupbert_base_over_bert_large", ("groupbert", "base", 12), ("bert", "large", 24), 0.50, 0.45
        ),
        Comparison(
            "masking_vs_collator",
            (host_rows.masking, ()),
            (host_rows.collator, ()),
            50,
            50,
            lacks=host_rows.lacks_transformers,
        ),
        Comparison(
            "tokenising_vs_encode_batch", (host_rows.tokenising, ()), (host_rows.encode_batch, ()), 1.5, 2
        ),
    ]


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
    names = [comparison.name for comparison in comparisons()]
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios to this file")
    parser.add_argument("--rounds", type=int, default=7, help="pairs per comparison [7]")
    parser.add_argument(
        "--only",
        nargs="+",
        type=_row,
        default=names,
        metavar="ROW",
        help="rows to measure, of those below [all]",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # a name isn't cut at a line's end
    parser.epilog = "\n  ".join(["rows:", *names])


def _row(name: str) -> str:
    names = [comparison.name for comparison in comparisons()]
    if name not in names:
        raise argparse.ArgumentTypeError(f"{name!r} is not a row; {configuration.nearest(name, names)}")
    return name


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if flags.rounds < 1:
        raise configuration.ConfigError(f"--rounds {flags.rounds}: at least 1")
    command_line.choose_device(config_of("tiny", 1, 1))
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    left_out: Dict[str, str] = {}
    with contextlib.ExitStack() as processes:
        # Sides that keep freed memory run in a separate process, which keeps it for good.
        apart = {name: processes.enter_context(Apart(name)) for name in _PROCESSES}
        for comparison in comparisons():
            if comparison.name not in flags.only:
                continue
            if budget.is_spent:
                missing.append(comparison.name)
                continue
            reason = comparison.lacks()
            if reason is not None:
                left_out[comparison.name] = reason
                print(f"{comparison.name}: left out, {reason}", flush=True)
                continue
            (build_ours, our_arguments), (build_theirs, their_arguments) = comparison.ours, comparison.theirs
            other = _KEEPS if "keeps_memory" in comparison.name else _OTHER
            ours = apart[_OURS].contender(build_ours, *our_arguments)
            theirs = apart[other].contender(build_theirs, *their_arguments)
            measured = compare(ours, theirs, flags.rounds, budget, comparison.better)
            rows.append(
                {"name": comparison.name, **measured, "goal": comparison.goal, "stretch": comparison.stretch}
            )
            print(comparison.name, f"{rows[-1]['median']:.3f}", flush=True)
    ratios = {
        row["name"]: {key: row[key] for key in ("median", "low", "high", "goal", "stretch", "better")}
        for row in rows
    }
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    result = Result(
        "speed",
        "Host speed of the simulator's training step",
        _COLUMNS,
        rows,
        [
            "Ratio: the other's time over the simulator's in an adjacent pair, median and quartiles; above 1 "
            "the simulator is faster. Where lower is better it is the first one's time over the second's. "
            "Both use the same batch, no dropout and a fused AdamW. Each runs in a separate process, with "
            "its own allocator settings; the loop that keeps memory has the simulator's.",
            f"Load of the machine at the end, over a minute: {busy:.1f}; this benchmark's share is about 2.",
            *(f"{name} is left out: it {reason}." for name, reason in left_out.items()),
            *missing_note(missing),
        ],
        extra={"ratios": ratios, "left_out": left_out},
    )
    publish(result, output, lambda figure: _draw(figure, rows))
    if flags.json is not None:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"ratios": ratios, "left_out": left_out}
        training.write_atomically(flags.json, json.dumps(found, indent=2) + "\n")
    return result


_PROCESSES = _OURS, _OTHER, _KEEPS = "the simulator", "the other side", "the other side that keeps memory"


def config_of(size: str, batch: int, accumulation: int, precision: host_rows.Precision = "float32") -> Config:
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
        simulator_precision=precision,
    )


def _draw(figure: Any, rows: Sequence[Dict[str, Any]]) -> None:
    """How near each row is to its goal; the ratio stands beside it."""
    figure.set_size_inches(9, 1.5 + 0.25 * len(rows))
    axes = figure.subplots()
    names = [row["name"] for row in rows]
    reached = [_of_goal(row, row["median"]) for row in rows]
    ends = [sorted((_of_goal(row, row["low"]), _of_goal(row, row["high"]))) for row in rows]
    spread = [
        [near - end[0] for near, end in zip(reached, ends)],
        [end[1] - near for near, end in zip(reached, ends)],
    ]
    axes.barh(names, reached, xerr=spread, capsize=3)
    for number, row in enumerate(rows):
        axes.text(0.02, number, f"{row['median']:.2f}", va="center", color="white")
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="share of the goal that is reached (in white: the ratio)", title="Host speed")


def _of_goal(row: Dict[str, Any], ratio: float) -> float:
    share: float = ratio / row["goal"] if row["better"] == "higher" else row["goal"] / ratio
    return share
