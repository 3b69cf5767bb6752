"""The embedded default corpus: the documentation that a Python installation carries.

The language reference that pydoc has, docstrings of the standard library's modules, then README texts and
docstrings of the installed packages. Sources are parsed, never imported, so nothing of them runs.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.metadata
import os
import platform
import re
import sysconfig
import warnings
from pathlib import Path, PurePath
from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple

from .corpus import refuse_empty
from .markup import paragraphs
from .prose import is_prose, split_sentences

# Enough for a demonstration model; the standard library comes first and is always complete.
MAX_CHARACTERS = 12_000_000
# One large package shouldn't be most of the corpus.
MAX_CHARACTERS_PER_PACKAGE = 1_000_000
MIN_DOCUMENT_SENTENCES = 4
# A long module is several documents, cut between its classes and functions.
LONG_DOCUMENT_SENTENCES = 60

# Raise it when cleaning or the choice of sources changes, so that prepared data is made anew.
_FINGERPRINT_VERSION = "python-docs-2"
_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "testing", "idlelib", "lib2to3", "pydoc_data")
    + ("site-packages", "dist-packages", "_vendor", "_bundled", "__pycache__")
)
_MAX_SOURCE_BYTES = 1_500_000
# Parsing is most of the time: packages' files with few docstrings for their size are passed over.
_MIN_DOCSTRING_SHARE = 0.1
_TRIPLE_QUOTED = re.compile(rb'""".*?"""', re.DOTALL)
_OWN_PACKAGE = "groupbert-ipu"


class PythonDocsCorpus:
    """A few megabytes of technical English, the same at every call on the same installation.

    A document is a module's docstrings in the order of its source (a long module gives several), a topic of
    the language reference, or a package's README. No docstring comes twice.
    """

    name = "python-docs"

    def __init__(self) -> None:
        # Bounded by MAX_CHARACTERS, and wanted several times: by the vocabulary, the examples.
        self._documents: Optional[List[str]] = None

    def fingerprint(self) -> str:
        """Of the Python version and the names and versions of the installed packages."""
        digest = hashlib.sha256(f"{_FINGERPRINT_VERSION} {platform.python_version()}\n".encode())
        for name, distribution in _distributions():
            digest.update(f"{name} {distribution.version}\n".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        if self._documents is None:
            remedy = "This Python installation carries no documentation; use a text corpus."
            self._documents = list(refuse_empty(_build(), self.name, remedy))
        return iter(self._documents)


def _build() -> Iterator[str]:
    seen: Set[bytes] = set()
    total = 0
    for limit, sources in _packages():
        of_package = 0
        for docstrings in sources:
            for document in _documents_of(docstrings, seen):
                yield document
                of_package += len(document)
            if of_package >= limit or total + of_package >= MAX_CHARACTERS:
                break
        total += of_package
        if total >= MAX_CHARACTERS:
            return


def _documents_of(docstrings: Iterable[str], seen: Set[bytes]) -> Iterator[str]:
    """Documents of one source: a paragraph per line, docstrings that came before (in any source) left out."""
    lines: List[str] = []
    sentences = 0
    for docstring in docstrings:
        if sentences >= LONG_DOCUMENT_SENTENCES:
            yield "\n".join(lines)
            lines, sentences = [], 0
        if not _is_new(docstring, seen):
            continue
        for paragraph in paragraphs(docstring):
            kept = [s for s in split_sentences(paragraph) if is_prose(s)]
            if kept:
                lines.append(" ".join(kept))
                sentences += len(kept)
    if sentences >= MIN_DOCUMENT_SENTENCES:
        yield "\n".join(lines)


def _is_new(docstring: str, seen: Set[bytes]) -> bool:
    # Letters alone count: docstrings that differ in a number or in punctuation are the same boilerplate.
    letters = "".join(filter(str.isalpha, docstring.lower()))
    key = hashlib.blake2b(letters.encode(), digest_size=8).digest()
    if key in seen:
        return False
    seen.add(key)
    return True


def _packages() -> Iterator[Tuple[int, Iterator[List[str]]]]:
    """For each package how many characters it may give, and its sources: each a list of docstrings."""
    library = Path(sysconfig.get_paths()["stdlib"])
    yield MAX_CHARACTERS, _standard_library(library)
    for _, distribution in _distributions():
        yield MAX_CHARACTERS_PER_PACKAGE, _installed(distribution)


def _standard_library(library: Path) -> Iterator[List[str]]:
    yield from ([topic] for topic in _language_topics(library / "pydoc_data" / "topics.py"))
    files: List[Path] = []
    for parent, folders, names in os.walk(library):
        folders[:] = [folder for folder in folders if folder not in _SKIPPED_FOLDERS]
        files.extend(Path(parent, name) for name in names)
    yield from map(_docstrings, sorted(filter(_is_source, files)))


def _installed(distribution: importlib.metadata.Distribution) -> Iterator[List[str]]:
    # Old metadata has the README as a field (marked at the line starts), newer as the message's body.
    headers, _, body = (distribution.read_text("METADATA") or "").partition("\n\n")
    _, _, field = headers.partition("\nDescription:")
    yield [body if body.strip() else field.replace("\n        ", "\n")]
    for file in sorted(distribution.files or (), key=str):
        if _SKIPPED_FOLDERS.isdisjoint(file.parts) and _is_source(file):
            path = Path(str(distribution.locate_file(file)))
            if _is_documented(path):
                yield _docstrings(path)


def _distributions() -> List[Tuple[str, importlib.metadata.Distribution]]:
    """Installed packages by normalised name, from the installation's own folders (not the current one)."""
    folders = sorted({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")})
    found: Dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=folders):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != _OWN_PACKAGE:
            found.setdefault(name, distribution)
    return sorted(found.items(), key=lambda item: item[0])


def _is_source(file: PurePath) -> bool:
    return file.suffix == ".py" and not file.name.startswith("test_") and file.name != "conftest.py"


def _is_documented(file: Path) -> bool:
    try:
        source = file.read_bytes()
    except OSError:
        return False  # in the package's list of files, but removed
    return sum(map(len, _TRIPLE_QUOTED.findall(source))) >= max(1, _MIN_DOCSTRING_SHARE * len(source))


def _language_topics(file: Path) -> List[str]:
    """The texts in pydoc_data/topics.py, which assigns a dict of strings; none where it is missing."""
    tree = _parse(file)
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)] if tree else []
    topics: Dict[str, str] = ast.literal_eval(assignments[0].value) if assignments else {}
    return [topics[name] for name in sorted(topics)]


def _docstrings(file: Path) -> List[str]:
    """Docstrings of the module and of its classes and functions, in the order of the source."""
    tree = _parse(file)
    if tree is None:
        return []
    texts: List[str] = []
    pending: List[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            texts.append(ast.get_docstring(node) or "")
            pending.extend(reversed(node.body))
        elif isinstance(node, (ast.If, ast.Try)):
            pending.extend(reversed(node.body))
    return texts


def _parse(file: Path) -> Optional[ast.Module]:
    """None for what isn't there or isn't today's Python (templates, old syntax)."""
    # A tree is a hundred thousand live objects: looking for garbage among them doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        if file.stat().st_size > _MAX_SOURCE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()
