"""What a corpus is, and the one form in which every corpus gives its text."""

from __future__ import annotations

from typing import Iterable, Iterator, Protocol

from ..errors import DataError


class Corpus(Protocol):
    """Documents in a fixed order, streamed: never all in memory, unless the corpus is small by design."""

    @property
    def name(self) -> str:
        """How the user named it."""

    def fingerprint(self) -> str:
        """A hex digest that changes when the documents would."""

    def documents(self) -> Iterator[str]:
        """Documents as text, one paragraph or sentence per line, without blank lines, never empty.

        Each call starts again and gives the same documents. Raises DataError when a source can't be read
        or when there is no document at all.
        """


def document_from_lines(lines: Iterable[str]) -> str:
    """Joins the non-blank lines, with runs of whitespace made one blank; "" when all are blank."""
    normalised = (" ".join(line.split()) for line in lines)
    return "\n".join(line for line in normalised if line)


def refuse_empty(documents: Iterator[str], corpus: str, remedy: str) -> Iterator[str]:
    """Passes documents on; DataError at the end if there were none."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise DataError(f"corpus {corpus!r} has no text: everything in it is blank. {remedy}")
