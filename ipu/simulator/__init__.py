"""The simulator: a PopTorch that needs no SDK, and what it stands on.

`dropin/` holds the packages that a program sees in place of Graphcore's (poptorch) and nothing else, so that
the folder can be put on any program's PYTHONPATH. Everything else here is reached from there under a private
name (`dropin/poptorch/_engine.py`), which is why imports inside this package are relative.
"""

from __future__ import annotations

# PopTorch's version whose behaviour this is.
POPTORCH_VERSION = "3.4.0+simulator"
