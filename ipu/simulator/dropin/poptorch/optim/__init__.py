"""Optimizers with the arguments that only the device has (loss scaling, accumulator types).

Their updates run on the device; `step()` on the host is PyTorch's own (LAMB: PyTorch has none). The
simulator accumulates and updates in float32 whatever the accumulator types, which it keeps and
reports. AdamW(bias_correction=False) still corrects the bias, as PopTorch 3.4's compiled program does
in spite of its documentation; LAMB obeys the argument.
"""

from __future__ import annotations

from .base import Optimizer, VariableAttributes
from .classes import LAMB, SGD, Adam, AdamW, RMSprop

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes"]

# As PopTorch has them, and so that an optimizer in a file is found wherever its class moves in here.
for _class in (LAMB, SGD, Adam, AdamW, Optimizer, RMSprop, VariableAttributes):
    _class.__module__ = __name__
