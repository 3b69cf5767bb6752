"""What `import data` gives, from its first use on: PyTorch and numpy take seconds to import."""

from __future__ import annotations

from .batches import (
    BATCH_FIELDS,
    Batch,
    EvaluationDataset,
    SampleDataset,
    SampleStream,
    blank_batch,
    collate,
    require_examples,
)
from .corpora import Corpus, open_corpus
from .dataset import (
    PretrainingDataset,
    PretrainingStatistics,
    SplitStatistics,
    TfRecordPretrainingDataset,
    unigram_entropy,
)
from .files import DataError
from .packed import PACKED_FIELDS, PackedDataset
from .prepare import PretrainingData, PretrainingDataOptions, prepare_pretraining_data
from .tfrecord import TfRecordFile
from .tokenizer import (
    TRAINED_TOKENIZER,
    Tokenizer,
    fine_tuning_tokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "BATCH_FIELDS",
    "PACKED_FIELDS",
    "TRAINED_TOKENIZER",
    "Batch",
    "Corpus",
    "DataError",
    "EvaluationDataset",
    "PackedDataset",
    "PretrainingData",
    "PretrainingDataOptions",
    "PretrainingDataset",
    "PretrainingStatistics",
    "SampleDataset",
    "SampleStream",
    "SplitStatistics",
    "TfRecordFile",
    "TfRecordPretrainingDataset",
    "Tokenizer",
    "blank_batch",
    "collate",
    "fine_tuning_tokenizer",
    "load_tokenizer",
    "open_corpus",
    "prepare_pretraining_data",
    "require_examples",
    "train_tokenizer",
    "unigram_entropy",
]
