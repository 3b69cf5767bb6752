"""BERT and GroupBERT in plain PyTorch: models, sizes, files, and annotations for IPUs.

The package's interface is interface.py. It is imported at its first use, because it needs PyTorch: `config`
composes the keys of config.py, and --help must not wait for PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .interface import *  # noqa: F403
else:

    def __getattr__(name):
        import model.interface

        # A module of the package, such as model.heads, is an attribute once it is imported.
        return globals()[name] if name in globals() else getattr(model.interface, name)
