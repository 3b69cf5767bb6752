"""The data loader: combined batches, slices of processes, prefetching."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time

import pytest
import torch
from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
Mode = poptorch.DataLoaderMode


class Numbers(torch.utils.data.Dataset):
    """Elements (i, 2i); may fail at one."""

    def __init__(self, count, broken=None):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise ArithmeticError(f"element {index} is broken")
        return torch.tensor(index), torch.tensor(2 * index)


class Stream(IterableDataset):
    """Counts; each worker yields a part."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter([torch.tensor(i) for i in range(first, self.count, step)])


def options(iterations=1, replicas=1, accumulation=1, process=0, processes=1, seed=None):
    made = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    made.Training.gradientAccumulation(accumulation)
    made.Distributed.configureProcessId(process, processes)
    return made if seed is None else made.randomSeed(seed)


def firsts(loader):
    return [batch[0].tolist() for batch in loader]


def elements(loader):
    return [element for batch in firsts(loader) for element in batch]


def wait_until_gone(threads):
    """Threads and processes exit shortly after they are told to, on a busy machine seconds later."""
    deadline = time.monotonic() + 60
    while (threading.active_count() > threads or multiprocessing.active_children()) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert threading.active_count() <= threads and not multiprocessing.active_children()


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    threads = threading.active_count()
    yield
    gc.collect()
    wait_until_gone(threads)


def test_a_batch_is_what_one_call_consumes():
    loader = poptorch.DataLoader(options(2, 3, 4), Numbers(200), batch_size=2)
    assert loader.combinedBatchSize == 2 * 2 * 3 * 4
    assert loader.options.device_iterations == 2
    assert firsts(loader) == [list(range(i, i + 48)) for i in (0, 48, 96, 144)]
    assert len(loader) == 4  # unlike torch's, the remainder is dropped by default
    grouped = options(1, 4, 1).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    assert poptorch.DataLoader(grouped, Numbers(9), batch_size=3).combinedBatchSize == 6


def test_no_automatic_batching():
    loader = poptorch.DataLoader(options(), Numbers(3), batch_size=None)
    assert loader.combinedBatchSize is None
    assert [int(batch[0]) for batch in loader] == [0, 1, 2]


def test_a_short_last_batch_is_announced(caplog):
    loader = poptorch.DataLoader(options(2), Numbers(7), batch_size=2, drop_last=False)
    assert firsts(loader) == [[0, 1, 2, 3], [4, 5, 6]]
    assert "the last batch has 3 elements" in caplog.text


def test_samplers_and_further_arguments_reach_torch():
    loader = poptorch.DataLoader(options(2), Numbers(10), sampler=range(9, -1, -1), collate_fn=list)
    assert [[int(pair[0]) for pair in batch] for batch in loader][:2] == [[9, 8], [7, 6]]


def test_batch_samplers_are_joined():
    sampler = BatchSampler(SequentialSampler(range(14)), batch_size=2, drop_last=False)
    loader = poptorch.DataLoader(options(3), Numbers(14), batch_sampler=sampler)
    assert loader.combinedBatchSize == 6 and len(loader) == 2
    assert firsts(loader) == [list(range(6)), list(range(6, 12))]
    rest = poptorch.DataLoader(options(3), Numbers(14), batch_sampler=sampler, drop_last=False)
    assert len(rest) == 3 and firsts(rest)[-1] == [12, 13]
    for clash in ({"batch_size": 2}, {"shuffle": True}):
        with pytest.raises(poptorch.Error, match="mutually exclusive with batch_size, shuffle"):
            poptorch.DataLoader(options(), Numbers(4), batch_sampler=sampler, **clash)
    with pytest.raises(poptorch.Error, match="mutually exclusive with auto_distributed_partitioning=True"):
        poptorch.DataLoader(options(processes=2), Numbers(4), batch_sampler=sampler)


class Words(torch.utils.data.Dataset):
    """Words of different lengths: sample i has i % 5 + 1 letters."""

    def __init__(self, count):
        self.count = count
        self.alphabet = "abc"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((index % 5 + 1,), index)


def sorted_and_padded(samples):
    """Longest first, padded to 6 letters; with the lengths, the mean index, and the names."""
    samples = sorted(samples, key=len, reverse=True)
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return {
        "letters": torch.nn.functional.pad(padded, (0, 6 - padded.shape[1])),
        "lengths": (torch.tensor([len(s) for s in samples]),),
        "mean": torch.cat(samples).float().mean(),
        "names": [f"w{int(s[0])}" for s in samples],
    }


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_each_of_a_samplers_batches_is_collated(num_workers):
    order = [7, 1, 4, 3, 0, 9, 2, 8, 5, 6, 11, 10]
    sampler = BatchSampler(order, batch_size=3, drop_last=False)
    loader = poptorch.DataLoader(
        options(2),
        Words(12),
        batch_sampler=sampler,
        collate_fn=sorted_and_padded,
        num_workers=num_workers,
    )
    assert len(loader) == 2 and len(loader.dataset) == 12 and loader.dataset.alphabet == "abc"
    assert torch.equal(loader.dataset[3], torch.full((4,), 3))
    combined = list(loader)
    assert len(combined) == 2
    for i, batch in enumerate(combined):
        parts = [sorted_and_padded([Words(12)[k] for k in order[j : j + 3]]) for j in (6 * i, 6 * i + 3)]
        assert torch.equal(batch["letters"], torch.cat([part["letters"] for part in parts]))
        assert torch.equal(batch["lengths"][0], torch.cat([part["lengths"][0] for part in parts]))
        assert torch.equal(batch["mean"], torch.stack([part["mean"] for part in parts]))
        assert batch["names"] == [*parts[0]["names"], *parts[1]["names"]]


def note_worker(index):
    torch.utils.data.get_worker_info().dataset.alphabet = "of a worker"


class Alphabets(Words):
    def __getitem__(self, index):
        return torch.tensor([index, len(self.alphabet)])


def test_attributes_of_the_data_set_can_be_set():
    data = Alphabets(4)
    loader = poptorch.DataLoader(
        options(2), data, batch_sampler=[[0, 1], [2, 3]], num_workers=1, worker_init_fn=note_worker
    )
    loader.dataset.alphabet = "abcd"
    assert data.alphabet == "abcd"
    (batch,) = loader
    assert batch.tolist() == [[i, len("of a worker")] for i in range(4)]


def test_a_samplers_batches_must_fit_together():
    def padded_to_the_longest(samples):
        return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)

    sampler = BatchSampler(range(4), batch_size=2, drop_last=False)
    loader = poptorch.DataLoader(
        options(2), Words(4), batch_sampler=sampler, collate_fn=padded_to_the_longest
    )
    with pytest.raises(ValueError, match=r"concatenated along dimension 0.*got \[2, 2\], \[2, 4\]"):
        list(loader)


@pytest.mark.parametrize(
    ("collated", "problem"),
    [
        (lambda n: (torch.ones(n),) * n, "different lengths"),
        (lambda n: {n: torch.ones(1)}, "different keys"),
        (lambda n: torch.ones(1) if n == 1 else [torch.ones(1)], "different types"),
    ],
)
def test_batches_of_different_structures(collated, problem):
    loader = poptorch.DataLoader(
        options(2), Words(3), batch_sampler=[[0], [1, 2]], collate_fn=lambda samples: collated(len(samples))
    )
    with pytest.raises(ValueError, match=f"{problem} can't be joined"):
        list(loader)


def test_plain_values_of_a_samplers_batches(caplog):
    loader = poptorch.DataLoader(
        options(2),
        Words(3),
        batch_sampler=[[0], [1, 2]],
        collate_fn=lambda samples: (torch.ones(len(samples)), len(samples), "same"),
    )
    ((ones, count, same),) = loader
    assert ones.shape == (3,) and (count, same) == (1, "same")
    assert "different values (1, 2): only the first's is kept" in caplog.text and "same" not in caplog.text


def test_a_data_set_that_gives_several_samples_at_once_is_asked_for_a_batch():
    class Several(Words):
        def __getitems__(self, indices):
            return [torch.tensor([len(indices), index]) for index in indices]

    loader = poptorch.DataLoader(options(2), Several(5), batch_sampler=[[0, 1, 2], [3, 4]])
    assert next(iter(loader)).tolist() == [[3, 0], [3, 1], [3, 2], [2, 3], [2, 4]]


def test_iterable_data_sets_have_no_batch_sampler():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(ValueError, match="batch_sampler"):
        poptorch.DataLoader(options(), Endless(), batch_sampler=[[0]])


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_read_contiguous_slices(drop_last):
    slices = [
        elements(poptorch.DataLoader(options(2, process=p, processes=3), Numbers(20), 2, drop_last=drop_last))
        for p in range(3)
    ]
    if drop_last:
        assert slices == [list(range(0, 4)), list(range(4, 8)), list(range(8, 12))]
    else:
        assert [*slices[0], *slices[1], *slices[2]] == list(range(20)) and [len(s) for s in slices] == [
            7,
            7,
            6,
        ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_left_over_takes_turns_and_shuffles_agree(num_workers):
    """Two processes with 2 of 5 elements each: epochs start at 0, 1, 0, ... and both shuffle equally."""

    def loaders(shuffle):
        return [
            poptorch.DataLoader(
                options(process=p, processes=2, seed=7), Numbers(5), 2, shuffle, num_workers=num_workers
            )
            for p in range(2)
        ]

    def epochs(pair):
        return [[elements(loader) for loader in pair] for _ in range(3)]

    assert epochs(loaders(False)) == [[[0, 1], [2, 3]], [[1, 2], [3, 4]], [[0, 1], [2, 3]]]
    shuffled = epochs(loaders(True))
    assert all(len({*first, *second}) == 4 for first, second in shuffled)  # no element twice
    assert len({str(epoch) for epoch in shuffled}) == 3


def test_distributed_shuffling_needs_a_seed():
    with pytest.raises(AssertionError, match=r"you must set poptorch\.Options\.randomSeed\(\)"):
        poptorch.DataLoader(options(processes=2), Numbers(8), shuffle=True)
    whole = poptorch.DataLoader(options(processes=2), Numbers(4), auto_distributed_partitioning=False)
    assert len(whole) == 4
    with pytest.raises(AssertionError):
        poptorch.DataLoader(options(processes=2), Stream(4))


def test_iterable_data_sets(caplog):
    assert [b.tolist() for b in poptorch.DataLoader(options(2), Stream(5), 1)] == [[0, 1], [2, 3]]
    poptorch.DataLoader(options(), Stream(4), num_workers=1)
    assert "worker_init_fn" in caplog.text


@pytest.mark.parametrize("mode", [Mode.Async, Mode.AsyncRebatched])
def test_background_loading_gives_the_same(mode):
    loader = poptorch.DataLoader(options(2), Numbers(11), 2, mode=mode)
    expected = firsts(poptorch.DataLoader(options(2), Numbers(11), 2))
    assert len(loader) == 2
    for _ in range(3):
        assert firsts(loader) == expected


def test_rebatching_keeps_what_workers_would_drop():
    """Two workers with 5 elements each: torch would give batches of 4 and lose the fifth of each."""
    loader = poptorch.DataLoader(
        options(2), Stream(10), 2, mode=Mode.AsyncRebatched, num_workers=2, worker_init_fn=int
    )
    assert [len(batch) for batch in loader] == [4, 4]
    small = poptorch.DataLoader(
        options(2), Numbers(10), 2, mode=Mode.AsyncRebatched, rebatched_worker_size=3, drop_last=False
    )
    assert firsts(small) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(small) == 3
    # Async that keeps the last batch is rebatched too.
    kept = poptorch.DataLoader(options(2), Numbers(10), 2, mode=Mode.Async, drop_last=False)
    assert firsts(kept) == firsts(small)


def test_what_is_drawn_in_the_background_leaves_the_programs_generator_alone():
    """The program's random numbers don't depend on how far the worker prefetches (a pass has 6 elements)."""

    def draws(buffer_size):
        torch.manual_seed(3)
        loader = poptorch.DataLoader(
            options(), Numbers(6), shuffle=True, mode=Mode.Async, async_options={"buffer_size": buffer_size}
        )
        order = []
        for _ in range(2):
            order.append([int(batch[0]) for batch in loader])
            time.sleep(0.1)
        return order, torch.rand(2).tolist()

    assert draws(1) == draws(30)


def test_tensors_are_overwritten_when_the_next_one_is_taken():
    accessor = poptorch.AsynchronousDataAccessor(poptorch.DataLoader(options(), Numbers(9), 1), buffer_size=2)
    kept = [batch[0] for batch in accessor]
    assert len({tensor.data_ptr() for tensor in kept}) == 2  # nine elements in two places
    assert [int(batch[0].clone()) for batch in accessor] == list(range(9))


def test_an_abandoned_pass_begins_again():
    loader = poptorch.DataLoader(options(), Numbers(8), mode=Mode.Async)
    for taken in (1, 3):
        for _, batch in zip(range(taken), loader):
            last = int(batch[0])
        assert last == taken - 1
    assert [int(batch[0]) for batch in loader] == list(range(8))


def test_loading_once_waits_to_be_asked():
    passes = []

    class Counted(Numbers):
        def __getitem__(self, index):
            passes.append(index)
            return super().__getitem__(index)

    loader = poptorch.DataLoader(
        options(), Counted(4), mode=Mode.Async, async_options={"load_indefinitely": False}
    )
    assert passes == [0]  # without early_preload, no more than shows that it works
    assert len(firsts(loader)) == 4
    time.sleep(0.1)
    assert passes == [0, 1, 2, 3]
    assert len(firsts(loader)) == 4 and len(passes) == 8


def test_errors_of_the_data_set_reach_the_consumer(caplog):
    loader = poptorch.DataLoader(options(), Numbers(5, broken=2), mode=Mode.Async)
    iterator = iter(loader)
    assert [int(next(iterator)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ArithmeticError, match="element 2 is broken"):
        next(iterator)
    with pytest.raises(poptorch.Error, match=r"worker thread failed to start \(Check above for details\)"):
        poptorch.DataLoader(options(), Numbers(5, broken=0), mode=Mode.Async)
    assert "element 0 is broken" in caplog.text


def test_a_failure_leaves_no_worker_while_its_exception_is_held():
    """Otherwise processes forked later, which inherit the iterator, try to shut down its workers."""
    loader = poptorch.DataLoader(options(), Numbers(5, broken=2), mode=Mode.Async, num_workers=1)
    with pytest.raises(ArithmeticError) as held:
        list(loader)
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == [] and held.value is not None


def test_workers_draw_each_for_itself():
    class Drawing(Numbers):
        def __getitem__(self, index):
            return torch.rand(4)

    loader = poptorch.DataLoader(options(), Drawing(8), mode=Mode.Async, num_workers=2)
    elements = torch.cat([element.clone() for element in loader])
    assert len({tuple(element.tolist()) for element in elements}) == 8
    loader.terminate()


def test_what_a_data_set_draws_is_no_draw_of_the_programs():
    class Drawing(Numbers):
        def __getitem__(self, index):
            return (
                torch.rand(2)
                + torch.empty(2).normal_()
                + torch.randint(9, (2,))
                + torch.randn(2).bernoulli_()
            )

    def run():
        torch.manual_seed(5)
        accessor, draws = poptorch.AsynchronousDataAccessor(Drawing(30)), []
        elements = [(element.clone(), draws.append(torch.rand(())))[0] for element in accessor]
        return torch.stack(draws), torch.stack(elements)

    draws, elements = run()
    assert torch.equal(elements, run()[1])
    torch.manual_seed(5)
    assert torch.equal(draws, torch.stack([torch.rand(()) for _ in range(30)]))


def test_an_accessor_ends_when_told_or_forgotten():
    threads = threading.active_count()
    loader = poptorch.DataLoader(options(), Numbers(50), mode=Mode.Async, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    loader.terminate()
    wait_until_gone(threads)
    with pytest.raises(poptorch.Error, match="has been terminated"):
        next(iterator)
    del loader, iterator
    forgotten = poptorch.AsynchronousDataAccessor([torch.ones(1)] * 3)
    assert threading.active_count() == threads + 1
    del forgotten  # the fixture sees the thread gone


def test_accessors_take_flat_containers():
    for element in (torch.ones(2), (torch.ones(1), torch.zeros(2)), [torch.ones(1)], {"a": torch.ones(3)}):
        accessor = poptorch.AsynchronousDataAccessor([element] * 2)
        assert len(accessor) == 2
        for got in accessor:
            assert type(got) is type(element)
            assert poptorch.testing.allclose(
                list(got.values()) if isinstance(got, dict) else got,
                list(element.values()) if isinstance(element, dict) else element,
            )
    with pytest.raises(poptorch.Error, match="failed to start"):
        poptorch.AsynchronousDataAccessor([(torch.ones(1), "text")])
    with pytest.raises(poptorch.Error, match="already uses an AsynchronousDataAccessor internally"):
        poptorch.AsynchronousDataAccessor(poptorch.DataLoader(options(), Numbers(2), mode=Mode.Async))
    with pytest.raises(poptorch.Error, match="buffer_size must be at least 1"):
        poptorch.AsynchronousDataAccessor([torch.ones(1)], buffer_size=0)
    with pytest.raises(poptorch.Error, match="rebatched_size must be None or greater than 1"):
        poptorch.AsynchronousDataAccessor([torch.ones(1)], rebatched_size=1)
    joined = poptorch.AsynchronousDataAccessor([torch.arange(3)] * 3, rebatched_size=2)
    assert [got.tolist() for got in joined] == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_a_data_set_that_any_index_fits_ends_at_its_length():
    class Endless(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.full((2,), float(index))

    accessor = poptorch.AsynchronousDataAccessor(Endless())
    for _ in range(2):
        assert [float(element[0]) for element in accessor] == [0.0, 1.0, 2.0]
    accessor.terminate()
    rebatched = poptorch.AsynchronousDataAccessor(Endless(), rebatched_size=2)
    assert [tuple(element.shape) for element in rebatched] == [(2,), (2,), (2,)]
    rebatched.terminate()


@pytest.mark.parametrize("asynchronous", ["loader", "accessor"])
def test_strictly_a_background_worker_needs_data_that_can_be_pickled(monkeypatch, asynchronous):
    def one_by_one(samples):  # a local function
        return torch.stack([first for first, _ in samples])

    def load(collate=None, dataset=None, strategy=poptorch.SharingStrategy.ForkServer):
        dataset = Numbers(4) if dataset is None else dataset
        if asynchronous == "accessor":
            loader = torch.utils.data.DataLoader(dataset, collate_fn=collate)
            return poptorch.AsynchronousDataAccessor(loader, sharing_strategy=strategy)
        return poptorch.DataLoader(
            options(),
            dataset,
            collate_fn=collate,
            mode=poptorch.DataLoaderMode.Async,
            async_options={"sharing_strategy": strategy},
        )

    def ends(loader):
        assert len(list(loader)) == 4
        loader.terminate()

    local = Numbers(4)
    local.function = lambda: None
    ends(load(one_by_one))
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    ends(load())
    ends(load(one_by_one, strategy=poptorch.SharingStrategy.Fork))
    with pytest.raises(poptorch.Error, match="The collate_fn of type function can't be pickled"):
        load(one_by_one)
    with pytest.raises(poptorch.Error, match="The dataset of type Numbers can't be pickled"):
        load(dataset=local)
