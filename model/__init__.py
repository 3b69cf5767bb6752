"""BERT and GroupBERT in plain PyTorch: models, their sizes, their files and their places on IPUs."""

from __future__ import annotations

from .annotate import Annotations, StagesError, annotate, placement
from .config import PRESETS, ModelConfig, ModelConfigError
from .conversion import from_pretrained, read_model_config, save_pretrained
from .files import ConversionError
from .flops import count_parameters, flops_per_sequence
from .heads import PRETRAINING_OUTPUTS, ClassificationModel, PretrainingModel, SquadModel

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
