"""Datasets of the package `datasets`: by name, with a configuration, from data files, or saved to disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from .files import DataError, local_path

PREFIX = "hf:"


def parts_of(source: str, subset: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """The name or folder, and the configuration, of "hf:NAME" or "hf:NAME:CONFIGURATION"; `subset` is the
    configuration if the source names none."""
    name = source[len(PREFIX) :] if source.startswith(PREFIX) else source
    head, colon, tail = name.rpartition(":")
    if colon and head and tail and not local_path(name).exists():
        name, subset = head, tail
    return str(local_path(name)), subset


def library(source: str) -> Any:
    """The package `datasets`. Raises DataError if it isn't installed."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} needs the package `datasets`: {error}. Run `pip install datasets`."
        ) from error
    return datasets


def is_saved(name: str) -> bool:
    """Whether it is a folder that `save_to_disk` wrote."""
    signs = (("state.json", "dataset_info.json"), ("dataset_dict.json",))
    return any(all((Path(name) / file).is_file() for file in files) for files in signs)


def as_named(source: str) -> str:
    """The source, as "hf:FOLDER" if it is a folder that `save_to_disk` wrote."""
    try:
        named = PREFIX + source if source and is_saved(str(local_path(source))) else source
    except (OSError, ValueError):  # too long a name, a NUL character
        return source  # whose error is that of reading it
    return named


def rows_of(
    datasets: Any,
    name: str,
    subset: Optional[str],
    split: str,
    *,
    streaming: bool,
    data_files: Optional[Sequence[str]] = None,
    **options: Any,
) -> Any:
    """The rows of a split. Raises what `datasets` raises, and ValueError for a split that isn't there.

    A single dataset that was saved to disk is taken for any split.
    """
    if data_files is None and is_saved(name):
        saved = datasets.load_from_disk(name)
        if isinstance(saved, dict):
            if split not in saved:
                raise ValueError(f"it has no split {split!r}; its splits are: {', '.join(saved)}")
            return saved[split]
        return saved
    given: Dict[str, Any] = {} if data_files is None else {"data_files": list(data_files)}
    given.update(cache_options(datasets, name))
    return datasets.load_dataset(name, subset, split=split, streaming=streaming, **given, **options)


def cache_options(datasets: Any, name: str) -> Dict[str, Any]:
    """Options for `load_dataset`: a folder's own cache, for its files as they are now.

    The library keeps rows and columns of a folder's named configuration by the folder's last name alone, so
    it would return those of earlier files, or of another folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {}
    digest = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape"))
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        line = f"\n{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {"cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / digest.hexdigest()[:16])}
