"""Blocks: assign parts of a model to pipeline stages and IPUs."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, Callable, ParamSpec, TypeVar

import torch

from ._trace import run as trace
from .poptorch_core import createPoptorchError

P = ParamSpec("P")
R = TypeVar("R")


def _begin(user_id: str | None, ipu_id: int | None) -> None:
    run = trace.current()
    if run is not None:
        run.begin_block(user_id, ipu_id)


class Block(torch.nn.Module):
    """A context whose operations form one block.

    :param user_id: the block's id; None: the next automatic number.
    :param ipu_id: the block's IPU, unless the execution strategy sets it.
    """

    def __init__(self, user_id: str | None = None, ipu_id: int | None = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __enter__(self) -> None:
        _begin(self._user_id, self._ipu_id)

    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run = trace.current()
        if run is not None:
            run.end_block()

    @staticmethod
    def start(user_id: str | None = None, ipu_id: int | None = None) -> None:
        """Begins a block here; it lasts until the next one begins."""
        _begin(user_id, ipu_id)

    @staticmethod
    def useAutoId() -> None:
        """Restarts the numbers of blocks without an id at 0; call it at the start of forward()."""
        run = trace.current()
        if run is not None:
            run.reset_auto_id()


class _BeginBlockHook:
    """The forward pre-hook that begins a block. It survives deepcopy and pickling with its module."""

    def __init__(self, user_id: str | None, ipu_id: int | None) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        _begin(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


class LegacyBeginBlockFn(torch.nn.Module):
    """Wraps a callable that isn't a module, so that each call begins a block."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: str | None = None, ipu_id: int | None = None
    ) -> None:
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        _begin(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


def _hooks(module: torch.nn.Module) -> dict[int, _BeginBlockHook]:
    hooks = module._forward_pre_hooks.items()
    return {key: hook for key, hook in hooks if isinstance(hook, _BeginBlockHook)}


def begin_block_hook(module: torch.nn.Module) -> _BeginBlockHook | None:
    """The module's BeginBlock hook, if it has one; its repr names the block."""
    return next(iter(_hooks(module).values()), None)


def BeginBlock(
    layer_to_call: torch.nn.Module | Callable[..., Any],
    user_id: str | None = None,
    ipu_id: int | None = None,
) -> torch.nn.Module | LegacyBeginBlockFn:
    """Begins a block each time the layer is called; the block lasts until the next one begins.

    Returns the same module, with a forward pre-hook (a plain callable is wrapped instead). Raises
    poptorch.Error for a module that begins a block already, and for anything that can't be called.
    """
    if not isinstance(layer_to_call, torch.nn.Module):
        if not callable(layer_to_call):
            raise createPoptorchError("module is not an instance of torch.nn.Module or function.")
        return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
    if _hooks(layer_to_call):
        raise createPoptorchError("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BeginBlockHook(user_id, ipu_id))
    return layer_to_call


def removeBlocks(module: torch.nn.Module) -> None:
    """Removes BeginBlock's hooks from a module and its submodules; other hooks remain.

    Raises AssertionError for anything but a module.
    """
    assert isinstance(module, torch.nn.Module), "removeBlocks needs a torch.nn.Module"
    for part in module.modules():
        for key in _hooks(part):
            del part._forward_pre_hooks[key]


def BlockFunction(
    user_id: str | None = None, ipu_id: int | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function's operations form one block."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return wrapped

    return decorate
