"""The run: schedules, optimisers, the loop, checkpoints, metrics and where they go."""

from .checkpoints import Checkpoint, newest_checkpoint, resolve_weights_folder, save_checkpoint, step_folders
from .errors import CheckpointError, DivergenceError, TrainingError
from .evaluation import build_evaluator
from .files import hold_folder, write_atomically
from .loop import LoopPlan, LoopResult, refuse_bad_weights, train
from .optimizers import OptimizerPlan, build_optimizer
from .plot import plot_loss
from .reporting import Reporter
from .schedules import Schedule
from .signals import ignore_interrupts, stop_on_signals

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DivergenceError",
    "LoopPlan",
    "LoopResult",
    "OptimizerPlan",
    "Reporter",
    "Schedule",
    "TrainingError",
    "build_evaluator",
    "build_optimizer",
    "hold_folder",
    "ignore_interrupts",
    "newest_checkpoint",
    "plot_loss",
    "refuse_bad_weights",
    "resolve_weights_folder",
    "save_checkpoint",
    "step_folders",
    "stop_on_signals",
    "train",
    "write_atomically",
]
