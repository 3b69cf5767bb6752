"""The same training step in three hands: the simulator, a plain PyTorch loop, Hugging Face's Trainer."""

from __future__ import annotations

import contextlib
import tempfile
import time
from typing import Any, Callable, ContextManager, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

import data
import ipu
import model as models
import training
from config import Config, ConfigError
from ipu.options import DevicePlan, training_options
from training.optimizers import parameter_groups

from .steps import random_batch, samples_per_call

# Each time the first step makes the optimizer's state; the second is timed.
_TRAINER_STEPS = 2


class Contender:
    """One side of a comparison: `step_s()` makes a weight update and returns the seconds that it took."""

    def __init__(self, step_s: Callable[[], float]) -> None:
        self.step_s = step_s


def _timed(step: Callable[[], None]) -> Contender:
    def step_s() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return Contender(step_s)


class _InDtype(nn.Module):
    """The pretraining model with its loss alone, in mixed precision where that is asked for."""

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
    """An update of `config` by our executor, as run_pretraining makes it; `dtype` float32 or bfloat16."""
    ipu.select_device(config.device, target=config.target)
    model = _OnDevice(config, dtype)
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    options = training_options(config.section(DevicePlan))
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    batch = _batch(config)

    def step() -> None:
        executor.setOptimizer(optimizer)
        executor(*batch)

    return _timed(step)


def plain_loop(config: Config, dtype: str) -> Contender:
    """The same update as one writes it in PyTorch: micro batches one by one, then a fused AdamW."""
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

    return _timed(step)


def trainer(config: Config, dtype: str) -> Contender:
    """The same update by transformers.Trainer with its own settings, no logging and no checkpoints."""
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

    return Contender(step_s)


class _ForTrainer(nn.Module):
    """The Trainer gives fields by name and takes the loss from a dictionary."""

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
