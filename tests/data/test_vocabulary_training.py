"""Text that has words without end, and signals while a vocabulary is trained."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import normalizers, pre_tokenizers

from data import PretrainingDataOptions, prepare_pretraining_data, vocabulary_training
from data import tokenizer as tokenizer_module
from data.corpora import open_corpus
from data.tokenizer import train_tokenizer
from data.vocabulary_training import LONGEST_WORD_CHARACTERS, learnable

REPOSITORY = Path(__file__).resolve().parents[2]
NORMALIZER = normalizers.BertNormalizer(lowercase=True)
LONG = {
    "dna": "acgt" * 50_000,
    "base64": "abcd/efgh+" * 20_000,
    "thai": "ภาษาไทย" * 20_000,
    "dashes": "-" * 200_000,
}


def words(text):
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(NORMALIZER.normalize_str(text))
    return [word for word, _ in split]


@pytest.mark.parametrize("kind", LONG)
def test_a_word_without_end_leaves_the_vocabulary_as_it_is(tmp_path, documents, kind):
    plain = "\n\n".join([*documents[:8], "acgt abcd/efgh+ ภาษาไทย -"])
    (tmp_path / "plain.txt").write_text(f"{plain}\n\nit begins and ends")
    (tmp_path / "long.txt").write_text(f"{plain}\n\nit begins {LONG[kind]} and ends")
    vocabularies = [
        set(train_tokenizer(open_corpus(str(tmp_path / f"{name}.txt")), 500).vocabulary)
        for name in ("plain", "long")
    ]
    assert vocabularies[0] == vocabularies[1]


def test_only_words_that_cannot_be_encoded_are_left_out():
    chance = random.Random(3)
    for _ in range(200):
        pieces = [
            "x" * chance.choice((1, 5, 99, 100, 101)),
            "é",
            "日本語" * chance.choice((1, 90)),
            "...",
        ]
        text = "".join(
            chance.choice(pieces) + chance.choice(("", "", " ", "\n")) for _ in range(chance.randrange(9))
        )
        expected = [word for word in words(text) if len(word) <= LONGEST_WORD_CHARACTERS]
        assert words(learnable(text, NORMALIZER)) == expected


def test_text_with_short_words_is_unchanged(documents):
    for document in documents[:20]:
        if max(map(len, document.split())) <= LONGEST_WORD_CHARACTERS:
            assert learnable(document, NORMALIZER) == document


PROGRAM = """
import random, signal, sys
from data.tokenizer import train_tokenizer
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
class Corpus:
    name = "random words"
    reads = 0
    def fingerprint(self): return ""
    def documents(self):
        self.reads += 1
        chance = random.Random(1)
        for _ in range(40):
            yield " ".join("".join(chance.choices("abcdefghij", k=90)) for _ in range(250))
        if self.reads == 2:  # the merges come next
            signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    train_tokenizer(Corpus(), 60000)
except Stop:
    print("stopped")
else:
    print("trained")
"""


def test_a_signal_ends_it_during_the_merges():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("stopped\n", 0), done.stderr


SHORT_OF_MEMORY = """
import random, resource, sys
from data.files import DataError
from data.tokenizer import train_tokenizer
class Corpus:
    name = "random words"
    def fingerprint(self): return ""
    def documents(self):
        chance = random.Random(1)
        for _ in range(80):
            yield " ".join("".join(chance.choices("abcdefghij", k=90)) for _ in range(250))
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), -1))
try:
    train_tokenizer(Corpus(), 60000)
except DataError as error:
    print(error)
"""


def test_too_little_memory_is_an_error_of_ours():
    """Where the trainer gets no memory it aborts its process."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(80_000_000)],
        cwd=REPOSITORY,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "the vocabulary's training ran out of memory" in done.stdout, done.stderr
    assert (done.returncode, done.stderr) == (0, "")


class Words:
    """Documents of 50 distinct words each, after one of two frequent words."""

    name = "words"

    def __init__(self, count):
        self.names = ["".join(chr(97 + int(digit)) for digit in str(n)) + "z" for n in range(count)]

    def documents(self):
        yield "the words " * 50
        yield from (" ".join(self.names[at : at + 50]) for at in range(0, len(self.names), 50))


def trained(monkeypatch, corpus, most_words):
    """The vocabulary, what the trainer was given, and the notes."""
    given, notes = [], []

    def learn(documents, *arguments, **options):
        given.extend(documents)
        return vocabulary_training.learn(given, *arguments, **options)

    monkeypatch.setattr(vocabulary_training, "MOST_WORDS", most_words)
    monkeypatch.setattr(tokenizer_module, "learn", learn)
    return train_tokenizer(corpus, 300, notes=notes).vocabulary, given, notes


def test_of_many_distinct_words_the_trainer_gets_a_sample(monkeypatch):
    corpus = Words(30_000)
    vocabulary, given, notes = trained(monkeypatch, corpus, 3000)
    assert 750 < len({word for text in given for word in text.split()}) < 3600  # they are estimated
    assert len(notes) == 1 and "trained on 1/16 of words" in notes[0]
    documents = list(corpus.documents())
    places = [documents.index(text) for text in given]
    assert places[0] == 0 and places == sorted(places)
    quarters = [sum(place * 4 // len(documents) == quarter for place in places) for quarter in range(4)]
    assert min(quarters) > 0.5 * len(places) / 4
    assert trained(monkeypatch, corpus, 3000) == (vocabulary, given, notes)


def test_of_fewer_distinct_words_it_gets_all(monkeypatch):
    corpus = Words(3000)
    vocabulary, given, notes = trained(monkeypatch, corpus, 4000)
    assert (given, notes) == (list(corpus.documents()), [])
    assert trained(monkeypatch, corpus, 500_000) == (vocabulary, given, notes)


def test_the_number_of_words_is_a_close_estimate():
    sample = vocabulary_training.Sample()
    for number, document in enumerate(Words(50_000).documents()):
        sample.add(number, f"({document}), {document}")
    assert sample.halvings == 0 and abs(sample.words - 50_002) < 5000


def test_passages_are_the_whole_text_cut_at_blanks(documents):
    long = " ".join(documents)[:110_000]
    assert len(long) == 110_000
    texts = ["", "a", long.replace(" ", "\n"), "x" * 60_000 + " y"]
    cut = list(vocabulary_training.passages(texts))
    assert "".join(cut) == "".join(texts)
    assert words(" ".join(cut)) == [word for text in texts for word in words(text)]
    assert max(map(len, cut)) <= 60_000


def test_a_run_says_that_its_vocabulary_is_of_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary_training, "MOST_WORDS", 1000)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"{text}.\nit is so." for text in Words(5000).documents()))
    options = PretrainingDataOptions(
        vocab_size=300, corpus=str(file), sequence_length=32, mask_tokens=5, preprocessing_workers=0
    )
    data = prepare_pretraining_data(options, cache_folder=tmp_path / "cache", progress=False)
    assert any(f"of {file}, drawn evenly" in line for line in data.statistics.notes)
