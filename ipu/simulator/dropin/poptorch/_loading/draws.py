"""Random numbers of a data set that loads in a thread: a stream of their own.

Without it they would come from the generator that the program and the device's runs draw from, at times
that nobody knows. (PopTorch's worker is a process, which has generators of its own.)
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWING = frozenset(
    "_sample_dirichlet _standard_gamma bernoulli bernoulli_ binomial cauchy_ exponential_ geometric_ "
    "log_normal_ multinomial normal normal_ poisson rand randint randn random_ randperm uniform_".split()
)
# Older PyTorchs draw these from the program's generator alone.
_LIKE = frozenset({"rand_like", "randint_like", "randn_like"})


class OwnDraws(TorchFunctionMode):
    """Stands around what one thread does: its calls that draw take a generator of its own, which begins with
    the seed that the program gave torch.manual_seed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(torch.initial_seed())
        self._process = os.getpid()  # processes forked inside have generators and seeds of their own
        self._drawing = _DRAWING
        with contextlib.suppress(TypeError):
            torch.rand_like(torch.empty(0), generator=torch.Generator())
            self._drawing |= _LIKE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draws = getattr(func, "__name__", "") in self._drawing and kwargs.get("generator") is None
        if draws and os.getpid() == self._process:
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)
