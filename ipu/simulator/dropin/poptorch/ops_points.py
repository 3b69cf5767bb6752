"""Operations on point sets, and CTC decoding."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from ._trace import run as trace
from .poptorch_core import createPoptorchError


def fps(src: torch.Tensor, ptr: list[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Farthest point sampling: repeatedly selects the point farthest from all selected ones.

    :param src: points [n, features].
    :param ptr: boundaries of the point sets, from 0 to n: set i is src[ptr[i]:ptr[i + 1]].
    :param ratio: the fraction of each set to select, rounded up; 0 < ratio <= 1.
    :param random_start: start with a random point of each set instead of its first.
    :returns: int32 indices into `src`, in order of selection, set after set.

    Raises poptorch.Error for an invalid `ptr` or `ratio`.
    """
    bounds = [int(bound) for bound in ptr]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(src) or bounds != sorted(set(bounds)):
        raise createPoptorchError(
            f"fps: ptr must rise from 0 to the number of points, {len(src)}, but is {bounds}"
        )
    if not 0 < ratio <= 1:
        raise createPoptorchError(f"fps: ratio must be above 0 and at most 1, but is {ratio}")
    chosen = []
    for begin, end in itertools.pairwise(bounds):
        points = src[begin:end].flatten(1) if src.dim() > 1 else src[begin:end, None]
        latest = torch.randint(len(points), ()) if random_start else torch.tensor(0)
        nearest_taken = torch.full((len(points),), math.inf, dtype=points.dtype)
        taken = [latest]
        for _ in range(math.ceil(ratio * len(points)) - 1):
            distance = (points - points.index_select(0, latest.reshape(1))).square().sum(1)
            nearest_taken = torch.minimum(nearest_taken, distance)
            latest = nearest_taken.argmax()
            taken.append(latest)
        chosen.append(torch.stack(taken) + begin)
    return torch.cat(chosen).to(torch.int32)


def nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: list[int] | torch.Tensor | None = None,
    batch_y: list[int] | torch.Tensor | None = None,
) -> torch.Tensor:
    """For each point of `x` [n, features], the index of the nearest point of `y` [m, features]: int32 [n].

    With `batch_x` [n] and `batch_y` [m], only points of the same set count. Raises poptorch.Error if only
    one of them is given, if their shapes don't fit, or if a set has no point in `y`.
    """
    if (batch_x is None) != (batch_y is None):
        raise createPoptorchError("nearest: give both batch_x and batch_y, or neither")
    distance = torch.cdist(_as_points(x), _as_points(y))
    if batch_x is not None:
        set_x, set_y = (torch.as_tensor(batch, device=x.device) for batch in (batch_x, batch_y))
        if set_x.shape != (len(x),) or set_y.shape != (len(y),):
            raise createPoptorchError(
                f"nearest: batch_x and batch_y must have one entry for each point, {len(x)} and {len(y)}, "
                f"but have {list(set_x.shape)} and {list(set_y.shape)}"
            )
        same = set_x[:, None] == set_y[None, :]
        with trace.as_host(), torch._C.DisableTorchFunction():
            every_set_is_there = bool(same.any(1).all())
        if not every_set_is_there:
            raise createPoptorchError("nearest: batch_x has a set that batch_y has no point of")
        distance = distance.masked_fill(~same, math.inf)
    return distance.argmin(1).to(torch.int32)


def _as_points(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor if tensor.dim() > 1 else tensor[:, None]).float()


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> list[torch.Tensor]:
    """The most probable labellings of CTC outputs, by prefix beam search. Inference only; on the host, zeros
    of the same shapes.

    :param probs: log-probabilities [time, batch, classes].
    :param lengths: number of valid time steps [batch].
    :returns: log-probabilities float32 [batch, top_paths], lengths int32 [batch, top_paths] and labels int32
        [batch, top_paths, time], best first and padded with `blank`.

    Raises poptorch.Error for an invalid `blank` or `top_paths`.

    Source: A. Graves, "Sequence Transduction with Recurrent Neural Networks", section 3, with CTC's two ways
    to end a prefix (in a blank or in its last label).
    """
    time, batch, classes = probs.shape
    if not 0 <= blank < classes or not 1 <= top_paths <= beam_width:
        raise createPoptorchError(
            f"ctc_beam_search_decoder: blank must be below {classes} and top_paths between 1 and beam_width: "
            f"got {blank}, {top_paths} and {beam_width}"
        )
    scores = torch.zeros(batch, top_paths)
    path_lengths = torch.zeros(batch, top_paths, dtype=torch.int32)
    paths = torch.zeros(batch, top_paths, time, dtype=torch.int32)
    run = trace.current()
    if run is None:
        return [scores, path_lengths, paths]
    run.inference_only.append("poptorch.ctc_beam_search_decoder()")
    scores.fill_(-math.inf)
    paths.fill_(blank)
    # The device's computation, which reads values, so tracing would refuse it.
    with trace.as_host(), torch._C.DisableTorchFunction():
        log_probs, num_steps = probs.detach().float().transpose(0, 1).tolist(), lengths.tolist()
        for row in range(batch):
            found = _best_prefixes(log_probs[row][: num_steps[row]], blank, beam_width)
            for place, (prefix, score) in enumerate(found[:top_paths]):
                scores[row, place] = score
                path_lengths[row, place] = len(prefix)
                paths[row, place, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
    return [scores, path_lengths, paths]


def _log_add(a: float, b: float) -> float:
    high = max(a, b)
    return high if high == -math.inf else high + math.log(math.exp(a - high) + math.exp(b - high))


def _best_prefixes(steps: list[list[float]], blank: int, width: int) -> list[tuple[tuple[int, ...], float]]:
    """(labels, log-probability), best first."""
    impossible = -math.inf
    # prefix -> log-probabilities of its alignments that end in a blank, and that end in its last label.
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, impossible)}
    for step in steps:
        following: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(
            prefix: tuple[int, ...],
            in_blank: float,
            in_label: float,
            into: dict[tuple[int, ...], tuple[float, float]] = following,
        ) -> None:
            old = into.get(prefix, (impossible, impossible))
            into[prefix] = (_log_add(old[0], in_blank), _log_add(old[1], in_label))

        for prefix, (in_blank, in_label) in beam.items():
            total = _log_add(in_blank, in_label)
            for label, score in enumerate(step):
                if label == blank:
                    add(prefix, total + score, impossible)
                elif prefix and label == prefix[-1]:
                    add(prefix, impossible, in_label + score)
                    add((*prefix, label), impossible, in_blank + score)
                else:
                    add((*prefix, label), impossible, total + score)
        beam = dict(sorted(following.items(), key=_total, reverse=True)[:width])
    ranked = sorted(beam.items(), key=_total, reverse=True)
    return [(prefix, _log_add(*scores)) for prefix, scores in ranked]


def _total(entry: tuple[Any, tuple[float, float]]) -> float:
    return _log_add(*entry[1])
