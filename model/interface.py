"""What `import model` gives, from its first use on: PyTorch takes seconds to import."""

from __future__ import annotations

from ipu.placement import StagesError

from .config import PRESETS, ModelConfig, ModelConfigError
from .conversion import from_pretrained, model_folder, read_model_config, save_pretrained, saved_classes
from .files import ConversionError
from .flops import count_parameters, flops_per_sequence, without_weights
from .heads import PRETRAINING_OUTPUTS, TASKS, ClassificationModel, PretrainingModel, SquadModel, TaskModel
from .inference_models import EmbeddingModel, FillMaskModel
from .ipu_annotations import Annotations, annotate

__all__ = [
    "PRESETS",
    "PRETRAINING_OUTPUTS",
    "TASKS",
    "Annotations",
    "ClassificationModel",
    "ConversionError",
    "EmbeddingModel",
    "FillMaskModel",
    "ModelConfig",
    "ModelConfigError",
    "PretrainingModel",
    "SquadModel",
    "StagesError",
    "TaskModel",
    "annotate",
    "count_parameters",
    "flops_per_sequence",
    "from_pretrained",
    "model_folder",
    "read_model_config",
    "save_pretrained",
    "saved_classes",
    "without_weights",
]
