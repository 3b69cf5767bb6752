"""From the options of a run to its training and validation data: corpus, vocabulary, shards, datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from data.errors import DataError
from data.preparation_text import open_text, prepare_text
from data.preparation_tfrecord import is_tfrecord, prepare_tfrecords
from data.prepared import find_prepared
from data.pretraining_data import PretrainingData, PretrainingDataOptions


def prepare_pretraining_data(
    options: PretrainingDataOptions,
    *,
    cache_folder: Path,
    progress: bool = True,
    identity: Optional[str] = None,
) -> PretrainingData:
    """Everything that training needs, ready to read; from cache_folder where an earlier run has prepared it.

    identity: of the data that is wanted and no other. A text corpus isn't even looked at if the cache folder
    has what was prepared from it.
    Raises DataError for unusable corpora, vocabularies and shards (see their modules), for an unusable cache
    folder, and where the data that is there has another identity.
    """
    cache_folder = Path(cache_folder)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        data = _prepared_data(options, cache_folder, progress, identity)
    except OSError as error:
        raise DataError(
            f"cannot use {error.filename or cache_folder}: {error.strerror or error}. Prepared data is kept "
            f"in cache_folder {cache_folder}: make room and check that you may write there, or set another"
        ) from error
    if identity is not None and data.identity != identity:
        raise DataError(
            f"the corpus {options.corpus} or its vocabulary has changed since the checkpoint was written "
            f"(its data was {identity}, now it is {data.identity}): restore it, or start a new run from the "
            "weights with --checkpoint"
        )
    return data


def _prepared_data(
    options: PretrainingDataOptions, cache_folder: Path, progress: bool, identity: Optional[str]
) -> PretrainingData:
    prepared = None if identity is None else find_prepared(identity, cache_folder)
    if prepared is None:
        if is_tfrecord(options.corpus):
            return prepare_tfrecords(options, cache_folder, identity)
        prepared = prepare_text(options, cache_folder, progress)
    return open_text(prepared, options, cache_folder)
