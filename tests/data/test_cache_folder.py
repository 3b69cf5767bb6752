"""An unusable cache folder, a full disk and a damaged vocabulary: a clear error, or repaired."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data import DataError, PretrainingDataOptions, prepare_pretraining_data
from data.cache import keep_tokenizer, kept_or_made, load_kept_tokenizer
from data.corpora import Corpus
from data.files import write_atomically
from data.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture
def options(corpus: Corpus) -> PretrainingDataOptions:
    return PretrainingDataOptions(corpus=corpus.name, sequence_length=64, mask_tokens=10, vocab_size=800)


def test_a_cache_folder_that_is_a_file(options: PretrainingDataOptions, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder, reason in ((file, "File exists"), (file / "below", "Not a directory")):
        with pytest.raises(DataError, match=rf"cannot use {folder}: {reason}.*cache_folder {folder}"):
            prepare_pretraining_data(options, cache_folder=folder, progress=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_cache_folder_without_permission(
    options: PretrainingDataOptions, tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=mode)
    with pytest.raises(DataError, match=f"Permission denied.*cache_folder {folder}"):
        prepare_pretraining_data(options, cache_folder=folder, progress=False)
    folder.chmod(0o700)


@pytest.mark.parametrize("place", ["vocabularies", "examples", "prepared"])
def test_a_part_of_the_cache_that_cannot_be_written(
    options: PretrainingDataOptions, tmp_path: Path, place: str
) -> None:
    (tmp_path / place).write_text("in the way")
    with pytest.raises(DataError, match=f"cannot use {tmp_path / place}.*: .*cache_folder {tmp_path}"):
        prepare_pretraining_data(options, cache_folder=tmp_path, progress=False)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from data import DataError, PretrainingDataOptions, prepare_pretraining_data

if __name__ == "__main__":
    corpus, cache, largest, workers = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    options = PretrainingDataOptions(
        corpus=corpus, sequence_length=64, mask_tokens=10, vocab_size=800, preprocessing_workers=int(workers)
    )
    try:
        prepare_pretraining_data(options, cache_folder=Path(cache), progress=False)
    except DataError as error:
        sys.exit(f"DataError: {error}")
"""


@pytest.mark.parametrize(
    "workers, largest, file", [(0, 150_000, ".shard"), (1, 150_000, ".shard"), (0, 1000, "vocab.txt")]
)
def test_a_write_that_the_system_refuses(
    options: PretrainingDataOptions, tmp_path: Path, workers: int, largest: int, file: str
) -> None:
    """A limit on file sizes (EFBIG) stands in for a full disk (ENOSPC): both come from write()."""
    pytest.importorskip("resource")
    script, cache = tmp_path / "limited.py", tmp_path / "cache"
    script.write_text(LIMITED)
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, str(script), options.corpus, str(cache), str(largest), str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    *_, last = ended.stderr.strip().splitlines()
    assert last.startswith("DataError: cannot use ") and f"{file}: File too large" in last
    assert f"cache_folder {cache}" in last
    assert not list(cache.rglob(".*"))


def test_an_error_of_writing_names_the_file_across_processes(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError) as caught:
        write_atomically(target, b"content")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.filename and again.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EACCES)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "fingerprint.txt"])
@pytest.mark.parametrize("how", ["truncated", "emptied", "removed", "not text"])
def test_a_damaged_vocabulary_is_never_used(
    tmp_path: Path, tokenizer: Tokenizer, file: str, how: str
) -> None:
    """A damaged file is never loaded; the vocabulary is trained again."""
    keep_tokenizer(tokenizer, tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-30], "emptied": b"", "not text": b"\xff" + content}[how])
    # tokenizer.json duplicates the other two files, so the tokeniser may be complete without one of them.
    found = load_kept_tokenizer(tmp_path)
    assert found is None or found.fingerprint() == tokenizer.fingerprint()
    made = kept_or_made(tmp_path, lambda: tokenizer)
    assert made.fingerprint() == tokenizer.fingerprint()
    assert load_kept_tokenizer(tmp_path) is not None


def test_a_vocabulary_cut_off_without_a_tokenizer_json(tmp_path: Path, tokenizer: Tokenizer) -> None:
    keep_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(lines[:500]), encoding="utf-8")
    assert load_kept_tokenizer(tmp_path) is None
    assert kept_or_made(tmp_path, lambda: tokenizer).vocab_size == 1000
    assert len((tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()) == 1000


def test_a_kept_vocabulary_is_not_made_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def never() -> Tokenizer:
        raise AssertionError

    assert kept_or_made(tmp_path, lambda: tokenizer) is tokenizer
    assert kept_or_made(tmp_path, never).fingerprint() == tokenizer.fingerprint()
