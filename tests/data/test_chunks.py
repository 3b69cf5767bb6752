"""Chunks keep whole documents in order, hold out by text, and always have enough to choose from."""

from __future__ import annotations

from typing import List

import pytest

from data.shards import TRAIN, VALIDATION, Chunk, cut_chunks, is_held_out


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
    """Books of a megabyte: several a chunk, for a random next; a corpus of small ones: many chunks."""
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
