"""Reports on a program that runs: the verdict on its first compiled model, written when the compilation ends.

IPU_SIMULATOR_PROFILE names the folder; `python -m ipu.simulator --profile` sets it. The folder itself has the
reports on the training model, or on an inference model until there is one; `inference` in it has those on the
inference model. The model's forward runs a second time for this, on tensors without memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ._predictions import Predictions

VARIABLE = "IPU_SIMULATOR_PROFILE"
_RANK = "RANK"  # torchrun's

_profiled: set[str] = set()


def compiled(predictions: Predictions | None, options: Any, training: bool) -> None:
    """A model was compiled. Writes reports if they are asked for and this is the first of its kind; whatever
    goes wrong is a warning on stderr. None stands for a program that came compiled from a file.
    """
    folder = os.environ.get(VARIABLE)
    kind = "training" if training else "inference"
    if not folder or kind in _profiled or _rank(options):
        return
    if predictions is None:
        _say(f"warning: no reports on the {kind} model: it came compiled from a file")
        return
    folders = [] if kind == "inference" and "training" in _profiled else [Path(folder)]
    if kind == "inference":
        folders.append(Path(folder) / kind)
    _profiled.add(kind)
    try:
        verdict = predictions.verdict
        from ipu_simulator import report

        for one in folders:
            report.write(verdict, one)
        print(report.text(verdict), file=sys.stderr)
        _say(f"reports on the {kind} model are in {folders[0]}")
    except Exception as error:
        _say(f"warning: no reports on the {kind} model: {type(error).__name__}: {error}")


def _rank(options: Any) -> int:
    return options.Distributed.processId or int(os.environ.get(_RANK, "0"))


def _say(text: str) -> None:
    print(f"ipu.simulator: {text}", file=sys.stderr, flush=True)
