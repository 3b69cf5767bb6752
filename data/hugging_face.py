"""Datasets of the package `datasets`: by name, with a configuration, from data files, or saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

from .files import DataError

PREFIX = "hf:"


def parts_of(source: str, subset: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """The name or folder, and the configuration, of "hf:NAME" or "hf:NAME:CONFIGURATION"; `subset` is the
    configuration if the source names none."""
    name = source[len(PREFIX) :] if source.startswith(PREFIX) else source
    head, colon, tail = name.rpartition(":")
    if colon and head and tail and not Path(name).expanduser().exists():
        name, subset = head, tail
    return str(Path(name).expanduser()), subset


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
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


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
    given = {} if data_files is None else {"data_files": list(data_files)}
    return datasets.load_dataset(name, subset, split=split, streaming=streaming, **given, **options)
