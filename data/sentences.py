"""Documents to sentences: lines, and long lines cut at sentence ends."""

from __future__ import annotations

import re
from typing import List

# A line up to this long is taken for a sentence: text that is one sentence a line stays as it is.
_LONG_LINE_CHARACTERS = 200

# A sentence ends at . ! or ? (and closing quotes or brackets) before a blank and what can begin a sentence.
# Not after an initial (J. Smith) nor after a few titles and abbreviations that are followed by a capital.
# Chinese and Japanese full stops need no blank.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|No|Lt|cf|vs)\.)(?<!\b(?:Mrs|Rev|Gen|Col|e\.g|i\.e)\.)
        (?P<close>["'”’)\]]*)\s+(?=["'“‘(\[]*[A-Z0-9])
      | (?<=[。！？])""",
    re.VERBOSE,
)


def split_sentences(document: str) -> List[str]:
    """The sentences of a document in order, stripped, none empty."""
    sentences: List[str] = []
    for line in document.split("\n"):
        line = line.strip()
        if len(line) <= _LONG_LINE_CHARACTERS:
            if line:
                sentences.append(line)
        else:
            sentences.extend(_split_line(line))
    return sentences


def _split_line(line: str) -> List[str]:
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(line):
        # Closing quotes stay with the sentence that they end.
        end = match.end("close") if match.group("close") else match.start()
        if end > start:
            sentences.append(line[start:end].strip())
        start = match.end()
    sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]
