"""What `data` raises when a corpus, a vocabulary or a data file is not usable."""

from __future__ import annotations


class DataError(ValueError):
    """A user's mistake about data: says what was asked, what was found and what to do."""
