"""The default corpus: documentation in a Python installation.

It consists of the language reference from pydoc, docstrings of the standard library, then README texts and
docstrings of installed packages. Sources are parsed, never imported, so none of their code runs.
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

from tqdm import tqdm

from .text import refuse_empty

# A sentence boundary in a paragraph: a full stop, perhaps with a closing quote or bracket, then whitespace
# and a possible sentence start.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|St|al|Fig|Eq|Sec|No|resp|approx|incl)|\b[A-Z])\.$"
)
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_COMMON_WORDS = frozenset(
    (
        "the a an is are was were be been to of and or in for from with by on at as it its this that these "
        "those if when not no can may will should must has have does do you your we which than then there "
        "all any each"
    ).split()
)
_SYMBOL = re.compile(r"[=<>{}\[\]|\\/^~@#$%&*+_]")
_CODE = re.compile(r"[\w\])]\((?!\))|\w\.\w+\.\w|\w_\w+_\w|\.\.\.|--")


def split_sentences(paragraph: str) -> List[str]:
    """Splits at sentence ends, but not after common abbreviations and initials."""
    sentences: List[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end()].strip()
        if not _ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = end.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def is_prose(sentence: str) -> bool:
    """Whether it reads as an English sentence: complete, mostly words, at least one of them common."""
    if not sentence.lstrip("\"'(")[:1].isupper() or not sentence.rstrip("\"')]").endswith((".", "!", "?")):
        return False
    words = _WORD.findall(sentence)
    if not 4 <= len(words) <= 80 or all(word.lower() not in _COMMON_WORDS for word in words):
        return False
    letters = sum(map(len, words))
    if letters < 0.72 * len(sentence) or letters > 9 * len(words):
        return False
    symbols = len(_SYMBOL.findall(sentence)) + 2 * len(_CODE.findall(sentence))
    foreign = 0 if sentence.isascii() else sum(not character.isascii() for character in sentence)
    return symbols <= len(words) // 5 and foreign <= 2


# Markup is recognised by line patterns alone: reStructuredText, Markdown, and the Google and NumPy docstring
# styles. Real documentation mixes them, so a strict parser for any one would reject most of it.
_FENCE = re.compile(r"```|~~~")
_RULE = re.compile(r"([=\-~^\"'*+#_.:`|])(?:\1|[ +|])+$")  # underlines of headings, table borders
_PROMPT = re.compile(r">>>|\.\.\. |\$ |In \[\d|Out\[\d|%timeit")
_DIRECTIVE = re.compile(r"\.\.(?: |$)")
_PROSE_DIRECTIVE = re.compile(
    r"\.\. (?:note|warning|tip|important|caution|admonition|deprecated|versionadded|versionchanged)::"
)
_SECTION = re.compile(
    r"(?:Args|Arguments|(?:Other )?Parameters|Params|Keyword Arg(?:ument)?s|Attributes|Methods|Inputs?|"
    r"Outputs?|Returns?|Raises?|Yields?|Examples?|Notes?|Tips?|Warns|Warnings?|See Also|References|Usage|"
    r"Shape) ?:{0,2}$"
)
_SECTIONS_OF_CODE = ("Example", "Usage", "References", "See Also", "Shape")
_FIELD = re.compile(r":(?:param|arg|argument|key|keyword|ivar|cvar|var|returns?|raises?)\b[^:]*:\s*")
_OPTION = re.compile(r":[\w -]+:(?!`)")
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\)|#\.)\s+")
_NUMPY_ARGUMENT = re.compile(r"[\w*., ]{1,80} : ")
_ARGUMENT = re.compile(
    r"[`*]{0,2}[\w.*-]{1,40}(?:\[[^:]{0,60}\])?[`*]{0,2}(?:\s*\((?:[^()]|\([^()]*\)){0,200}\))?\s*(?::|--)(?:\s+|$)"
)
_TABLE_OR_HEADING = re.compile(r"[|#+]|\[!\[|!\[|<(?!https?:)")

_INLINE = (
    (re.compile(r"!\[[^\[\]]*\]\([^()]*\)"), ""),  # images
    (re.compile(r"\[([^\[\]]+)\]\([^()\s]*\)"), r"\1"),  # [text](link)
    (re.compile(r"\[([^\[\]]+)\]\[[^\[\]]*\]"), r"\1"),  # [text][reference]
    (re.compile(r"`([^`<>]+?)\s*<[^<>`]*>`_*"), r"\1"),  # `text <link>`_
    (re.compile(r"<?(?:https?|ftp)://[^\s<>]*[^\s<>.,;:)\]]>?"), ""),
    (re.compile(r"</?[a-zA-Z][^<>]{0,200}>"), " "),  # HTML
    (re.compile(r":[\w:+-]+:`[~!]?(?:[^`<]*\.)?([^`.<]*?)(?:\s*<[^`]*>)?`"), r"\1"),  # :class:`~package.Name`
    (re.compile(r"\[[\^#]?\d*\]_?"), ""),  # footnotes
    (re.compile(r"(?<!\w)\[`{0,2}~?([\w.]+)`{0,2}\]_?"), r"\1"),  # [`Name`] cross references
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<!\w)(\*\*|__)(?=\S)([^*_]+)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"(?<![\w*])([*_])(?=[^\s*_])([^*]+?)(?<=[^\s*_])\1(?![\w*])"), r"\2"),
    (re.compile(r"&(?:nbsp|amp|lt|gt|quot);"), " "),
    (re.compile(r"\\(?=[*_`\"'|<>])"), ""),
    (re.compile(r"::(?=\s|$)"), ":"),
    (re.compile(r"\s+(?=[,.;:!?](?:\s|$))"), ""),
    (re.compile(r"\s+"), " "),
)


def paragraphs(text: str) -> Iterator[str]:
    """Yields each paragraph, list item and argument description of a documentation text on one line.

    An item becomes a sentence: its first letter is capitalised, and a missing full stop added.
    """
    lines: List[str] = []  # of the current paragraph
    paragraph_indent = 0
    skip_below: Optional[int] = None  # inside code: skip lines indented more than this
    begins_with_marker = in_fence = in_doctest = False

    for line in [*text.expandtabs().splitlines(), ""]:
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(body):
            in_fence = not in_fence
            body = ""
        elif in_fence:
            continue
        if body and skip_below is not None:
            if indent > skip_below:
                continue
            skip_below = None
        if body and in_doctest:
            continue

        in_doctest = bool(_PROMPT.match(body))
        section = _SECTION.match(body)
        if _RULE.match(body):
            if len(lines) == 1:
                lines.clear()  # the underlined text is a heading
            body = ""
        elif _DIRECTIVE.match(body):
            if not _PROSE_DIRECTIVE.match(body):
                skip_below = indent
            body = ""
        elif section:
            if body.startswith(_SECTIONS_OF_CODE):
                skip_below = indent
            body = ""
        elif in_doctest or _NUMPY_ARGUMENT.match(body) or _TABLE_OR_HEADING.match(body):
            body = ""

        item = _FIELD.match(body) or _OPTION.match(body) or _BULLET.match(body) or _ARGUMENT.match(body)
        if lines and (not body or item or indent < paragraph_indent):
            yield _plain(" ".join(lines))
            lines = []
        is_short = len(lines) == 1 and not begins_with_marker and len(lines[0].split()) <= 4
        if is_short and indent > paragraph_indent:
            lines = []  # NumPy's return type, or a heading, above its indented description
        if not body:
            continue
        if not lines:
            paragraph_indent = indent
            begins_with_marker = bool(item)
        lines.append(_without_markers(body))
        if body.endswith("::"):
            skip_below = indent


def _without_markers(body: str) -> str:
    bullet = _BULLET.match(body)
    if bullet:
        body = body[bullet.end() :]
    head = _FIELD.match(body) or _OPTION.match(body) or _ARGUMENT.match(body)
    return body[head.end() :] if head else body


def _plain(paragraph: str) -> str:
    for pattern, replacement in _INLINE:
        paragraph = pattern.sub(replacement, paragraph)
    paragraph = paragraph.strip()
    if paragraph and (paragraph[-1].isalnum() or paragraph[-1] in ")\"':;"):
        paragraph = paragraph.rstrip(":;") + "."  # the colon introduced code, which is left out
    return paragraph[:1].upper() + paragraph[1:]


# Enough for a demonstration model; the standard library comes first and is always complete.
MAX_CHARACTERS = 12_000_000
# Keeps one large package from dominating the corpus.
MAX_CHARACTERS_PER_PACKAGE = 1_000_000
MIN_DOCUMENT_SENTENCES = 4
# A long module is split into several documents, between its classes and functions.
LONG_DOCUMENT_SENTENCES = 60

# Increase it when cleaning or the choice of sources changes: that invalidates prepared data.
_FINGERPRINT_VERSION = "python-docs-2"
_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "testing", "idlelib", "lib2to3", "pydoc_data")
    + ("site-packages", "dist-packages", "_vendor", "_bundled", "__pycache__")
)
_MAX_SOURCE_BYTES = 1_500_000
# Parsing takes most of the time: files of packages with few docstrings for their size are skipped.
_MIN_DOCSTRING_SHARE = 0.1
_TRIPLE_QUOTED = re.compile(rb'""".*?"""', re.DOTALL)
_OWN_PACKAGE = "groupbert-ipu"


class PythonDocsCorpus:
    """A few megabytes of technical English, deterministic for an installation.

    A document is a module's docstrings in source order (a long module gives several), a topic of the language
    reference, or a package's README. Duplicate docstrings are removed.
    """

    name = "python-docs"
    notes = ()

    def __init__(self, progress: bool = False) -> None:
        self._progress = progress
        # At most MAX_CHARACTERS, and read several times: for the vocabulary and the examples.
        self._documents: Optional[List[str]] = None

    def fingerprint(self) -> str:
        """Of the Python version and the names and versions of the installed packages."""
        digest = hashlib.sha256(f"{_FINGERPRINT_VERSION} {platform.python_version()}\n".encode())
        for name, distribution in _distributions():
            digest.update(f"{name} {distribution.version}\n".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        if self._documents is None:
            remedy = "This Python installation has no documentation; use a text corpus."
            with tqdm(
                desc="reading documentation", unit=" characters", unit_scale=True, disable=not self._progress
            ) as bar:
                self._documents = []
                for document in refuse_empty(_build(), self.name, remedy):
                    self._documents.append(document)
                    bar.update(len(document))
        return iter(self._documents)


def _build() -> Iterator[str]:
    seen: Set[bytes] = set()
    total = 0
    for limit, sources in _packages():
        of_package = 0
        for docstrings in sources:
            for document in documents_of(docstrings, seen):
                yield document
                of_package += len(document)
            if of_package >= limit or total + of_package >= MAX_CHARACTERS:
                break
        total += of_package
        if total >= MAX_CHARACTERS:
            return


def documents_of(docstrings: Iterable[str], seen: Set[bytes]) -> Iterator[str]:
    """Documents of one source: one paragraph per line, without docstrings seen before (in any source)."""
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
    # Compare letters only: docstrings that differ in a number or in punctuation are the same boilerplate.
    letters = "".join(filter(str.isalpha, docstring.lower()))
    key = hashlib.blake2b(letters.encode(), digest_size=8).digest()
    if key in seen:
        return False
    seen.add(key)
    return True


def _packages() -> Iterator[Tuple[int, Iterator[List[str]]]]:
    """For each package its limit in characters, and its sources: each a list of docstrings."""
    library = Path(sysconfig.get_paths()["stdlib"])
    yield MAX_CHARACTERS, standard_library_sources(library)
    for _, distribution in _distributions():
        yield MAX_CHARACTERS_PER_PACKAGE, _installed(distribution)


def standard_library_sources(library: Path) -> Iterator[List[str]]:
    yield from ([topic] for topic in _language_topics(library / "pydoc_data" / "topics.py"))
    files: List[Path] = []
    for parent, folders, names in os.walk(library):
        folders[:] = [folder for folder in folders if folder not in _SKIPPED_FOLDERS]
        files.extend(Path(parent, name) for name in names)
    yield from map(_docstrings, sorted(filter(_is_source, files)))


def _installed(distribution: importlib.metadata.Distribution) -> Iterator[List[str]]:
    # Old metadata has the README as a field (with markers at line starts), newer as the message body.
    headers, _, body = (distribution.read_text("METADATA") or "").partition("\n\n")
    _, _, field = headers.partition("\nDescription:")
    yield [body if body.strip() else field.replace("\n        ", "\n")]
    for file in sorted(distribution.files or (), key=str):
        if _SKIPPED_FOLDERS.isdisjoint(file.parts) and _is_source(file):
            path = Path(str(distribution.locate_file(file)))
            if _is_documented(path):
                yield _docstrings(path)


def _distributions() -> List[Tuple[str, importlib.metadata.Distribution]]:
    """Installed packages by normalised name, from the installation's folders (not the current one)."""
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
        return False  # listed in the package's files, but deleted
    return sum(map(len, _TRIPLE_QUOTED.findall(source))) >= max(1, _MIN_DOCSTRING_SHARE * len(source))


def _language_topics(file: Path) -> List[str]:
    """The texts in pydoc_data/topics.py, which assigns a dict of strings; empty if the file is missing."""
    tree = _parse(file)
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)] if tree else []
    topics: Dict[str, str] = ast.literal_eval(assignments[0].value) if assignments else {}
    return [topics[name] for name in sorted(topics)]


def _docstrings(file: Path) -> List[str]:
    """Docstrings of the module and of its classes and functions, in source order."""
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
    """None if the file is missing or isn't valid in this Python version (templates, old syntax)."""
    # A tree is a hundred thousand live objects: garbage collection would double the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        if file.stat().st_size > _MAX_SOURCE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in third-party strings
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()
