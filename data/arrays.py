"""Prepared examples as arrays in the cache folder: made once, then memory-mapped.

A folder has one .npy file an array and manifest.json, which is written last, with the files' checksums: a
folder without it, or with a damaged file, is made again.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

import numpy as np

from .files import DataError, exclusive, open_plain, remove_leftovers, write_atomically
from .json_files import read_json

_MANIFEST = "manifest.json"
Arrays = Dict[str, np.ndarray]


def kept_arrays(
    folder: Path,
    names: Sequence[str],
    make: Callable[[], Arrays],
    problem: Callable[[Arrays], Optional[str]],
    *,
    cache_folder: Path,
) -> Arrays:
    """The arrays of `folder`, in `cache_folder`, made if necessary; waits for a process that is making them.

    `problem` says what is wrong with arrays whose checksums are right, or None. Raises DataError if the
    folder can't be used, and what `make` raises.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            remove_leftovers(folder)
            arrays = _load(folder, names, problem)
            if arrays is None:
                _write(folder, make())
                arrays = _load(folder, names, problem)
    except OSError as error:
        raise DataError(
            f"cannot use {error.filename or folder}: {error.strerror or error}. Prepared data is kept in "
            f"cache_folder {cache_folder}: make room and check that you may write there, or set another"
        ) from error
    if arrays is None:
        raise DataError(
            f"{folder} isn't as it was written a moment ago: check the disk, and who else writes there"
        )
    return arrays


def _write(folder: Path, arrays: Arrays) -> None:
    checksums = {}
    for name, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        checksums[name] = zlib.crc32(content.getbuffer())
        write_atomically(folder / f"{name}.npy", content.getvalue())
    write_atomically(folder / _MANIFEST, json.dumps({"crc32": checksums}).encode())


def _load(folder: Path, names: Sequence[str], problem: Callable[[Arrays], Optional[str]]) -> Optional[Arrays]:
    """The arrays of a folder, memory-mapped; None: make them (again)."""
    if not (folder / _MANIFEST).is_file():
        return None
    try:
        manifest = read_json(folder / _MANIFEST, most_bytes=1 << 20)
        checksums = manifest["crc32"]
        arrays = {name: _read(folder / f"{name}.npy", checksums[name]) for name in names}
        found = problem(arrays)
        if found:
            raise ValueError(found)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, EOFError) as error:
        print(f"warning: prepared data is damaged and made again: {folder}: {error}", file=sys.stderr)
        return None


def _read(file: Path, checksum: int) -> np.ndarray:
    """The array in a file, mapped from a copy without a name, which no other process can change or cut."""
    found = 0
    with open_plain(file) as stream, tempfile.TemporaryFile(dir=str(file.parent)) as copy:
        for block in iter(lambda: stream.read(1 << 22), b""):
            found = zlib.crc32(block, found)
            copy.write(block)
        if found != checksum:
            raise ValueError(f"the checksum of {file} is wrong")
        copy.seek(0)
        if np.lib.format.read_magic(copy) != (1, 0):
            raise ValueError(f"{file} has another version of numpy's format than 1.0")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(copy)
        if is_fortran or dtype.hasobject or not all(shape):
            raise ValueError(f"{file} has shape {shape} and type {dtype}")
        # A plain array over the map, because slicing a numpy.memmap is several times slower.
        return np.asarray(np.memmap(copy, dtype, "r", copy.tell(), shape))
