"""Run as a process by the tests: prepares a text file whose corpus hangs after some documents.

Arguments: corpus file, vocabulary folder, cache folder, workers, documents before it hangs (-1: never).
"""

import signal
import sys
import time
from pathlib import Path
from typing import Iterator

from data.corpora import open_corpus
from data.make_shards import PairParameters, prepare_shards
from data.tokenizer import load_tokenizer

PARAMETERS = PairParameters(
    sequence_length=64, short_sequence_probability=0.1, validation_fraction=0.2, seed=7
)


class StallingCorpus:
    """A corpus on a disk or network that hangs."""

    def __init__(self, path: str, documents: int) -> None:
        self._corpus = open_corpus(path)
        self._documents = documents
        self.name = self._corpus.name

    def fingerprint(self) -> str:
        return self._corpus.fingerprint()

    def documents(self) -> Iterator[str]:
        for number, document in enumerate(self._corpus.documents()):
            while number == self._documents:
                time.sleep(1)
            yield document


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a KeyboardInterrupt, as in a run
    corpus, vocabulary, cache, workers, documents = sys.argv[1:]
    prepare_shards(
        StallingCorpus(corpus, int(documents)),
        load_tokenizer(vocabulary),
        PARAMETERS,
        Path(cache),
        workers=int(workers),
        progress=False,
    )
