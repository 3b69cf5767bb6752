"""Reports on a program that runs: the verdict on its first compiled model, written when the compilation ends.

IPU_SIMULATOR_PROFILE names the folder; the front door's --profile sets it. The folder itself has the
reports on the training model, or on an inference model until there is one; `inference` in it has those on the
inference model. The model's forward runs a second time for this, on tensors without memory.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ipu_simulator import environment, variables
from ipu_simulator.installation import NAME

from .._logging import logger
from .predictions import Predictions

if TYPE_CHECKING:
    from ..options import Options

# Kinds of models that this process has reports on, or has begun them.
_reported: set[str] = set()
_lock = threading.Lock()


def report(predictions: Predictions | None, options: Options, training: bool) -> None:
    """A model was compiled. Writes reports if they are asked for and this is the first of its kind; whatever
    goes wrong is a warning on stderr. None stands for a program that came compiled from a file.
    """
    folder = variables.profile_folder()
    kind = "training" if training else "inference"
    if folder is None or options.Distributed.processId or variables.whole_number(variables.RANK, 0):
        return
    with _lock:
        if kind in _reported:
            return
        if predictions is None:
            _say(f"warning: no reports on the {kind} model: it came compiled from a file")
            return
        folders = [] if kind == "inference" and "training" in _reported else [folder]
        _reported.add(kind)
    if kind == "inference":
        folders.append(folder / kind)
    _write(predictions, kind, folders)


def _write(predictions: Predictions, kind: str, folders: list[Path]) -> None:
    # The user's program goes on, whatever happens to a report on it: any model may fail to be captured.
    try:
        verdict = predictions.verdict
        from ipu_simulator import report

        for folder in folders:
            report.write(verdict, folder)
        environment.say(report.text(verdict))
    except Exception as error:
        logger.debug("The report failed", exc_info=True)
        _say(f"warning: no reports on the {kind} model: {type(error).__name__}: {error}")
    else:
        _say(f"reports on the {kind} model are in {folders[0]}")


def _say(text: str) -> None:
    environment.say(f"{NAME}: {text}")
