"""The part of PopTorch's private module `_args_parser` that third parties import."""

from __future__ import annotations

from typing import Any

import torch

from ._run.arguments import ArgumentParser, Arguments

__all__ = ["ArgsParser"]


class ArgsParser:
    """Binds the arguments of calls to the parameters of a model's forward, with PopTorch's errors.

    Raises AssertionError for an argument too many, an unknown keyword, and an argument given twice;
    poptorch.Error for a missing argument, and for a tensor that the device can't take.
    """

    class Args:
        """A call's arguments: `args` and `kwargs` as they were passed, with detached tensors."""

        def __init__(self, arguments: Arguments, order: list[str]) -> None:
            self.args = list(arguments.args)
            self.kwargs = dict(arguments.kwargs)
            self._order = order

        def asTuple(self) -> tuple[Any, ...]:
            """All arguments, in the order of the forward's parameters; then those of its **kwargs."""
            named = [name for name in self._order if name in self.kwargs]
            more = [name for name in self.kwargs if name not in self._order]
            return (*self.args, *(self.kwargs[name] for name in [*named, *more]))

    def __init__(self, model: torch.nn.Module) -> None:
        self._parser = ArgumentParser(model.forward)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], fast_path: bool = False) -> Args:
        """`fast_path` has no effect: PopTorch then skips checks of later calls."""
        return self.Args(self._parser.parse(args, kwargs), self._parser.positional)
