"""PopTorch files: what save, compileAndExport and loadExecutable share, and `poptorch.load`.

A zip archive of header.json, which says what the file is before anything else is read, and contents.pt,
which is a pickle. **As upstream, loading a file runs code that the file brings: load only files that you
trust.**
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import torch
from ipu_simulator import POPTORCH_VERSION

from .. import enums
from .._logging import logger
from ..poptorch_core import createBackendError

if TYPE_CHECKING:
    from ..executor import PoplarExecutor
    from ..options import Options

# PopTorch's, which a file is for.
VERSION = POPTORCH_VERSION.partition("+")[0]
_FORMAT = "poptorch simulator executable"
_KEYS = {"version", "training", "has_model"}
_HEADER, _CONTENTS = "header.json", "contents.pt"
_DEFAULT_NAME = "model.poptorch"


@dataclass
class Contents:
    """One file. `executable` is what the executor needs to go on without compiling, by names of its own."""

    version: str
    training: bool
    options: Options
    model: torch.nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    executable: dict[str, Any] = field(default_factory=dict)


def destination(filename: str) -> Path:
    """Where to write: a folder gets a model.poptorch; missing parents are made."""
    path = Path(filename)
    if path.is_dir():
        path = path / _DEFAULT_NAME
        logger.warning("%s is a directory: the model goes to %s", filename, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(filename: str, contents: Contents) -> Path:
    """Writes a whole file or none; returns where it is."""
    path = destination(filename)
    header = {
        "format": _FORMAT,
        "version": contents.version,
        "training": contents.training,
        "has_model": contents.model is not None,
    }
    buffer = io.BytesIO()
    # One pickle for all, so that the optimizer keeps the model's own parameters.
    torch.save(vars(contents), buffer)
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
    """{format, version, training, has_model}. Raises poptorch.Error for a file of another kind."""
    try:
        with zipfile.ZipFile(filename) as archive:
            header = json.loads(archive.read(_HEADER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise createBackendError(f"{filename} is not a valid PopTorch file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT or not header.keys() >= _KEYS:
        raise createBackendError(f"{filename} is not a valid PopTorch file: its header isn't the simulator's")
    return header


def read(filename: str, version: str) -> Contents:
    """Runs what the file's pickle says. Raises AssertionError for a file of another version."""
    header = read_header(filename)
    assert header["version"] == version, (
        f"PopTorch version mismatch: File was created with version: {header['version']} "
        f"and this is version {version}"
    )
    try:
        with zipfile.ZipFile(filename) as archive:
            pickled = archive.read(_CONTENTS)
    except (zipfile.BadZipFile, KeyError) as error:
        raise createBackendError(f"{filename} is not a valid PopTorch file: {error}") from error
    return Contents(**torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=False))


def load(filename: str, edit_opts_fn: Callable[[Options], None] | None = None) -> PoplarExecutor:
    """An executor from a file that save or compileAndExport wrote, ready to run without compiling.

    `edit_opts_fn` may change the saved options before the model is wrapped. A file made for an offline
    target runs on whatever is here. The file is a pickle: load only files that you trust.

    Raises AssertionError for a file without a model or of another version, poptorch.Error for a file of
    another kind.
    """
    from ..models import inferenceModel, trainingModel

    assert read_header(filename)["has_model"], (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which means it has "
        "no model to wrap: make it again from its class, wrap it with poptorch.inferenceModel or "
        "poptorch.trainingModel, and call loadExecutable on that"
    )
    contents = read(filename, VERSION)
    assert contents.model is not None
    options = contents.options.clone()
    options.deleteIfExists("ipu_version")
    if options.connection_type == enums.ConnectionType.Never.value:
        options.connectionType(enums.ConnectionType.Always)
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    if contents.training:
        executor = trainingModel(contents.model, options, contents.optimizer)
    else:
        executor = inferenceModel(contents.model, options)
    executor.loadExecutable(filename)
    return executor


def importPoptorchMetadataFromFile(*_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """The header of a file: {format, version, training, has_model}."""
    return read_header(*_args, **_kwargs)
