"""Errors of PyTorch that have no type: they are told apart without trusting a program's words."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from training import is_worker_death, out_of_memory_bytes


class Failing(Dataset):
    def __init__(self, with_words: str | None) -> None:
        self.with_words = with_words

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        if self.with_words is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(self.with_words)


def failure(with_words: str | None, workers: int) -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        list(DataLoader(Failing(with_words), num_workers=workers))
    return raised.value


def test_a_worker_that_was_killed_has_died() -> None:
    assert is_worker_death(failure(None, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_that_a_dataset_words_alike_is_its_own(workers: int) -> None:
    assert not is_worker_death(failure("DataLoader worker (pid 1) exited unexpectedly", workers))


def test_an_error_that_was_never_raised_is_no_death() -> None:
    assert not is_worker_death(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."))


def test_the_allocator_tells_how_much_it_asked_for() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58)
    assert out_of_memory_bytes(raised.value) == 1 << 60


@pytest.mark.parametrize(
    "words",
    [
        "can't allocate memory",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 22 (Invalid)",
    ],
)
def test_other_errors_are_not_of_memory(words: str) -> None:
    assert out_of_memory_bytes(RuntimeError(words)) is None
