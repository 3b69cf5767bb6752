"""Chunks have whole documents; shards don't depend on the number of workers or on earlier kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest

from data.corpora import Corpus
from data.files import DataError, exclusive
from data.make_shards import Chunk, cut_chunks, is_held_out, prepare_shards
from data.shards import MANIFEST, TRAIN, VALIDATION, load_manifest, open_shards, shard_name
from data.tokenizer import Tokenizer
from tests.data import preprocess_slowly
from tests.data.conftest import write_text_corpus
from tests.data.preprocess_slowly import PARAMETERS
from tests.processes import children_of, is_alive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def large(documents: List[str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of several chunks: the documents eight times, numbered to make them distinct."""
    copies = [f"Copy {copy}.\n{document}" for copy in range(8) for document in documents]
    return write_text_corpus(tmp_path_factory.mktemp("large") / "large.txt", copies)


@pytest.fixture(scope="module")
def expected(
    large: Corpus, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Dict[str, bytes]:
    cache = tmp_path_factory.mktemp("expected")
    return contents(prepare_shards(large, tokenizer, PARAMETERS, cache, workers=0, progress=False))


def contents(folder: Path) -> Dict[str, bytes]:
    """The folder's name and files, including the lock: two runs must agree in every byte."""
    return {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def start(
    corpus: Corpus, vocabulary: Path, cache: Path, *, workers: int, documents: int = -1
) -> subprocess.Popen:
    arguments = [corpus.name, vocabulary, cache, workers, documents]
    return subprocess.Popen(
        [sys.executable, str(Path(preprocess_slowly.__file__)), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("workers_work", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_them(
    large: Corpus, vocabulary: Path, tmp_path: Path, number: signal.Signals, workers_work: bool
) -> None:
    """Immediately, and with at most one traceback: that of the interrupt, which the runners catch. Workers
    that still import have none either."""
    process = start(large, vocabulary, tmp_path, workers=2, documents=450)
    deadline = time.monotonic() + 120
    # The first child is multiprocessing's tracker of resources.
    while not (list(tmp_path.glob("pairs-*/*.shard")) if workers_work else children_of(process.pid)[1:]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if not workers_work:
        time.sleep(0.1)  # Python has set its handler, and imports
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("Traceback (most recent call last)") == 1
    assert said.splitlines()[-1] == "KeyboardInterrupt"


WAITED_FOR = """
import multiprocessing, os
import data.workers
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
os.waitpid(child.pid, 0)
assert child.is_alive()
print(data.workers.end([child]))
"""


def test_a_worker_that_another_thread_waited_for_is_not_called_hung() -> None:
    """The pool's thread waits for its workers too; between its wait and its note they look alive."""
    # In a process, since multiprocessing would think for ever that the child lives.
    done = subprocess.run(
        [sys.executable, "-c", WAITED_FOR], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


def test_workers_change_nothing(
    large: Corpus, tokenizer: Tokenizer, tmp_path: Path, expected: Dict[str, bytes]
) -> None:
    assert sum(name.endswith(".shard") for name in expected) >= 5
    folder = prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=2, progress=False)
    assert contents(folder) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_is_continued(
    large: Corpus,
    tokenizer: Tokenizer,
    vocabulary: Path,
    tmp_path: Path,
    expected: Dict[str, bytes],
    workers: int,
) -> None:
    process = start(large, vocabulary, tmp_path, workers=workers, documents=450)
    written: List[Path] = []
    deadline = time.monotonic() + 120
    while len(written) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
        written = sorted(tmp_path.glob("pairs-*/*.shard"))
    children = children_of(process.pid)
    assert len(children) >= workers
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)

    (folder,) = tmp_path.glob("pairs-*")
    assert not (folder / MANIFEST).exists()
    with pytest.raises(DataError, match="no finished shards"):
        open_shards(folder, TRAIN)
    deadline = time.monotonic() + 120
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.02)

    # As if the kill had come in the middle of a write, and on a file system that reorders renames.
    (folder / ".train-00009.shard.abc").write_bytes(b"half")
    written[1].write_bytes(written[1].read_bytes()[:-100])
    kept = written[0].stat().st_mtime_ns
    assert prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False) == folder
    assert contents(folder) == expected
    assert written[0].stat().st_mtime_ns == kept


def test_two_runs_at_once_share_the_work(
    large: Corpus, vocabulary: Path, tmp_path: Path, expected: Dict[str, bytes]
) -> None:
    processes = [start(large, vocabulary, tmp_path, workers=0) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    (folder,) = tmp_path.iterdir()
    assert contents(folder) == expected


def test_only_whole_shards_of_the_same_chunk_are_kept(
    large: Corpus, tokenizer: Tokenizer, tmp_path: Path, expected: Dict[str, bytes]
) -> None:
    folder = prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False)
    (folder / MANIFEST).unlink()
    first, second, third = (folder / shard_name(TRAIN, number) for number in range(3))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    third.write_bytes(third.read_bytes()[:-1] + b"?")
    prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False)
    assert contents(folder) == expected


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    events: List[str] = []

    def second() -> None:
        with exclusive(tmp_path / "lock"):
            events.append("second in")

    with exclusive(tmp_path / "lock") as locked:
        assert locked
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        events.append("first out")
    thread.join(60)
    assert events == ["first out", "second in"]


def test_a_finished_folder_is_not_written_again(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = prepare_shards(corpus, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_shards(corpus, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_failing_worker_is_reported(large: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The folder isn't writable: the run ends with the worker's error."""
    folder = prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False)
    (folder / MANIFEST).unlink()
    for path in folder.glob("*.shard"):
        path.unlink()
        path.mkdir()
    with pytest.raises(OSError):
        prepare_shards(large, tokenizer, PARAMETERS, tmp_path, workers=2, progress=False)


def test_shards_hold_the_documents_text(
    corpus: Corpus, tokenizer: Tokenizer, documents: List[str], tmp_path: Path
) -> None:
    """Each segment of an example is a contiguous part of a document of the same split."""
    folder = prepare_shards(corpus, tokenizer, PARAMETERS, tmp_path, workers=0, progress=False)
    for split, held_out in ((TRAIN, False), (VALIDATION, True)):
        mine = [
            document
            for document in documents
            if is_held_out(document, PARAMETERS.validation_fraction) == held_out
        ]
        # Tokens as characters, so that a run of them is a substring.
        texts = ["".join(chr(i) for ids in tokenizer.encode_lines(d.split("\n")) for i in ids) for d in mine]
        examples = open_shards(folder, split)
        assert len(examples) > 20
        seen = set()
        for tokens_a, tokens_b, is_random_next in examples.read(np.arange(len(examples))):
            a, b = ("".join(map(chr, tokens.tolist())) for tokens in (tokens_a, tokens_b))
            owners_a, owners_b = ({n for n, text in enumerate(texts) if run in text} for run in (a, b))
            assert owners_a and owners_b
            assert is_random_next or owners_a & owners_b
            assert 2 <= len(a) + len(b) <= PARAMETERS.sequence_length - 3
            seen |= owners_a
        assert len(seen) == len([text for text in texts if len(text) > 10])
        manifest = load_manifest(folder)
        assert manifest is not None
        headers = manifest["splits"][split]
        assert sum(header["documents"] for header in headers) == len(mine)
        assert sum(header["tokens"] for header in headers) == sum(map(len, texts))


def cut(documents: List[str], validation_fraction: float = 0.0) -> List[Chunk]:
    return list(cut_chunks(iter(documents), validation_fraction))


def make_documents(count: int, characters: int) -> List[str]:
    return [f"{number} ".ljust(characters, "x") for number in range(count)]


@pytest.mark.parametrize(
    "count, characters",
    [(0, 1), (1, 10), (7, 100_000), (8, 100_000), (9, 100_000), (5000, 1000), (30, 3_000_000)],
)
def test_every_document_is_in_one_chunk_in_order(count: int, characters: int) -> None:
    documents = make_documents(count, characters)
    chunks = cut(documents)
    assert [document for chunk in chunks for document in chunk.documents] == documents
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert len({chunk.digest for chunk in chunks}) == len(chunks)


def test_splits_keep_their_documents_apart() -> None:
    documents = make_documents(20_000, 300)
    chunks = cut(documents, 0.1)
    for split, held_out in ((TRAIN, False), (VALIDATION, True)):
        mine = [chunk for chunk in chunks if chunk.split == split]
        expected = [document for document in documents if is_held_out(document, 0.1) == held_out]
        assert [document for chunk in mine for document in chunk.documents] == expected
        assert [chunk.number for chunk in mine] == list(range(len(mine)))
    held_out_share = sum(is_held_out(document, 0.1) for document in documents) / len(documents)
    assert abs(held_out_share - 0.1) < 5 * (0.09 / len(documents)) ** 0.5


def test_what_is_held_out_grows_with_the_share() -> None:
    documents = make_documents(1000, 10)
    for document in documents:
        assert not is_held_out(document, 0.0)
        assert is_held_out(document, 0.05) <= is_held_out(document, 0.2)


def test_chunks_have_documents_to_choose_from() -> None:
    """Large books: several per chunk, so that there is a random next one. Small documents: many chunks."""
    books = cut(make_documents(60, 1_000_000))
    assert all(len(chunk.documents) >= 4 for chunk in books[:-1]) and len(books[-1].documents) >= 2
    pages = cut(make_documents(4000, 1000))
    assert len(pages) > 8
    assert all(len(chunk.documents) >= 8 for chunk in pages)


def test_chunks_are_bounded() -> None:
    sizes = [sum(map(len, chunk.documents)) for chunk in cut(make_documents(30_000, 3000))]
    assert max(sizes) < 5_000_000
    assert sizes[0] < 300_000


def test_the_digest_tells_documents_apart() -> None:
    assert cut(["ab", "c"])[0].digest != cut(["a", "bc"])[0].digest
