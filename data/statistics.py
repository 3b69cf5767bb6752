"""What is known of the data before training: counts, and how hard its tokens are to guess without a model."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Optional, Tuple

import numpy as np

from data.batches import SampleDataset
from data.errors import DataError


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Counts of one split. tokens: of the text, without special ones. None where the data can't tell."""

    examples: int
    random_next: Optional[int] = None
    documents: Optional[int] = None
    sentences: Optional[int] = None
    tokens: Optional[int] = None

    @classmethod
    def of_shards(cls, headers: Iterable[Dict[str, Any]]) -> SplitStatistics:
        """The sums over the headers of a split's shards."""
        totals = dict.fromkeys((field.name for field in dataclasses.fields(cls)), 0)
        for header in headers:
            for name in totals:
                totals[name] += header[name]
        return cls(**totals)


@dataclasses.dataclass(frozen=True)
class PretrainingStatistics:
    """corpus: its name. vocabulary: the tokeniser's size, None without one. notes: for the log."""

    corpus: str
    vocabulary: Optional[int]
    train: SplitStatistics
    validation: Optional[SplitStatistics]
    notes: Tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """For the log: the corpus, the counts of each split that are known, the notes."""
        yield f"corpus {self.corpus}, vocabulary {self.vocabulary or 'not known'}"
        for name, split in (("training", self.train), ("held-out", self.validation)):
            if split is not None:
                counts = dataclasses.asdict(split).items()
                yield f"{name}: " + ", ".join(
                    f"{count} {what.replace('_', ' ')}" for what, count in counts if count is not None
                )
        yield from self.notes


def unigram_entropy(dataset: SampleDataset) -> float:
    """Entropy (nats) of the distribution of the dataset's non-special tokens, from their own frequencies.

    The masked-LM loss of the best model that ignores the context: what a trained model has to beat.
    """
    counts = dataset.token_counts()
    counts = counts[counts > 0]
    if len(counts) == 0:
        raise DataError("the dataset has no tokens, so their entropy isn't defined")
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
