"""The executable files of save and compileAndExport.

A file is a zip archive of header.json, which identifies the file, and contents.pt, which is a pickle. **As
in PopTorch, loading a file can run arbitrary code: load only files that you trust.**
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ipu_simulator import POPTORCH_VERSION

from .._logging import logger
from ..poptorch_core import createBackendError, createPoptorchError

if TYPE_CHECKING:
    from ..options import Options

# The PopTorch version that a file is written for.
VERSION = POPTORCH_VERSION.partition("+")[0]
_FORMAT = "poptorch simulator executable"
_KEYS = {"version", "training", "has_model"}
_HEADER, _CONTENTS = "header.json", "contents.pt"
_DEFAULT_NAME = "model.poptorch"


@dataclass
class Contents:
    """Contents of a file. `executable` is `Executable.saved()`, and maybe `rng_state`."""

    version: str
    training: bool
    options: Options
    model: torch.nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    executable: dict[str, Any] = field(default_factory=dict)


def destination(filename: str) -> Path:
    """The path to write: in a directory, model.poptorch. Creates missing parent directories."""
    path = Path(filename)
    if path.is_dir():
        path = path / _DEFAULT_NAME
        logger.warning("%s is a directory: writing the model to %s", filename, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(filename: str, contents: Contents) -> Path:
    """Writes a file atomically; returns its path. Raises poptorch.Error for a model that can't be pickled."""
    path = destination(filename)
    header = {
        "format": _FORMAT,
        "version": contents.version,
        "training": contents.training,
        "has_model": contents.model is not None,
    }
    buffer = io.BytesIO()
    # A single pickle, so that the optimizer still refers to the model's parameters.
    try:
        torch.save(vars(contents), buffer)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        if contents.model is None:
            raise
        raise createPoptorchError(
            f"The model, its optimizer or its options can't be pickled into the file: {error}. Define the "
            "classes and functions that the model holds, such as hooks, at a module's top level, or save the "
            "executable with export_model=False."
        ) from error
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            archive.writestr(_HEADER, json.dumps(header))
            archive.writestr(_CONTENTS, buffer.getvalue())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_header(filename: str) -> dict[str, Any]:
    """{format, version, training, has_model}. Raises poptorch.Error if it isn't the simulator's file."""
    try:
        with zipfile.ZipFile(filename) as archive:
            header = json.loads(archive.read(_HEADER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise createBackendError(f"{filename} is not a valid PopTorch file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT or not header.keys() >= _KEYS:
        raise createBackendError(f"{filename} is not a valid PopTorch file: its header isn't the simulator's")
    return header


def read(filename: str, version: str) -> Contents:
    """Unpickles a file. Raises AssertionError for another version, poptorch.Error for an invalid file."""
    header = read_header(filename)
    assert header["version"] == version, (
        f"PopTorch version mismatch: File was created with version: {header['version']} "
        f"and this is version {version}"
    )
    logger.warning("loading %s runs any code that was put into it: load only files that you trust", filename)
    try:
        with zipfile.ZipFile(filename) as archive:
            pickled = archive.read(_CONTENTS)
    except (zipfile.BadZipFile, KeyError) as error:
        raise createBackendError(f"{filename} is not a valid PopTorch file: {error}") from error
    return Contents(**torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=False))
