"""Parsing of configuration values: recipe files (YAML), command-line text, and type checks.

This module is generic: it has no keys. YAML is parsed with stricter rules, since YAML 1.1 has traps for
recipes: `1e-3` is a string, `010` is eight, `1:30` is ninety, a date isn't a string, and a repeated key
silently overrides the first.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Literal,
    NamedTuple,
    Tuple,
    Union,
    get_args,
    get_origin,
)

import yaml

_FEW = 10  # at most this many names are listed in an error message
MOST_PROBLEMS = 30  # at most this many mistakes are printed
_MOST_BYTES = 1 << 20  # of a recipe file; configs.yml has 0.03 MB
_MOST_MERGED_KEYS = 100_000  # in a whole file


class Problem(NamedTuple):
    """One mistake: its configuration key (empty if there is none), and what to do about it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(ValueError):
    """An invalid configuration; `problems` has every mistake, not just the first."""

    def __init__(self, problems: Union[str, Iterable[Problem]]) -> None:
        self.problems: Tuple[Problem, ...] = (
            (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        )
        texts = [str(problem) for problem in self.problems]
        lines = [text if len(text) <= 1000 else f"{text[:1000]} ..." for text in texts]  # a key may be long
        if len(lines) > 1:
            more = len(lines) - MOST_PROBLEMS
            first = [f"  {line}" for line in lines[:MOST_PROBLEMS]]
            lines = [
                f"{len(lines)} things to correct:",
                *first,
                *([f"  and {more} more"] if more > 0 else []),
            ]
        super().__init__("\n".join(lines))


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error message: the closest of `words`; if none is close, all of few or some of many."""
    known, word = list(words), word[:100]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(known) <= _FEW:
        return f"known are {', '.join(known) or 'none'}"
    some = difflib.get_close_matches(word, known, n=3, cutoff=0.0)
    return f"{len(known)} are known, such as {', '.join(some)}"


def shown(value: object) -> str:
    """A value for an error message: its repr, cut to a line. Aliases can make a repr exponentially long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong = 2, 76, 76

    repr_Recipe = reprlib.Repr.repr_dict  # named after the class, or repr() would get the whole mapping


_SHORT = _Short()


class Recipe(Dict[str, Any]):
    """A mapping of a recipe file, with the line number of each value (also of merged ones)."""

    lines: Dict[str, int]


def _base_loader() -> Any:
    """SafeLoader on libyaml's parser, if PyYAML has it: configs.yml in half the time.

    Nodes are composed in Python: CSafeLoader's composer overflows the C stack on deeply nested brackets.
    """
    if not yaml.__with_libyaml__:
        return yaml.SafeLoader
    from yaml.composer import Composer

    class Loader(Composer, yaml.CSafeLoader):
        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

    return Loader


class _RecipeLoader(_base_loader()):  # type: ignore[misc]  # its base depends on PyYAML's build
    """SafeLoader with YAML 1.2's numbers, no dates, no repeated keys, and line numbers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.merged: Dict[yaml.Node, Dict[str, yaml.Node]] = {}  # each mapping is merged once
        self.merged_keys = 0

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # PyYAML's constructors raise these for a value that its tag doesn't fit, such as `!!int x`.
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = str(node.tag).rpartition(":")[2]
            raise _malformed(f"{shown(node.value)} is no {kind}", node) from error


_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS_AND_DATES = ("int", "float", "timestamp")
_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in _NUMBERS_AND_DATES]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf|\.nan)$"
    ),
    list("-+.0123456789"),
)


def _construct_mapping(loader: _RecipeLoader, node: yaml.MappingNode) -> Recipe:
    if not isinstance(node, yaml.MappingNode):
        raise _malformed(f"expected 'key: value' lines, found {shown(node.value)}", node)
    recipe = Recipe()
    recipe.lines = {}
    for word, value_node in _merged(loader, node, ()).items():
        recipe[word] = loader.construct_object(value_node, deep=True)
        recipe.lines[word] = value_node.start_mark.line + 1
    return recipe


def _merged(
    loader: _RecipeLoader, node: yaml.MappingNode, inside: Tuple[yaml.Node, ...]
) -> Dict[str, yaml.Node]:
    """The values of a mapping by key, including those that `<<` merges.

    As YAML's merge type specifies (https://yaml.org/type/merge.html), the mapping's keys override merged
    ones, and an earlier mapping in the list of `<<` overrides later ones. PyYAML's `flatten_mapping` isn't
    used: its precedence depends on the version. `inside` are the mappings that are already being merged.
    """
    if node in loader.merged:
        return loader.merged[node]
    keys: Dict[str, yaml.Node] = {}
    merged: Dict[str, yaml.Node] = {}
    first_line: Dict[str, int] = {}
    for key_node, value_node in node.value:
        word, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _malformed("a key must be a word", key_node)
        if word in first_line:
            lines = f"on lines {first_line[word]} and {line}"
            raise _malformed(f"the key {word!r} appears twice, {lines}: keep one", key_node)
        first_line[word] = line
        if key_node.tag != _MERGE:
            keys[word] = value_node
            continue
        for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
            if not isinstance(part, yaml.MappingNode):
                raise _malformed(f"<< merges a mapping or a list of mappings, found a {part.id}", part)
            if part is node or part in inside:
                raise _malformed("<< merges a mapping into itself", part)
            for inherited, inherited_node in _merged(loader, part, (*inside, node)).items():
                merged.setdefault(inherited, inherited_node)
    loader.merged_keys += len(merged)
    if loader.merged_keys > _MOST_MERGED_KEYS:
        raise _malformed(f"<< merges more than {_MOST_MERGED_KEYS} keys in all", node)
    loader.merged[node] = {**merged, **keys}
    return loader.merged[node]


def _malformed(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_RecipeLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_recipes(path: Path) -> Dict[str, Recipe]:
    """All mappings of a recipe file by name, with anchors resolved.

    Raises ConfigError, with file and line, if the file is missing, unreadable or malformed.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: it is larger than {_MOST_BYTES} bytes, which no recipe file is")
    try:
        recipes = yaml.load(text, Loader=_RecipeLoader)  # a subclass of SafeLoader
    except RecursionError:
        raise ConfigError(f"{path}: brackets, braces or merges are nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(recipes, Recipe):
        raise ConfigError(
            f"{path}: expected 'name:' with indented 'key: value' lines below, found {text[:40]!r}"
        )
    for name, recipe in recipes.items():
        if not isinstance(recipe, Recipe):
            found = "nothing" if recipe is None else shown(recipe)
            raise ConfigError(
                f"{path}:{recipes.lines[name]}: {name} must hold 'key: value' lines, found {found}"
            )
    return dict(recipes)


def is_optional(kind: Any) -> bool:
    return get_origin(kind) is Union


def inner(kind: Any) -> Any:
    """The type itself, without Optional."""
    return next(part for part in get_args(kind) if part is not type(None)) if is_optional(kind) else kind


def item_of(kind: Any) -> Any:
    """The element type of Tuple[element, ...], or None for every other type."""
    return get_args(inner(kind))[0] if get_origin(inner(kind)) is tuple else None


def choices_of(kind: Any) -> Tuple[str, ...]:
    """The values of a Literal, or () for every other type."""
    return get_args(inner(kind)) if get_origin(inner(kind)) is Literal else ()


_LISTED = {int: "whole numbers", float: "numbers", str: "texts"}


def describe(kind: Any) -> str:
    """A type in words, for help and error messages."""
    if item_of(kind):
        text = f"a list of {_LISTED[item_of(kind)]}"
    elif choices_of(kind):
        text = "one of " + " | ".join(choices_of(kind))
    else:
        text = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[inner(kind)]
    return text + (" or none" if is_optional(kind) else "")


def convert(value: object, kind: Any) -> Any:
    """`value` converted to type `kind`; raises ValueError that says what is wrong with it.

    Strict on purpose: the only conversions are a whole number to a float, a single element to a list, 1.1 to
    the choice "1.1", and the word none, as on the command line, to nothing.
    """
    if is_optional(kind) and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    target, item, choices = inner(kind), item_of(kind), choices_of(kind)
    if item:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise ValueError(f"the list is empty; expected {describe(kind)}")
        return tuple(convert(element, item) for element in values)
    if choices:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value) in choices:
            return str(value)
        raise ValueError(f"{shown(value)} is not {describe(kind)}; {nearest(shown(value), choices)}")
    if target is float and type(value) in (int, float):
        number = _as_float(value)  # type: ignore[arg-type]
        if math.isfinite(number):
            return number
    elif type(value) is target:  # exactly: True isn't a whole number here
        if isinstance(value, str) and "\0" in value:
            raise ValueError(
                f"{shown(value)} has a NUL character, which no name of a file or data set can have"
            )
        return value
    raise ValueError(
        f"expected {describe(kind)}, found {shown(value)} ({_what(value)}){_hint(value, target)}"
    )


def _as_float(value: Union[int, float]) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number may be larger than any float
        return math.inf


def _what(value: object) -> str:
    words = {bool: "true/false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"}
    words.update({list: "a list", tuple: "a list", Recipe: "a mapping"})
    return words.get(type(value), type(value).__name__)


_LOOKS_NUMERIC = re.compile(r"[-+]?[\d_.]+([eE][-+]?\d+)?")
_LOOKS_BOOLEAN = ("true", "false", "on", "off", "yes", "no")


def _hint(value: object, target: type) -> str:
    if isinstance(value, str) and target in (int, float) and _LOOKS_NUMERIC.fullmatch(value):
        return ": write it without quotes and without leading zeros"
    if isinstance(value, str) and target is bool and value.lower() in _LOOKS_BOOLEAN:
        return ": write it without quotes"
    if target is str and isinstance(value, (bool, int, float)):
        return ": put it in quotes to make it text"
    if target is int and isinstance(value, float) and value.is_integer():
        return f": write {round(value)}"
    return ""


def from_text(text: str, kind: Any) -> Any:
    """A command-line word as a value of `kind`; raises ValueError that says what is wrong with it."""
    target = inner(kind)
    if target in (int, float) and not (is_optional(kind) and text.lower() == "none"):
        try:
            return convert(target(text), kind)
        except (ValueError, OverflowError):
            raise ValueError(f"expected {describe(kind)}, found {shown(text)}") from None
    return convert(text, kind)


def tuple_from_text(words: List[str], kind: Any) -> Any:
    """The words after a list flag, separated by blanks, commas or both, as a tuple (None for `none`)."""
    elements = [element for word in words for element in word.split(",") if element]
    if len(elements) == 1 and elements[0].lower() == "none" and is_optional(kind):
        return convert(elements[0], kind)
    return convert([from_text(element, item_of(kind)) for element in elements], kind)
