"""Optimizers with the device's arguments (loss scaling, accumulator types).

Their updates run on the device; `step()` on the host is PyTorch's (LAMB, which PyTorch lacks, has its own).
Accumulator types only matter under IPU_SIMULATOR_PRECISION=ipu-float16; otherwise the simulator accumulates
and updates in float32. AdamW(bias_correction=False) still corrects the bias, as PopTorch 3.4's compiled
program does, contrary to its documentation; LAMB honours the argument.
"""

from __future__ import annotations

from .base import Optimizer, VariableAttributes
from .classes import LAMB, SGD, Adam, AdamW, RMSprop

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes"]

# As in PopTorch; pickled optimizers also stay loadable when a class moves within this package.
for _class in (LAMB, SGD, Adam, AdamW, Optimizer, RMSprop, VariableAttributes):
    _class.__module__ = __name__
