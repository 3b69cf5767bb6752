"""Training: learning rate schedules, optimisers, the loop, checkpoints, metrics and reporting.

The package's interface is interface.py. It is imported at its first use, because it needs PyTorch: a dry run
whose graph is known needs only folder.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .interface import *  # noqa: F403
else:

    def __getattr__(name):
        import training.interface

        # A module of the package, such as training.folder, is an attribute once it is imported.
        return globals()[name] if name in globals() else getattr(training.interface, name)
