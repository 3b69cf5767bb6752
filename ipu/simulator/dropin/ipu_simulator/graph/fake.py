"""Stand-ins for a model's weights and inputs: fake tensors, which have shapes and dtypes but no memory; or
copies, for a model whose control flow depends on values.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

_RANDOM_FILLS = frozenset(
    (
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.bernoulli_,
        torch.Tensor.exponential_,
        torch.Tensor.log_normal_,
        torch.Tensor.cauchy_,
        torch.Tensor.geometric_,
        torch.Tensor.random_,
    )
)


class _WithoutValues(TorchFunctionMode):
    """Skips the random initialisation of tensors on the meta device, which have no values.

    PyTorch would compute the result's shape in Python and import its compiler for that: a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fills = func in _RANDOM_FILLS or getattr(func, "__module__", "") == "torch.nn.init"
        if fills:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Inside, models and tensors are built on the meta device, which takes no memory, whatever their size."""
    with torch.device("meta"), _WithoutValues():
        yield


def fake_mode() -> FakeTensorMode:
    """The fake tensor mode for running a model. Real tensors that the model holds besides its parameters and
    buffers are constants.
    """
    with without_compiler():
        return _FakeTensorMode(allow_non_fake_inputs=True)


class _Settings(ModuleType):
    """Stands in for the package torch._dynamo where only its settings are read, and where functions are
    excluded from a compilation that isn't under way. Asked for anything else, it gives way to the package.
    """

    @staticmethod
    def disable(fn: Any, *args: Any, **kwargs: Any) -> Any:
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _forget_compiler()
        import torch._dynamo

        return getattr(torch._dynamo, name)


_COMPILER = "torch._dynamo"


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, FakeTensorMode reads its settings in torch._dynamo.config without importing the rest of that
    package, which takes a second. Nothing changes if it is imported already.
    """
    if _COMPILER in sys.modules:
        yield
        return
    settings = _Settings(_COMPILER)
    settings.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    sys.modules[_COMPILER] = settings
    vars(torch)["_dynamo"] = settings
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is settings:
            _forget_compiler()


def _forget_compiler() -> None:
    for module in [each for each in sys.modules if f"{each}.".startswith(f"{_COMPILER}.")]:
        del sys.modules[module]
    vars(torch).pop("_dynamo", None)


class _FakeTensorMode(FakeTensorMode):
    """Without the wrapper that torch 2.8 and later put around a mode's dispatch, which imports torch._dynamo
    to switch that off.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    __torch_dispatch__ = getattr(
        FakeTensorMode.__torch_dispatch__, "__wrapped__", FakeTensorMode.__torch_dispatch__
    )


def stand_in(
    mode: FakeTensorMode | None, tensor: torch.Tensor, device_dtype: Callable[[torch.dtype], torch.dtype]
) -> torch.Tensor:
    """A CPU tensor of the same shape and strides in the device's dtype: a fake one of `mode`, or a copy.

    `tensor` may be real, or with a mode also fake or on the meta device.
    """
    dtype = device_dtype(tensor.dtype)
    with torch.no_grad():
        if mode is None:
            return tensor.detach().to(dtype, copy=True)
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cpu")


class WeightsStandIns:
    """One stand-in per parameter and buffer of a model; tied ones share a stand-in."""

    def __init__(
        self,
        mode: FakeTensorMode | None,
        model: torch.nn.Module,
        device_dtype: Callable[[torch.dtype], torch.dtype],
    ) -> None:
        self._model = model
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self._others: dict[int, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            other = stand_in(mode, parameter, device_dtype)
            self.parameters[name] = torch.nn.Parameter(other, requires_grad=parameter.requires_grad)
            self._others[id(parameter)] = self.parameters[name]
        for name, buffer in model.named_buffers():
            self.buffers[name] = stand_in(mode, buffer, device_dtype)
            self._others[id(buffer)] = self.buffers[name]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a parameter or buffer; any other tensor is returned unchanged."""
        return self._others.get(id(tensor), tensor)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model's modules hold the stand-ins; on exit the originals are restored."""
        tables: list[dict[str, Any]] = [
            table for module in self._model.modules() for table in (module._parameters, module._buffers)
        ]
        before = [dict(table) for table in tables]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = self.of(tensor)
        try:
            yield
        finally:
            for table, contents in zip(tables, before):
                table.clear()
                table.update(contents)
