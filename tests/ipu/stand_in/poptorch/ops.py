"""Annotations of a model, and the trace that reads them: plain computations outside a trace."""

from __future__ import annotations

import torch

from .options import MatMulSerializationMode
from .poptorch_core import Error

_ATTRIBUTE = "_stand_in_block"


class Trace:
    """What one forward said: its blocks in order, and how many final losses it has."""

    active = None

    def __init__(self):
        self.blocks, self.losses, self.serialized = [], 0, 0

    def __enter__(self):
        Trace.active = self
        return self

    def __exit__(self, *error):
        Trace.active = None

    @property
    def ipus(self):
        return 1 + max([ipu for _, ipu in self.blocks], default=0)

    @property
    def stages(self):
        way = [0, *(ipu for _, ipu in self.blocks)]
        return 1 + sum(before != after for before, after in zip(way, way[1:]))  # noqa: RUF007 (Python 3.8)


def BeginBlock(layer_to_call, user_id=None, ipu_id=None):
    if not isinstance(layer_to_call, torch.nn.Module):
        raise Error("module is not an instance of torch.nn.Module or function.")
    if hasattr(layer_to_call, _ATTRIBUTE):
        raise Error("module has already been assigned to a block.")
    assert isinstance(user_id, str) and isinstance(ipu_id, int), (user_id, ipu_id)

    def begin(_module, _inputs):
        if Trace.active is not None:
            Trace.active.blocks.append((user_id, ipu_id))

    setattr(layer_to_call, _ATTRIBUTE, layer_to_call.register_forward_pre_hook(begin))
    return layer_to_call


def removeBlocks(module):
    assert isinstance(module, torch.nn.Module)
    for part in module.modules():
        if hasattr(part, _ATTRIBUTE):
            getattr(part, _ATTRIBUTE).remove()
            delattr(part, _ATTRIBUTE)


def identity_loss(x, reduction):
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    if Trace.active is not None:
        Trace.active.losses += 1
    return {"sum": torch.sum, "mean": torch.mean, "none": torch.clone}[reduction](x)


def recomputationCheckpoint(*tensors):
    values = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise ValueError("All inputs must be tensors")
    return tensors[0] if len(tensors) == 1 else tensors


def serializedMatMul(lhs, rhs, mode, factor=0, keep_precision=False):
    assert isinstance(mode, MatMulSerializationMode) and isinstance(factor, int), (mode, factor)
    if mode is MatMulSerializationMode.OutputChannels and rhs.shape[-1] % factor:
        raise Error(f"{rhs.shape[-1]} output channels can't be cut into {factor} slices")
    if Trace.active is not None:
        Trace.active.serialized = factor
    return torch.matmul(lhs, rhs)


def isRunningOnIpu():
    return Trace.active is not None
