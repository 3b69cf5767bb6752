"""The built-in corpus: the parts of the documentation that it keeps; it is the same in every run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from data.corpora import open_corpus, python_docs
from data.corpora.python_docs import documents_of, is_prose, paragraphs, split_sentences
from data.files import DataError

REPOSITORY = Path(__file__).resolve().parents[2]

GOOGLE = """Computes the loss of a batch.

    The loss is a mean over *all* tokens, see
    :func:`~package.module.mean`::

        mean = total / count

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            The scores before the ``softmax``.
        labels (Optional[Tensor]): Classes of the tokens
            in the batch
        reduction: one of "mean" and "sum".

    Example:

        >>> loss(logits, labels)
        tensor(1.5)

    Returns:
        Dict[str, Tensor]: The loss, and what it was computed from.
    """
NUMPY = """
    Return the indices that would sort an array.

    Parameters
    ----------
    a : array_like, optional
        Array to sort, which is not changed.

    Returns
    -------
    index_array : ndarray, int
        Indices that sort `a` along its axis.
    float
        The time that it took in all.

    See Also
    --------
    sort : Describes the algorithms.

    Examples
    --------
    One dimension is the simplest case.

    >>> np.argsort([3, 1, 2])
    array([1, 2, 0])

    .. versionadded:: 1.4
    .. code-block:: python

       import numpy

    ====  =====
    name  value
    ====  =====
    """
README = """# A project

[![badge](https://example.org/b.svg)](https://example.org)
<p align="center"><img src="a.png"></p>

It reads **all** files, see [the manual](https://example.org/manual) for more.

```python
print("no prose in here, and none of it is kept.")
```

| column | other |
|--------|-------|
| a      | b     |

1. First install it with the usual command.
2. Then run it on a `folder`
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOGLE,
            [
                "Computes the loss of a batch.",
                "The loss is a mean over all tokens, see mean.",
                "The scores before the softmax.",
                "Classes of the tokens in the batch.",
                'One of "mean" and "sum".',
                "The loss, and what it was computed from.",
            ],
        ),
        (
            NUMPY,
            [
                "Return the indices that would sort an array.",
                "Array to sort, which is not changed.",
                "Indices that sort a along its axis.",
                "The time that it took in all.",
                "One dimension is the simplest case.",
            ],
        ),
        (
            README,
            [
                "It reads all files, see the manual for more.",
                "First install it with the usual command.",
                "Then run it on a folder.",
            ],
        ),
    ],
    ids=["google", "numpy", "readme"],
)
def test_markup_becomes_plain_paragraphs(text, expected):
    assert list(paragraphs(text)) == expected


def test_sentences_end_at_stops_but_not_behind_abbreviations():
    assert split_sentences('One (e.g. A or B). Two? Is it 3.5 by J. Smith, cf. Sec. 4! "Four." Five') == [
        "One (e.g. A or B).",
        "Two?",
        "Is it 3.5 by J. Smith, cf. Sec. 4!",
        '"Four."',
        "Five",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Return the file's size in bytes.",
        "If a value isn't given, acquire() blocks until the lock is free.",
        '"Slow" calls are those that take longer than 0.5 seconds.',
    ],
)
def test_prose_is_kept(sentence):
    assert is_prose(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "Too short a.",
        "return the name in lower case letters.",
        "Without an end in the usual form",
        "X = numpy.zeros((3, 4)) and y = f(x[0], **kwargs) or z.",
        "Python timeit.py [-n N] [-r N] [-s S] [-p] [-h] the statement.",
        "Übergrößenträger müssen dürfen für das Gerät größer sein in the end.",
        "Foo bar baz qux quux corge grault garply waldo.",
    ],
)
def test_other_lines_are_not(sentence):
    assert not is_prose(sentence)


def sentences_of(documents):
    return [s for document in documents for line in document.split("\n") for s in split_sentences(line)]


@pytest.fixture(scope="module")
def standard_library():
    """The corpus of the standard library alone."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set = set()
    sources = python_docs.standard_library_sources(library)
    return [document for source in sources for document in python_docs.documents_of(source, seen)]


@pytest.mark.slow
def test_the_standard_library_alone_gives_thousands_of_sentences(standard_library):
    assert len(standard_library) > 300
    assert len(sentences_of(standard_library)) > 10_000


def test_documents_read_as_prose(standard_library):
    for document in standard_library:
        lines = document.split("\n")
        assert all(line and line == " ".join(line.split()) for line in lines)
        assert len(sentences_of([document])) >= 3
    text = "\n".join(standard_library)
    for residue in (">>>", "```", "::\n", ":class:", ":func:", "----", "===="):
        assert residue not in text
    words = re.findall(r"\S+", text)
    plain = [word for word in words if re.fullmatch(r"[\"'(]*[A-Za-z]+(?:['-][A-Za-z]+)*[\"'),.;:!?]*", word)]
    assert len(plain) > 0.9 * len(words)


def test_a_docstring_that_comes_again_is_left_out():
    text = "The first one is here. The second is there. Third things are rarer. The last one ends it."
    same = text.replace(" ", "  ") + " 2"  # but for blanks and a number
    seen = set()
    assert len(list(documents_of([text, same], seen))) == 1
    assert list(documents_of([same, text], seen)) == []


PACKAGE_INIT = '''"""A package that must never be imported by whoever reads its documentation."""
raise RuntimeError("imported")
'''
PACKAGE_MODULE = '''"""This module counts what it is given in a dictionary."""

class Counter:
    """The counter keeps a number for each of the keys that it has seen."""

    def add(self, key):
        """Adds one to the number of a key that may be new."""

        def inner():
            """An inner function is documented as well as the others are."""

    async def wait(self):
        """Waits until there is a key to count, if there is none yet."""

if True:
    def conditional():
        """Functions below a condition are found by the same walk."""
'''


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A minimal installation: a standard library of one module, and one package."""
    library, site = tmp_path / "lib", tmp_path / "site"
    for folder in (library / "test", site / "thing" / "tests", site / "thing-1.0.dist-info"):
        folder.mkdir(parents=True)
    (library / "counting.py").write_text(PACKAGE_MODULE)
    (library / "broken.py").write_text("def f(:\n")
    (library / "test" / "test_counting.py").write_text(PACKAGE_MODULE.replace("counter", "tester"))
    (site / "thing" / "__init__.py").write_text(PACKAGE_INIT)
    (site / "thing" / "again.py").write_text(PACKAGE_MODULE)
    (site / "thing" / "new.py").write_text(PACKAGE_MODULE.replace("key", "name").replace("Func", "Reac"))
    (site / "thing" / "tests" / "test_new.py").write_text(PACKAGE_MODULE.replace("key", "test"))
    readme = (
        "A thing is what this package is for.\n\nIt has a first use. It has a second use too. It has a third."
    )
    information = site / "thing-1.0.dist-info"
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n\n{readme}\n")
    files = ["__init__.py", "again.py", "new.py", "removed.py", "tests/test_new.py"]
    (information / "RECORD").write_text("".join(f"thing/{name},,\n" for name in files))
    paths = {"stdlib": str(library), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: paths)
    return tmp_path


def test_library_readme_and_packages_come_in_this_order_without_repetition(installation):
    corpus = open_corpus("python-docs")
    module, readme, new = corpus.documents()
    assert module.split("\n") == [
        "This module counts what it is given in a dictionary.",
        "The counter keeps a number for each of the keys that it has seen.",
        "Adds one to the number of a key that may be new.",
        "An inner function is documented as well as the others are.",
        "Waits until there is a key to count, if there is none yet.",
        "Functions below a condition are found by the same walk.",
    ]
    assert readme.split("\n") == [
        "A thing is what this package is for.",
        "It has a first use. It has a second use too. It has a third.",
    ]
    # Of the third module, what it has in common with the first is left out.
    assert "of a name that may be new" in new and "what it is given" not in new
    assert list(corpus.documents()) == [module, readme, new]


def test_the_size_is_bounded_and_the_library_is_always_whole(installation, monkeypatch):
    monkeypatch.setattr(python_docs, "MAX_CHARACTERS_PER_PACKAGE", 10)
    whole = list(open_corpus("python-docs").documents())
    assert len(whole) == 2  # the package stops after its README
    monkeypatch.setattr(python_docs, "MAX_CHARACTERS", len(whole[0]))
    assert list(open_corpus("python-docs").documents()) == whole[:1]


def test_long_modules_are_several_documents(installation, monkeypatch):
    monkeypatch.setattr(python_docs, "LONG_DOCUMENT_SENTENCES", 2)
    monkeypatch.setattr(python_docs, "MIN_DOCUMENT_SENTENCES", 1)
    documents = list(open_corpus("python-docs").documents())
    assert [len(document.split("\n")) for document in documents[:3]] == [2, 2, 2]


def test_the_fingerprint_changes_with_the_packages(installation):
    first = open_corpus("python-docs").fingerprint()
    assert open_corpus("python-docs").fingerprint() == first
    metadata = installation / "site" / "thing-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert open_corpus("python-docs").fingerprint() != first


def test_an_installation_without_documentation_is_an_error(installation):
    for file in installation.rglob("*.py"):
        file.unlink()
    (installation / "site" / "thing-1.0.dist-info" / "METADATA").write_text("Name: thing\nVersion: 1\n")
    with pytest.raises(DataError, match="has no documentation"):
        open_corpus("python-docs").documents()


def test_it_is_the_same_in_any_process_and_folder(tmp_path):
    program = (
        "import hashlib; from data.corpora import open_corpus, python_docs\n"
        "python_docs.MAX_CHARACTERS = 300_000\n"
        "corpus = open_corpus('python-docs')\n"
        "text = '\\0'.join(corpus.documents())\n"
        "print(len(text), hashlib.sha256(text.encode()).hexdigest(), corpus.fingerprint())"
    )
    (tmp_path / "stray-1.0.dist-info").mkdir()
    (tmp_path / "stray-1.0.dist-info" / "METADATA").write_text("Name: stray\nVersion: 1.0\n")
    outputs = set()
    for hash_seed, folder in (("1", REPOSITORY), ("2", tmp_path)):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", program]
        out = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=120
        )
        outputs.add(out.stdout)
    assert len(outputs) == 1
