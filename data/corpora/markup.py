"""From documentation markup to plain paragraphs: code, tables, signatures and directives are left out.

Reads reStructuredText, Markdown, and the Google and NumPy docstring styles by the shapes of their lines
alone: documentation in the wild mixes them, so a strict parser of any one would give up on most of it.
"""

from __future__ import annotations

import re
from typing import Iterator, List, Optional

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

    An item without a final stop gets one, and its first letter a capital: it becomes a sentence.
    """
    lines: List[str] = []  # of the paragraph being read
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
                lines.clear()  # what it underlines is a heading
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
        paragraph = paragraph.rstrip(":;") + "."  # what a colon announced was code, and is left out
    return paragraph[:1].upper() + paragraph[1:]
