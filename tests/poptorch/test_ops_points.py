"""Sampling and nearest neighbours of points, and the CTC decoder, against exhaustive searches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


class Decode(torch.nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments

    def forward(self, probs, lengths):
        return poptorch.ctc_beam_search_decoder(probs, lengths, **self.arguments)


def _labelling(alignment: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(alignment) if label != blank)


def _all_labellings(log_probs: torch.Tensor, blank: int) -> list[tuple[tuple[int, ...], float]]:
    time, classes = log_probs.shape
    totals: dict[tuple[int, ...], float] = {}
    for alignment in itertools.product(range(classes), repeat=time):
        probability = math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(alignment)))
        labelling = _labelling(alignment, blank)
        totals[labelling] = totals.get(labelling, 0.0) + probability
    return sorted(totals.items(), key=lambda entry: -entry[1])


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_decoder_finds_the_best_labellings(blank):
    torch.manual_seed(1)
    time, batch, classes, top = 5, 3, 3, 4
    probs = torch.log_softmax(2 * torch.randn(time, batch, classes), dim=-1)
    lengths = torch.tensor([5, 3, 4], dtype=torch.int32)
    model = poptorch.inferenceModel(Decode(blank=blank, beam_width=300, top_paths=top).eval())
    scores, path_lengths, paths = model(probs, lengths)
    for row in range(batch):
        expected = _all_labellings(probs[: lengths[row], row], blank)[:top]
        for place, (labels, probability) in enumerate(expected):
            assert tuple(paths[row, place, : path_lengths[row, place]].tolist()) == labels
            assert scores[row, place].item() == pytest.approx(math.log(probability), abs=1e-4)
            assert torch.all(paths[row, place, path_lengths[row, place] :] == blank)


def test_ctc_decoder_on_the_host_gives_zeros_of_the_right_shapes():
    results = poptorch.ctc_beam_search_decoder(torch.zeros(7, 2, 3), torch.tensor([7, 7]), top_paths=2)
    assert [list(result.shape) for result in results] == [[2, 2], [2, 2], [2, 2, 7]]
    assert not any(result.any() for result in results)


def test_fps_takes_the_farthest_points():
    torch.manual_seed(2)
    points = torch.randn(9, 3)
    taken = poptorch.fps(points, [0, 4, 9], ratio=0.5).tolist()
    assert taken[0] == 0 and taken[2] == 4 and len(taken) == 2 + 3
    for begin, end, chosen in ((0, 4, taken[:2]), (4, 9, taken[2:])):
        for place in range(1, len(chosen)):
            gaps = torch.cdist(points[begin:end], points[chosen[:place]]).min(1).values
            assert chosen[place] == begin + int(gaps.argmax())


def test_fps_starts_anywhere_on_request():
    torch.manual_seed(3)
    points = torch.arange(8.0)[:, None]
    starts = {int(poptorch.fps(points, [0, 8], 0.1, random_start=True)[0]) for _ in range(40)}
    assert len(starts) > 3


def test_nearest_within_sets():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    y = torch.tensor([[8.0, 8.0], [0.9, 1.0], [0.0, 0.1]])
    assert poptorch.nearest(x, y).tolist() == [2, 1, 0]
    assert poptorch.nearest(x, y, [0, 0, 1], torch.tensor([0, 1, 1])).tolist() == [0, 0, 1]


def test_points_that_do_not_fit_are_refused():
    points = torch.zeros(3, 2)
    with pytest.raises(poptorch.Error, match="ptr must rise from 0 to the number of points, 3"):
        poptorch.fps(points, [0, 2])
    with pytest.raises(poptorch.Error, match="ratio"):
        poptorch.fps(points, [0, 3], ratio=0.0)
    with pytest.raises(poptorch.Error, match="both"):
        poptorch.nearest(points, points, batch_x=[0, 0, 0])
    with pytest.raises(poptorch.Error, match="no point of"):
        poptorch.nearest(points, points, [0, 0, 1], [0, 0, 0])
