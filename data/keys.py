"""The keys of data, which `config.Config` inherits, and so do the options of this package that read them.

Nothing here imports PyTorch or numpy.
"""

# ruff: noqa: RUF009 (key() makes a dataclasses.field)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional, Tuple

from ipu.keys import ABOVE_0, AT_LEAST_1, BELOW_1, TOKENS, KeyGroup, key

WORKERS = "[0, 1024]"  # processes
GlueTask = Literal[
    "mnli",
    "qqp",
    "qnli",
    "sst2",
    "cola",
    "stsb",
    "mrpc",
    "rte",
    "wnli",
    "ax",
    "csv",
    "csv_regression",
]


# [CLS] A [SEP] B [SEP].
SHORTEST_SEQUENCE = 5
# Sequences in a row of up to three, for Wikipedia, by length (graphcore/examples nlp/bert/pytorch, SDK 3.4).
_PUBLISHED_FACTORS = {128: 1.17, 384: 1.7, 512: 2.0}


def most_sequences(row_length: int, separator: int) -> int:
    """The most sequences that a row can hold, with `separator` tokens between two."""
    return max(1, (row_length + separator) // (SHORTEST_SEQUENCE + separator))


def published_packing_factor(row_length: int) -> float:
    """Sequences in a row: as published for the nearest length."""
    nearest = min(_PUBLISHED_FACTORS, key=lambda length: abs(length - row_length))
    return _PUBLISHED_FACTORS[nearest]


@dataclass(frozen=True)
class DataKeys(KeyGroup):
    """Corpus, tokenizer, masking and loading."""

    corpus: str = key(
        "weights",
        "python-docs, files of text or of rows (file, folder, glob), TFRecords or hf:NAME",
        "python-docs",
    )
    corpus_subset: Optional[str] = key("weights", "subset (configuration) of a Hugging Face dataset", None)
    corpus_split: str = key("weights", "split of a Hugging Face dataset", "train")
    text_column: str = key("weights", "text column of a Hugging Face dataset or of rows", "text")
    validation_corpus: Optional[str] = key(
        "weights", "corpus to evaluate on; none: held-out documents of corpus", None
    )
    validation_fraction: float = key(
        "weights", "fraction of corpus's documents held out for evaluation", 0.05, BELOW_1
    )
    tokenizer: str = key(
        "weights", "train (a new one on corpus), a vocab.txt, a folder or a Hugging Face name", "train"
    )
    lowercase: bool = key("weights", "lower-case the text", True)
    sequence_length: int = key(
        "weights", "tokens per sequence, including special tokens and padding", bounds=TOKENS
    )
    mask_tokens: int = key("weights", "maximum number of masked tokens per sequence", 20, AT_LEAST_1)
    masked_lm_probability: float = key("weights", "fraction of tokens to predict", 0.15, "(0, 1)")
    dynamic_masking: bool = key("weights", "new masks in each epoch", True)
    whole_word_masking: bool = key("weights", "mask all pieces of a word together", False)
    short_sequence_probability: float = key(
        "weights", "fraction of examples truncated to a random length", 0.1, "[0, 1]"
    )
    cache_folder: str = key("nothing", "folder for prepared data", "cache")
    dataloader_workers: int = key(
        "nothing", "worker processes that load batches; 0: load in the main process", 0, WORKERS
    )
    preprocessing_workers: Optional[int] = key(
        "nothing", "processes that prepare data; none: one per core", None, WORKERS
    )
    async_dataloader: bool = key("nothing", "prefetch the next batch while the device computes", False)
    packed_data: bool = key("weights", "several short sequences in a row instead of padding", False)
    max_sequences_per_pack: Optional[int] = key(
        "weights", "the most sequences in a row with packed_data; none: no limit", 3, AT_LEAST_1
    )
    packing_factor: Optional[float] = key(
        "nothing",
        "sequences in a row that a verdict counts with packed_data; none: those published for Wikipedia",
        None,
        "[1, inf)",
    )


@dataclass(frozen=True)
class ExampleKeys(KeyGroup):
    """Examples of SQuAD and GLUE."""

    squad_version: Literal["1.1", "2.0"] = key(
        "weights", "version of SQuAD; 2.0 has unanswerable questions", "1.1"
    )
    glue_task: GlueTask = key(
        "weights", "task of GLUE; csv, csv_regression: your own texts with classes or numbers", "mnli"
    )
    train_data: Optional[str] = key(
        "weights",
        "data to train on: a SQuAD JSON file; for GLUE a TSV, CSV or JSON lines file, or a folder; hf:NAME; "
        "none: the published data set from Hugging Face",
        None,
    )
    validation_data: Optional[str] = key("evaluation", "data to evaluate on: as for train_data", None)
    text_columns: Optional[Tuple[str, ...]] = key(
        "weights", "columns of the text, or of the two texts, of your own data; none: found by name", None
    )
    label_column: str = key("weights", "column of the label of your own data", "label")
    epochs: Optional[float] = key(
        "weights", "passes over the training set, instead of training_steps", None, ABOVE_0
    )
    doc_stride: int = key(
        "weights", "tokens between the starts of a long document's windows", 128, AT_LEAST_1
    )
    max_query_length: int = key(
        "weights", "maximum tokens per question; longer ones are truncated", 64, AT_LEAST_1
    )


@dataclass(frozen=True)
class AnswerKeys(KeyGroup):
    """Answers to questions: lengths in tokens, the threshold in logits."""

    n_best_size: int = key("evaluation", "answers per question in nbest_predictions.json", 20, AT_LEAST_1)
    max_answer_length: int = key("evaluation", "maximum tokens per answer", 30, AT_LEAST_1)
    null_score_diff_threshold: float = key(
        "evaluation", "answer nothing if that scores higher than the best answer by more than this", 0.0
    )
