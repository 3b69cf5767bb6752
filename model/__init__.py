"""BERT and GroupBERT in plain PyTorch: models, their sizes, their files and their places on IPUs."""

from __future__ import annotations

from .checkpoint_files import ConversionError
from .classification import ClassificationModel
from .config import PRESETS, ModelConfig, ModelConfigError
from .conversion import from_pretrained, read_model_config, save_pretrained
from .flops import count_parameters, flops_per_sequence
from .pretraining import PRETRAINING_OUTPUTS, PretrainingModel
from .question_answering import SquadModel
from .stages import Annotations, StagesError, annotate, placement

__all__ = [
    "PRESETS",
    "PRETRAINING_OUTPUTS",
    "Annotations",
    "ClassificationModel",
    "ConversionError",
    "ModelConfig",
    "ModelConfigError",
    "PretrainingModel",
    "SquadModel",
    "StagesError",
    "annotate",
    "count_parameters",
    "flops_per_sequence",
    "from_pretrained",
    "placement",
    "read_model_config",
    "save_pretrained",
]
