"""GLUE and one's own labelled texts: files, inputs, metrics, predictions."""

from __future__ import annotations

from .files import Columns, Example, ExampleSet, read_examples
from .predictions import leaderboard_files, predicted, prediction_lines, softmax
from .prepare import (
    GlueDataOptions,
    GlueDataset,
    GlueFeatures,
    PreparedExamples,
    encode_texts,
    prepare_examples,
    read_glue_source,
    read_glue_split,
)
from .scores import METRICS
from .tasks import GLUE_TASKS, GlueTask

__all__ = [
    "GLUE_TASKS",
    "METRICS",
    "Columns",
    "Example",
    "ExampleSet",
    "GlueDataOptions",
    "GlueDataset",
    "GlueFeatures",
    "GlueTask",
    "PreparedExamples",
    "encode_texts",
    "leaderboard_files",
    "predicted",
    "prediction_lines",
    "prepare_examples",
    "read_examples",
    "read_glue_source",
    "read_glue_split",
    "softmax",
]
