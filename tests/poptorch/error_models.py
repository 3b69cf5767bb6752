"""Models and options for the tables of documented errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Tuple

import torch

from tests.poptorch.executor_models import poptorch

# A call, and the text of its error: PopTorch's, or ours where PopTorch documents none. A call with an
# argument gets an empty folder.
Case = Tuple[Callable[..., Any], str]


def same(x: torch.Tensor) -> torch.Tensor:
    """Its argument."""
    return x


class Shapes(torch.nn.Module):
    """Calls a function in its forward."""

    def __init__(self, function: Callable[..., Any] = same) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


ONES = torch.ones(4, 4)


def options(**settings: Any) -> Any:
    made = poptorch.Options()
    for name, value in settings.items():
        getattr(made, name)(value)
    return made


def on_device(function: Callable[..., Any]) -> Any:
    return poptorch.inferenceModel(Shapes(function))(ONES)


def fresh(**settings: Any) -> Any:
    return poptorch.inferenceModel(Shapes(), options(**settings))


def compiled(**settings: Any) -> Any:
    executor = fresh(**settings)
    executor.compile(ONES)
    return executor
