"""A sequence in a packed row has the losses and gradients that it has alone, and nothing of another one."""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import PretrainingModel
from model.encoder import GroupedConvolution
from tests.model.builders import BERT, GROUPBERT, VARIANTS, perturb

MODELS = {
    "bert": BERT,
    "groupbert": GROUPBERT,
    "post-convolution": VARIANTS["post-convolution-dense"],
    "pre-plain": VARIANTS["pre-plain-grouped"],
}
SEPARATOR = 3  # half of a kernel of 7


class Part(NamedTuple):
    ids: Tensor
    types: Tensor
    masked: Tensor  # positions
    labels: Tensor
    is_random_next: int


def sequences(lengths: Sequence[int], seed: int = 0) -> List[Part]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        masked = torch.randperm(length, generator=draw)[: max(1, length // 4)].sort().values
        made.append(
            Part(
                torch.randint(5, 96, (length,), generator=draw),
                (torch.arange(length) >= length // 2).long(),
                masked,
                torch.randint(5, 96, masked.shape, generator=draw),
                int(torch.randint(2, (), generator=draw)),
            )
        )
    return made


def unpacked(parts: Sequence[Part], length: int = 24) -> Tuple[Tensor, ...]:
    """One sequence a row, padded, as every unpacked batch is."""
    rows = len(parts)
    ids, mask, types = (torch.zeros(rows, length, dtype=torch.int32) for _ in range(3))
    positions = torch.zeros(rows, 8, dtype=torch.int32)
    labels = torch.full((rows, 8), -100, dtype=torch.int32)
    for row, part in enumerate(parts):
        size, count = len(part.ids), len(part.masked)
        ids[row, :size], mask[row, :size], types[row, :size] = part.ids.int(), 1, part.types.int()
        positions[row, :count], labels[row, :count] = part.masked.int(), part.labels.int()
    return ids, mask, types, positions, labels, torch.tensor([part.is_random_next for part in parts])


def packed(rows: Sequence[Sequence[Part]], length: int, depth: int, gap: int) -> Tuple[Tensor, ...]:
    ids, numbers, types, places = (torch.zeros(len(rows), length, dtype=torch.int32) for _ in range(4))
    positions = torch.zeros(len(rows), 16, dtype=torch.int32)
    labels = torch.full((len(rows), 16), -100, dtype=torch.int32)
    firsts = torch.zeros(len(rows), depth, dtype=torch.int32)
    next_labels = torch.full((len(rows), depth), -100, dtype=torch.int32)
    for row, parts in enumerate(rows):
        start = used = 0
        for slot, part in enumerate(parts):
            end, count = start + len(part.ids), len(part.masked)
            ids[row, start:end], types[row, start:end] = part.ids.int(), part.types.int()
            numbers[row, start:end] = slot + 1
            places[row, start:end] = torch.arange(end - start, dtype=torch.int32)
            positions[row, used : used + count] = part.masked.int() + start
            labels[row, used : used + count] = part.labels.int()
            firsts[row, slot], next_labels[row, slot] = start, part.is_random_next
            start, used = end + gap, used + count
        assert start - gap <= length and used <= 16
    return ids, numbers, types, positions, labels, next_labels, places, firsts


ROWS = {
    2: [(7, 11), (24,), (9, 12), (5, 5)],
    3: [(7, 6, 5), (10, 8), (5, 5, 8), (24,), (6, 12)],
    6: [(5, 5, 5), (6, 5, 7), (12, 6), (24,)],
}


@pytest.mark.parametrize("depth", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_of_each_sequence_are_those_of_the_sequence_alone(name: str, depth: int) -> None:
    model = PretrainingModel(MODELS[name])
    perturb(model)
    gap = SEPARATOR if MODELS[name].convolution else 0
    lengths = [length for row in ROWS[depth] for length in row]
    parts = iter(sequences(lengths))
    rows = [[next(parts) for _ in row] for row in ROWS[depth]]
    whole = packed(rows, 24, depth, gap)
    for index, row in enumerate(rows):
        for slot, part in enumerate(row):
            model.zero_grad()
            alone = model(*unpacked([part]))
            alone[0].backward()
            expected = [parameter.grad.clone() for parameter in model.parameters()]
            model.zero_grad()
            batch = [field.clone() for field in whole]
            ours = (batch[1] == slot + 1) & (torch.arange(len(rows)) == index).unsqueeze(1)
            batch[4][~ours.gather(1, batch[3].long())] = -100  # labels of other sequences
            kept = batch[5][index, slot].clone()
            batch[5][:] = -100
            batch[5][index, slot] = kept
            here = model(*batch)
            here[0].backward()
            torch.testing.assert_close(here[:3], alone[:3], atol=1e-5, rtol=1e-5)
            assert [float(count) for count in here[3:]] == [float(count) for count in alone[3:]]
            for (label, parameter), gradient in zip(model.named_parameters(), expected):
                torch.testing.assert_close(
                    parameter.grad, gradient, atol=1e-5, rtol=1e-5, msg=lambda text, label=label: label + text
                )


@pytest.mark.parametrize("name", MODELS)
def test_a_micro_batch_has_the_loss_of_its_sequences_in_any_packing(name: str) -> None:
    """Means are over all labels of a micro batch, so rows of several sequences don't change their weights."""
    model = PretrainingModel(MODELS[name])
    perturb(model)
    gap = SEPARATOR if MODELS[name].convolution else 0
    parts = sequences((7, 6, 5, 10, 8, 24))
    rows = [parts[:3], parts[3:5], parts[5:]]
    gradients = []
    for batch in (unpacked(parts), packed(rows, 24, 3, gap)):
        model.zero_grad()
        outputs = model(*batch)
        outputs[0].backward()
        gradients.append([*outputs, *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_a_sequence_reaches_another_one(name: str) -> None:
    """Not even the last bit, forward or backward."""
    model = PretrainingModel(MODELS[name])
    perturb(model)
    gap = SEPARATOR if MODELS[name].convolution else 0
    first, second, third = sequences((7, 6, 5))
    _, other, _ = sequences((7, 6, 5), seed=1)
    batches = [packed([[first, middle, third]], 24, 3, gap) for middle in (second, other)]
    hidden = [model.encoder(batch[0], batch[1], batch[2], batch[6]) for batch in batches]
    numbers = batches[0][1]
    for neighbour in (1, 3):
        assert torch.equal(hidden[0][numbers == neighbour], hidden[1][numbers == neighbour])
    assert not torch.equal(hidden[0][numbers == 2], hidden[1][numbers == 2])

    seen: List[Tensor] = []

    def watch(_module: object, _inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    model.encoder.embeddings.register_forward_hook(watch)
    batch = batches[0]
    (model.encoder(batch[0], batch[1], batch[2], batch[6])[batch[1] == 2] ** 2).sum().backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert (gradient[batch[1] == 2] != 0).any()
    assert (gradient[batch[1] != 2] == 0).all()


@pytest.mark.parametrize("gap", range(SEPARATOR + 2))
def test_separators_are_as_exact_as_a_mask_for_each_tap_and_no_longer_than_they_must_be(gap: int) -> None:
    """A tap of the kernel may see a token only if it belongs to the sequence of the output."""
    generator = torch.Generator().manual_seed(0)
    convolution = GroupedConvolution(16, 16, groups=2, kernel_size=7).double()
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.normal_(generator=generator)
    numbers = torch.tensor([[1] * 6 + [0] * gap + [2] * 5 + [0] * gap + [3] * 7])
    x = torch.randn(1, numbers.shape[1], 16, generator=generator, dtype=torch.float64)
    x = x * (numbers > 0).unsqueeze(-1)
    taps = convolution.bias.clone()
    for tap in range(7):
        weight = convolution.weight[:, :, tap : tap + 1]
        moved = F.pad(x, (0, 0, 3, 3))[:, tap : tap + x.shape[1]]
        theirs = F.pad(numbers, (3, 3))[:, tap : tap + x.shape[1]]
        seen = F.conv1d(moved.transpose(1, 2), weight, groups=2).transpose(1, 2)
        taps = taps + seen * (theirs == numbers).unsqueeze(-1)
    real = numbers > 0
    is_exact = torch.allclose(convolution(x)[real], taps[real], atol=1e-12, rtol=0)
    assert is_exact == (gap >= SEPARATOR)
