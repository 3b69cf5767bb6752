"""The command-line flags of a dataclass of keys: one flag per key, in kebab case.

The dataclass (`config.Config`) defines the keys; this module is generic.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import Field
from typing import Any, Callable, Collection, Dict, List, Mapping, NoReturn, Optional, Sequence

from ipu.keys import REQUIRED

from .recipes import choices_of, describe, from_text, item_of, nearest, tuple_from_text


class FlagParser(argparse.ArgumentParser):
    """No abbreviated flags; an unknown flag's error suggests the nearest one instead of listing all."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        # argparse takes -1e-3 for a flag: its pattern of a negative number has no exponent.
        self._negative_number_matcher = re.compile(r"^-(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        lead = "unrecognized arguments: "
        if message.startswith(lead):
            flags = [word.split("=")[0] for word in message[len(lead) :].split() if word.startswith("--")]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            message += "".join(f"\n{flag}: {nearest(flag, known)}" for flag in flags)
        if message.endswith("required: --config") and "--list" in self._option_string_actions:
            message += "\n--list names the recipes; --config demo is a small one"
        self.exit(2, f"{self.prog}: error: {message}\n(--help explains all flags)\n")


class _ListFlag(argparse.Action):
    """A flag with several words, which `read` converts to a value."""

    def __init__(self, read: Callable[[List[str]], Any], **options: Any) -> None:
        super().__init__(**options)
        self._read = read

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        try:
            setattr(namespace, self.dest, self._read(values))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def add_key_flags(
    parser: argparse.ArgumentParser,
    groups: Mapping[str, Sequence[Field[Any]]],
    kinds: Mapping[str, Any],
    *,
    searchable: Collection[str],
    searched: str,
    hidden: Collection[str] = (),
) -> None:
    """Adds a flag for each key to `parser`; flags that aren't given don't appear in its result.

    `groups` maps the title of each group of flags to its keys, `kinds` each key to its type. The keys in
    `searchable` may also have the value `searched`; those in `hidden` aren't in --help.
    """
    for title, keys in groups.items():
        group = parser.add_argument_group(title)
        for entry in keys:
            word = searched if entry.name in searchable else None
            _add_flag(group, entry, kinds[entry.name], word, entry.name in hidden)


def _add_flag(
    group: argparse._ArgumentGroup, entry: Field[Any], kind: Any, word: Optional[str], hidden: bool
) -> None:
    """The flag of one key, which may also have the value `word`; without help if `hidden`."""
    flag = "--" + entry.name.replace("_", "-")
    notes = [describe(kind) + (f" or {word}" if word else "")] + (
        [f"in {entry.metadata['bounds']}"] if entry.metadata["bounds"] else []
    )
    default = "" if entry.default is REQUIRED else f" (default: {_default(entry.default)})"
    text = f"{entry.metadata['doc']} [{', '.join(notes)}]{default}".replace("%", "%%")
    text = argparse.SUPPRESS if hidden else text
    common: Dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
    if kind in (bool, Optional[bool]):
        yes, no = entry.metadata["doc"] + ("" if entry.default is None else default), "the opposite"
        if hidden:
            yes = no = argparse.SUPPRESS
        if word is None:
            group.add_argument(flag, action="store_const", const=True, help=yes, **common)
        else:
            read = _reader(kind, word)
            group.add_argument(flag, nargs="?", const=True, type=read, metavar=word, help=yes, **common)
        group.add_argument(
            flag.replace("--", "--no-", 1), action="store_const", const=False, help=no, **common
        )
    elif item_of(kind):
        group.add_argument(
            flag,
            action=_ListFlag,
            read=_list_reader(kind, word),
            nargs="+",
            metavar="N",
            help=text,
            **common,
        )
    else:
        metavar = "WORD" if choices_of(kind) or kind in (str, Optional[str]) else "N"
        group.add_argument(flag, type=_reader(kind, word), metavar=metavar, help=text, **common)


def _default(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _list_reader(kind: Any, searched: Optional[str]) -> Callable[[List[str]], Any]:
    return lambda words: searched if words == [searched] else tuple_from_text(words, kind)


def _reader(kind: Any, searched: Optional[str]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text == searched:
            return searched
        try:
            return from_text(text, kind)
        except ValueError as error:  # argparse would hide a ValueError's text
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
