"""Batches of the model, and the datasets, samplers and padding that make them.

Legend: B rows, S sequence length, M mask_tokens. A batch is a tuple of int32 tensors, see BATCH_FIELDS.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple, Union, overload

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .files import DataError
from .masking import IGNORED_LABEL
from .randomness import IndexPermutation, derive_key

# [B,S] tokens; [B,S] 1 real, 0 padding; [B,S] 0 in segment A, 1 in B; [B,M] ascending, 0 where unused;
# [B,M] -100 where unused; [B] 1 random next, 0 continuation, -100 ignored.
BATCH_FIELDS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "masked_lm_positions",
    "masked_lm_labels",
    "next_sentence_labels",
)
Batch = Tuple[torch.Tensor, ...]
_SHUFFLE_STREAM = 1  # separates the random numbers of the order from those of the masks


class Rows(Sequence[Batch]):
    """A batch as a sequence of samples: any collate function can stack them; `collate` needn't."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch[0])

    @overload
    def __getitem__(self, row: int) -> Batch: ...

    @overload
    def __getitem__(self, row: slice) -> Rows: ...

    def __getitem__(self, row: Union[int, slice]) -> Union[Batch, Rows]:
        if isinstance(row, slice):
            return Rows(tuple(field[row] for field in self.batch))
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return tuple(field[row] for field in self.batch)


def collate(samples: Sequence[Batch]) -> Batch:
    """Samples to a batch; a batch fetched by __getitems__ is passed on without a copy."""
    if isinstance(samples, Rows):
        return samples.batch
    return tuple(torch.stack(list(field)) for field in zip(*samples))


class SampleDataset(Dataset[Batch]):
    """A map-style dataset over GLOBAL SAMPLE NUMBERS k = 0, 1, 2, ... without end.

    epoch, slot = divmod(k, num_examples); the example is the slot's image under the epoch's permutation. So
    the training data is a pure function of (seed, k): the same for any number of workers, batch sizes or
    replicas, and a run resumes from a number. len() is one epoch.
    """

    unit = "examples"  # what a sample is, in the plural, for messages
    pad_id = 0
    sequence_length: int
    mask_tokens: int

    def __init__(self, num_examples: int, *, seed: int, shuffle: bool) -> None:
        self.num_examples = num_examples
        self.seed = seed
        self.shuffle = shuffle
        self._permutation: Optional[Tuple[int, IndexPermutation]] = None  # the latest epoch's

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """The examples with these indices in these epochs (both int64 [B])."""
        raise NotImplementedError

    def padding(self, rows: int) -> Batch:
        """Rows that losses and metrics ignore; attention can see their first position."""
        shape, slots = (rows, self.sequence_length), (rows, self.mask_tokens)
        attention_mask = torch.zeros(shape, dtype=torch.int32)
        attention_mask[:, 0] = 1
        return (
            torch.full(shape, self.pad_id, dtype=torch.int32),
            attention_mask,
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(slots, dtype=torch.int32),
            torch.full(slots, IGNORED_LABEL, dtype=torch.int32),
            torch.full((rows,), IGNORED_LABEL, dtype=torch.int32),
        )

    def sizes(self) -> Tuple[np.ndarray, np.ndarray]:
        """int64 [examples] each: tokens of each example without padding, and the most predictions in it."""
        raise NotImplementedError

    def token_counts(self) -> np.ndarray:
        """int64: how often each token id occurs in the examples, unmasked; 0 for special tokens."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, sample: int) -> Batch:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int]) -> Rows:
        """Many samples at once, which is much faster: torch's loaders (2.0 and later) use it if it exists."""
        numbers = np.asarray(samples, dtype=np.int64)
        if self.num_examples == 0 or (numbers < 0).any():
            raise IndexError(f"samples {numbers.min()} to {numbers.max()} of {self.num_examples} examples")
        epochs, slots = np.divmod(numbers, self.num_examples)
        return Rows(self.fetch(self._order(epochs, slots), epochs))

    def _order(self, epochs: np.ndarray, slots: np.ndarray) -> np.ndarray:
        if not self.shuffle:
            return slots
        indices = np.empty_like(slots)
        for epoch in np.unique(epochs).tolist():
            if self._permutation is None or self._permutation[0] != epoch:
                key = int(derive_key(self.seed, _SHUFFLE_STREAM, epoch))
                self._permutation = (epoch, IndexPermutation(self.num_examples, key))
            here = epochs == epoch
            indices[here] = self._permutation[1](slots[here])
        return indices


class SampleStream(Sampler[int]):
    """Global sample numbers for the loader of one process: num_batches batches of batch_size, starting at
    start.

    batch_size: samples per batch of this process (all its replicas, accumulation steps and device
    iterations). With world_size processes a global batch is world_size times that: consecutive numbers, cut
    into slices of slice_size (batch_size by default) that are dealt round-robin. With slices of one micro
    batch for each of a process's replicas, every replica gets the same samples as in a single process.
    """

    def __init__(
        self,
        start: int,
        batch_size: int,
        num_batches: int,
        *,
        slice_size: Optional[int] = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} isn't one of {world_size} processes")
        self.slice_size = batch_size if slice_size is None else slice_size
        if batch_size % self.slice_size:
            raise ValueError(f"slices of {self.slice_size} don't make batches of {batch_size}")
        self.start = start
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        for number in range(len(self) // self.slice_size):
            first = self.start + (number * self.world_size + self.rank) * self.slice_size
            yield from range(first, first + self.slice_size)

    def __len__(self) -> int:
        return self.num_batches * self.batch_size


class EvaluationDataset(Dataset[Batch]):
    """One pass over a dataset, padded to a multiple of batch_size.

    A device's batch has a fixed size, so the last one is padded (see SampleDataset.padding).
    """

    def __init__(self, dataset: SampleDataset, batch_size: int) -> None:
        if dataset.num_examples == 0:
            raise DataError("the held-out data has no example to evaluate on: hold out more of the data")
        self._dataset, self.unit = dataset, dataset.unit
        self._length = -(-dataset.num_examples // batch_size) * batch_size
        self.num_examples = dataset.num_examples

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, sample: int) -> Batch:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int]) -> Rows:
        numbers = np.asarray(samples, dtype=np.int64)
        if (numbers < 0).any() or (numbers >= self._length).any():
            raise IndexError(f"samples {numbers.min()} to {numbers.max()} of {self._length}")
        is_real = numbers < self.num_examples
        if is_real.all():
            return self._dataset.__getitems__(samples)
        batch = self._dataset.padding(len(numbers))
        if is_real.any():
            rows = torch.from_numpy(is_real)
            for field, real in zip(batch, self._dataset.__getitems__(numbers[is_real].tolist()).batch):
                field[rows] = real
        return Rows(batch)


def blank_batch(rows: int, sequence_length: int, mask_tokens: int, pack_depth: Optional[int] = None) -> Batch:
    """A batch with a dataset's shapes and dtypes, all zeros and unmasked: for compiling.

    With `pack_depth`, packed rows of up to so many sequences.
    """
    shape, slots = (rows, sequence_length), (rows, mask_tokens)
    shapes: Tuple[Tuple[int, ...], ...] = (shape, shape, shape, slots, slots, (rows,))
    if pack_depth is not None:
        shapes = (*shapes[:5], (rows, pack_depth), shape, (rows, pack_depth))
    batch = tuple(torch.zeros(size, dtype=torch.int32) for size in shapes)
    batch[BATCH_FIELDS.index("attention_mask")].fill_(1)
    return batch


def require_examples(dataset: Union[SampleDataset, EvaluationDataset], needed: int, what: str) -> None:
    """DataError if the dataset has fewer examples than `what` needs, such as "one training step"."""
    if dataset.num_examples < needed:
        raise DataError(
            f"{what} needs {needed} {dataset.unit}, the data has {dataset.num_examples} "
            f"({needed - dataset.num_examples} too few): use a larger corpus, a smaller sequence_length or "
            "a smaller batch (micro_batch_size, gradient_accumulation, replication_factor, device_iterations)"
        )


def batch_of(fields: List[np.ndarray]) -> Batch:
    """int32 tensors over the arrays' memory, in the order of BATCH_FIELDS."""
    assert len(fields) == len(BATCH_FIELDS)
    return tuple(torch.from_numpy(np.ascontiguousarray(field, dtype=np.int32)) for field in fields)
