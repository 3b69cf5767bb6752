"""Data: corpora, vocabulary, sentence pairs, masks and batches: what the rest of the program uses."""

from __future__ import annotations

from data.batches import (
    BATCH_FIELDS,
    Batch,
    EvaluationDataset,
    SampleDataset,
    SampleStream,
    blank_batch,
    collate,
    require_examples,
)
from data.corpora import Corpus, open_corpus
from data.tfrecord import TfRecordFile
from data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

from .dataset import (
    PretrainingDataset,
    PretrainingStatistics,
    SplitStatistics,
    TfRecordPretrainingDataset,
    unigram_entropy,
)
from .files import DataError
from .prepare import prepare_pretraining_data
from .prepared import PretrainingData, PretrainingDataOptions

__all__ = [
    "BATCH_FIELDS",
    "Batch",
    "Corpus",
    "DataError",
    "EvaluationDataset",
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
    "load_tokenizer",
    "open_corpus",
    "prepare_pretraining_data",
    "require_examples",
    "train_tokenizer",
    "unigram_entropy",
]
