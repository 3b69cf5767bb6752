"""What to simulate: the machine (hardware facts from data files, with sources), and the arithmetic.

`targets/NAME.json` describes a machine; `extends` names the file that it adds to (a chip, then the facts that
all chips share). Environment variables choose the target and the precision; one line on stderr announces
them.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Mapping, Sequence

from . import POPTORCH_VERSION, host, variables

TARGET_VARIABLE = variables.TARGET
PRECISION_VARIABLE = variables.PRECISION
DEFAULT_TARGET = "pod16"

_FOLDER = Path(__file__).resolve().parent / "targets"


def _machines() -> list[str]:
    """Names of the machines, GC200 before Bow, smallest first; the other files describe chips."""
    described = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in _FOLDER.glob("*.json")}
    ipus = {name: facts["num_ipus"]["value"] for name, facts in described.items() if "num_ipus" in facts}
    return sorted(ipus, key=lambda name: (name.startswith("bow-"), ipus[name]))


TARGETS = _machines()


class UnknownTarget(ValueError):
    """There is no target of this name."""


@dataclass(frozen=True)
class Fact:
    """A hardware fact with its source; confidence is high, medium or low."""

    name: str
    value: float
    unit: str
    source: str
    confidence: str


@dataclass(frozen=True)
class Target:
    """A machine. Each field is a fact of the same name in the data files, which give unit and source.

    Rates are of one tile, link or M2000 (a machine of four IPUs), as their units in the files say.
    """

    name: str
    num_ipus: int
    ipus_per_m2000: int
    tiles_per_ipu: int
    worker_threads_per_tile: int
    bytes_per_tile: int
    clock_hz: float
    half_macs_per_cycle: int
    half_float_partials_macs_per_cycle: int
    float_macs_per_cycle: int
    load_bytes_per_cycle: int
    exchange_bytes_per_cycle: float
    shared_exchange_bytes_per_cycle: float
    link_bytes_per_s: float
    links_between_ipus: int
    link_efficiency: float
    links_of_a_ring: int
    ipus_per_pod: int
    gateway_link_bytes_per_s: float
    streaming_memory_bytes_per_s: float
    streaming_memory_bytes: float
    host_bytes_per_s: float

    @property
    def bytes_per_ipu(self) -> int:
        return self.tiles_per_ipu * self.bytes_per_tile

    def device_id(self, num_ipus: int, index: int) -> int:
        """The id of the `index`-th device of `num_ipus` IPUs, a power of two.

        Ids are `gc-info`'s: first all devices of one IPU, then those of two, up to the whole machine.
        """
        smaller = range(num_ipus.bit_length() - 1)
        return sum(self.num_ipus >> power for power in smaller) + index

    def device_ipus(self, device_id: int) -> range | None:
        """The IPUs of a device; None if there is no device of this id."""
        size = 1
        while size <= self.num_ipus:
            index = device_id - self.device_id(size, 0)
            if 0 <= index < self.num_ipus // size:
                return range(index * size, (index + 1) * size)
            size *= 2
        return None

    @property
    def peak_flops_per_s(self) -> float:
        """Of one IPU: matrix unit, float16 with float16 partials; a multiply-add counts as two FLOPs."""
        return 2.0 * self.half_macs_per_cycle * self.tiles_per_ipu * self.clock_hz

    @property
    def ring_bytes_per_s(self) -> float:
        """Bandwidth between neighbours in a ring of replicas, in one direction."""
        return self.link_bytes_per_s * self.links_of_a_ring * self.link_efficiency

    @property
    def ipu_link_bytes_per_s(self) -> float:
        """Bandwidth between two IPUs of a pipeline, in one direction."""
        return self.link_bytes_per_s * self.links_between_ipus * self.link_efficiency


# Settings of this process that override the environment variables, by the variable's name.
choices: dict[str, str] = {}


def stand_for(*, target: str | None = None, precision: str | None = None) -> None:
    """Sets this process's target and precision; None leaves a setting unchanged.

    Child processes read the environment variables again.
    """
    for variable, value in ((TARGET_VARIABLE, target), (PRECISION_VARIABLE, precision)):
        if value is not None:
            choices[variable] = value


def _not_known(kind: str, names: Sequence[str], asked: str, where: str) -> str:
    spelled = {name.removeprefix("ipu-"): name for name in names} | {name: name for name in names}
    nearest = spelled[difflib.get_close_matches(asked.lower(), spelled, n=1, cutoff=0.0)[0]]
    known = ", ".join(names)
    return f"{where} is {asked!r}, which is not a known {kind}: the nearest is {nearest!r} (all: {known})"


def target(name: str | None = None) -> Target:
    """A machine by name; by default the one set by `stand_for`, then IPU_SIMULATOR_TARGET, then pod16.

    Raises UnknownTarget.
    """
    name = name or choices.get(TARGET_VARIABLE)
    asked = name or variables.text(TARGET_VARIABLE, DEFAULT_TARGET)
    if asked not in TARGETS:
        raise UnknownTarget(_not_known("target", TARGETS, asked, "target" if name else TARGET_VARIABLE))
    return _load(asked)


def facts(name: str) -> tuple[Fact, ...]:
    """The hardware facts of a target (chip and machine), each with unit, source and confidence."""
    return tuple(Fact(key, **fact) for key, fact in _entries(name).items())


@functools.cache
def _load(name: str) -> Target:
    values: dict[str, Any] = {fact.name: fact.value for fact in facts(name)}
    types = {field.name: field.type for field in fields(Target)}
    counts = {key: int(value) for key, value in values.items() if types[key] == "int"}
    return Target(name=name, **{**values, **counts})


def _entries(name: str) -> dict[str, Mapping[str, Any]]:
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    content.pop("about", None)
    parent = content.pop("extends", None)
    return {**(_entries(parent) if parent else {}), **content}


FLOAT32 = "float32"
FLOAT32_ONEDNN = "float32-onednn"  # with products by oneDNN: other bits, faster on AMD's CPUs
BFLOAT16 = "bfloat16"
IPU_FLOAT16 = "ipu-float16"
IPU_FLOAT16_FAST = "ipu-float16-fast"  # with float32 partials, and PyTorch's kernels where they are fast
FASTEST = "fastest"  # bfloat16 if this CPU has instructions for it, otherwise float32
PRECISIONS = (BFLOAT16, FASTEST, FLOAT32, FLOAT32_ONEDNN, IPU_FLOAT16, IPU_FLOAT16_FAST)


class UnknownPrecision(ValueError):
    """There is no precision of this name."""


def precision() -> str:
    """The one set by `stand_for`, then IPU_SIMULATOR_PRECISION, then float32. Raises UnknownPrecision."""
    chosen = choices.get(PRECISION_VARIABLE)
    name = chosen or variables.text(PRECISION_VARIABLE, FLOAT32)
    if name not in PRECISIONS:
        where = "precision" if chosen else PRECISION_VARIABLE
        raise UnknownPrecision(_not_known("precision", PRECISIONS, name, where))
    if name == FASTEST:
        return FLOAT32 if host.bfloat16_instructions() is None else BFLOAT16
    return name


class BadVariables(ValueError):
    """Environment variables have values that the simulator can't use; each is named."""


def check_variables() -> None:
    """Raises BadVariables, which lists every variable of the simulator with a value that it can't use.

    A variable that `stand_for` overrides isn't read.
    """
    problems = []
    for read in (
        target,
        precision,
        variables.strict,
        variables.merges,
        variables.profile_folder,
        variables.custom_ops_file,
    ):
        try:
            read()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise BadVariables("; ".join(problems))


def announcement() -> str:
    """The line that announces the simulator and its target. Raises UnknownTarget and UnknownPrecision."""
    machine = target()
    if variables.asks_for_ipu_model():
        stands_for = "Poplar's IPU model"
    else:
        stands_for = f"{machine.name} ({machine.num_ipus} IPUs)"
    return (
        f"{host.NAME}: no IPU and no SDK in use; poptorch {POPTORCH_VERSION} simulates "
        f"{stands_for}{arithmetic_note()}"
    )


def arithmetic_note() -> str:
    """The end of an announcement: the arithmetic, unless it is float32, and what it costs on this CPU.

    Raises UnknownPrecision.
    """
    if precision() == IPU_FLOAT16:
        return ", with its float16 numerics"
    if precision() == IPU_FLOAT16_FAST:
        return ", with its float16 numerics but for partial sums, which are float32"
    if precision() == FLOAT32_ONEDNN:
        return ", with float32 products by oneDNN"
    if precision() != BFLOAT16:
        return ""
    instructions = host.bfloat16_instructions()
    if instructions is not None:
        return f", with products in bfloat16 ({instructions})"
    return (
        ", with products in bfloat16, which are slow here: this CPU has neither AMX nor AVX512-BF16, without "
        "which they take 1.3 times as long as in float32 with AVX-512, and up to 70 times without "
        f"({PRECISION_VARIABLE}=float32, or --simulator-precision float32, is faster)"
    )


def announce() -> None:
    """Prints the announcement on stderr, once per run: not if the parent process has printed it."""
    if variables.text(variables.ANNOUNCED):
        return
    set_announced()
    say(announcement())


def set_announced() -> None:
    """Nothing is announced from now on, in this process and those that it starts."""
    variables.set_for_children(variables.ANNOUNCED, "1")


def say(line: str) -> None:
    """Prints a line on stderr, unless it is None or closed (in a service or a notebook)."""
    if sys.stderr is not None:  # print() takes None for stdout
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
