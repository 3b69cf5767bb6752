"""What `import training` gives, from its first use on: PyTorch takes seconds to import."""

from __future__ import annotations

from .answering import Answering, Examiner
from .checkpoints import Checkpoint, resolve_weights_folder, save_checkpoint
from .classifying import ClassExaminer, Classifying
from .compilation import CompilationError, compile_pretraining, compile_program, place
from .errors import CheckpointError, DivergenceError, TrainingError, is_worker_death, out_of_memory_bytes
from .evaluation import Evaluator, build_evaluator
from .fine_tuning import validation_evaluator, with_training_steps, write_summary
from .folder import hold_folder, write_atomically
from .inference_keys import inference_config
from .job import Job, Start, find_start, fit
from .loop import LoopPlan, Progress, Speed, refuse_bad_weights, train
from .metrics import GLUE, PACKED_PRETRAINING, PRETRAINING, SQUAD, EvaluationMetrics
from .metrics_file import Record, plain
from .model_card import push_to_hub
from .optimizer import OptimizerPlan, Schedule, build_optimizer
from .report import Reporter, plot_loss
from .signals import RunInterrupted, StopRequest, ignore_interrupts, stop_on_signals
from .start import (
    check_vocabulary,
    check_weights_folder,
    checkpoint_to_resume,
    initial_model,
    progress_of,
    refuse_folder_of_a_run,
    resuming_arguments,
)

__all__ = [
    "GLUE",
    "PACKED_PRETRAINING",
    "PRETRAINING",
    "SQUAD",
    "Answering",
    "Checkpoint",
    "CheckpointError",
    "ClassExaminer",
    "Classifying",
    "CompilationError",
    "DivergenceError",
    "EvaluationMetrics",
    "Evaluator",
    "Examiner",
    "Job",
    "LoopPlan",
    "OptimizerPlan",
    "Progress",
    "Record",
    "Reporter",
    "RunInterrupted",
    "Schedule",
    "Speed",
    "Start",
    "StopRequest",
    "TrainingError",
    "build_evaluator",
    "build_optimizer",
    "check_vocabulary",
    "check_weights_folder",
    "checkpoint_to_resume",
    "compile_pretraining",
    "compile_program",
    "find_start",
    "fit",
    "hold_folder",
    "ignore_interrupts",
    "inference_config",
    "initial_model",
    "is_worker_death",
    "out_of_memory_bytes",
    "place",
    "plain",
    "plot_loss",
    "progress_of",
    "push_to_hub",
    "refuse_bad_weights",
    "refuse_folder_of_a_run",
    "resolve_weights_folder",
    "resuming_arguments",
    "save_checkpoint",
    "stop_on_signals",
    "train",
    "validation_evaluator",
    "with_training_steps",
    "write_atomically",
    "write_summary",
]
