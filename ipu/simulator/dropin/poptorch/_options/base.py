"""Base of all options classes: typed values, chained setters, freezing; options from files and JSON."""

from __future__ import annotations

import copy
import enum
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from .. import enums
from .._logging import logger

if TYPE_CHECKING:
    from typing_extensions import Self


T = TypeVar("T")


class _Declared:
    """Marks an option in a class body until __init_subclass__ collects it."""

    def __init__(self, default: Any) -> None:
        self.default = default


def option(default: T) -> T:
    """Declares an option of an OptionsDict with its default; each object gets a copy of it.

    An option without a default is declared by an annotation only; it doesn't exist until it is set.
    """
    return cast(T, _Declared(default))


class _SealedAfterInit(type):
    """Only constructors may create private attributes, so that a misspelt one is an error."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__call__(*args, **kwargs)
        object.__setattr__(instance, "_sealed", True)
        return instance


class OptionsDict(metaclass=_SealedAfterInit):
    """Named values with the types of their defaults; read as `options.name` or `options("name")`."""

    _defaults: ClassVar[dict[str, Any]] = {}
    _declared: ClassVar[frozenset[str]] = frozenset()
    _values: dict[str, Any]
    _is_frozen: bool

    def __init_subclass__(cls) -> None:
        # Options are values of the objects, not class attributes.
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, _Declared)}
        for name in declared:
            delattr(cls, name)
        cls._defaults = {**cls._defaults, **{name: value.default for name, value in declared.items()}}
        cls._declared |= {name for name in inspect.get_annotations(cls) if not name.startswith("_")}

    def __init__(self, **default_values: Any) -> None:
        object.__setattr__(self, "_values", {**copy.deepcopy(self._defaults), **default_values})
        object.__setattr__(self, "_is_frozen", False)

    if not TYPE_CHECKING:  # hidden from mypy, which finds misspelt options by the declarations

        def __getattr__(self, option: str) -> Any:
            # Called only if ordinary lookup fails; private names aren't options.
            if not option.startswith("_") and option in self._values:
                return self._values[option]
            raise AttributeError(f"Invalid attribute {option}.")

    def __setattr__(self, option: str, value: Any) -> None:
        if not option.startswith("_"):
            self.set(**{option: value})
        elif "_sealed" in self.__dict__ and option not in self.__dict__:
            raise AttributeError(f"Invalid private attribute {option}")
        else:
            object.__setattr__(self, option, value)

    def __call__(self, option: str) -> Any:
        self._assert_exists(option)
        return self._values[option]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """An unfrozen copy."""
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        duplicate.__dict__["_is_frozen"] = False
        return duplicate

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return repr(self._values)

    def _assert_exists(self, option: str) -> None:
        assert option in self._values, f"Invalid option {option}, valid options are {list(self._values)}"

    def _freeze(self) -> None:
        object.__setattr__(self, "_is_frozen", True)

    def checkIsFrozen(self, option: str | None = None) -> None:
        """Raises AttributeError if the options are frozen."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def set(self, **kwargs: Any) -> Self:
        """Sets existing options.

        Raises AssertionError for an unknown option and for a value that isn't an instance of the old value's
        type, AttributeError if the options are frozen.
        """
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            self._assert_exists(option)
            expected = type(self._values[option])
            assert isinstance(value, expected), (
                f"Unexpected type {type(value)} for option {option}. Expected {expected}"
            )
            self._values[option] = value
        return self

    def createOrSet(self, **kwargs: Any) -> Self:
        """As `set`, but creates options that don't exist yet."""
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            if option in self._values:
                self.set(**{option: value})
            else:
                self._values[option] = value
        return self

    def exists(self, option: str) -> bool:
        """Whether the option has a value."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Deletes an option; no-op if it doesn't exist."""
        self.checkIsFrozen(option)
        self._values.pop(option, None)

    def update(self, other: dict[str, Any]) -> dict[str, Any]:
        """Adds the values to a dictionary, enumeration members as plain values.

        Raises AssertionError if they have keys in common.
        """
        shared = set(other) & set(self._values)
        assert not shared, f"Can't merge dictionaries, they have keys in common: {sorted(shared)}"
        for option, value in self._values.items():
            other[option] = value.value if isinstance(value, enum.Enum) else value
        return other

    def toDict(self) -> dict[str, Any]:
        """The values in a new dictionary, enumeration members as plain values."""
        return self.update({})


class ConfigFileError(Exception):
    """A line of an options file has a syntax error."""


def apply_file(options: OptionsDict, filepath: str) -> None:
    """Executes each line of the file as `options.<line>`. Raises ConfigFileError for a syntax error."""
    import poptorch

    path = Path(filepath)
    logger.warning("each line of %s runs as Python: load only files that you trust", filepath)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        call = line.strip()
        if not call or call.startswith("#"):
            continue
        try:
            code = compile(f"options.{call}", str(path), "exec")
        except SyntaxError as error:
            detail = f"SyntaxError at line {number} of {path.name}: {error.msg}\n> {call}"
            raise ConfigFileError(detail) from error
        exec(code, {"options": options, "poptorch": poptorch})


def apply_json(options: OptionsDict, text: str) -> None:
    """Calls the setter named by each dotted key; the elements of a list are separate arguments."""
    for dotted, value in json.loads(text).items():
        setter: Any = options
        for name in dotted.split("."):
            setter = getattr(setter, name)
        arguments = value if isinstance(value, list) else [value]
        setter(*(_enumeration(argument) for argument in arguments))


def _enumeration(value: Any) -> Any:
    """ "OutputMode.All" as the enumeration's member; any other value unchanged."""
    if isinstance(value, str) and value.count(".") == 1:
        class_name, member = value.split(".")
        if class_name in enums.__all__:
            return getattr(enums, class_name)[member]
    return value
