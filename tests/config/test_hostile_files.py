"""Recipe files that would take all memory, or end in a traceback of a library: refused, in a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

import config
from config import ConfigError

LONGEST_MESSAGE = 4000  # characters


def aliases(levels: int, kind: str) -> str:
    """Nine times as many values or keys a level: 9**levels in all."""
    first, level = {"list": ("[lol]", "[{}]"), "merge": ("{seed: x}", "{{<<: [{}]}}")}[kind]
    lines = [f"_0: &a0 {{v: {first}}}" if kind == "list" else f"_0: &a0 {first}"]
    for n in range(1, levels):
        inner = level.format(", ".join([f"*a{n - 1}"] * 9))
        lines.append(f"_{n}: &a{n} {{v: {inner}}}" if kind == "list" else f"_{n}: &a{n} {inner}")
    last = f"*a{levels - 1}"
    return "\n".join([*lines, f"run: {{seed: {last}}}" if kind == "list" else f"run: {{<<: {last}}}"])


def chain(mappings: int) -> str:
    """Each mapping merges the one before and adds a key: a quadratic number of keys."""
    lines = [f"_{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}" for n in range(1, mappings)]
    return "\n".join(["_0: &a0 {k0: 1}", *lines, f"run: *a{mappings - 1}"])


FILES = {
    "aliases": aliases(40, "list"),
    "merges": aliases(40, "merge"),
    "chain": chain(1000),
    "large": "run: {seed: 1}\n#" + "x" * 2_000_000,
    "keys": "run:\n" + "".join(f"  k{n}: 1\n" for n in range(2000)),
    "long key": "run: {? " + "k" * 500_000 + ": 1}",
    "long value": "run: {seed: " + "v" * 500_000 + "}",
    "brackets": "run: " + "[" * 1000,
    "closed brackets": "run: " + "[" * 1000 + "]" * 1000,
    "braces": "run: " + "{a: " * 1000,
    "no recipe": "run: " + "[" * 50 + "x" * 1000 + "]" * 50,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_explodes_is_refused_in_a_few_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.yml"
    path.write_text(FILES[name])
    with pytest.raises(ConfigError) as raised:
        config.load("run", path=path)
    assert len(str(raised.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    "value",
    [
        *(".inf", "-.inf", ".nan", "1" * 400, "9" * 5000, "1e400", "[.inf, .nan]", "*nowhere", "[[[[1]]]]"),
        *(
            "!!float x",
            "!!int ''",
            "!!int .inf",
            "!!int 0x",
            "!!bool x",
            "!!bool ''",
            "!!null x",
            "!!str [a]",
        ),
        *("!!timestamp 2001-99-99", "!!timestamp 2001-12-14", "!!timestamp x", "!!binary x", "!!set {a, b}"),
        *("!!omap x", "!!omap [a]", "!!pairs [a]", "!!pairs x", "!!seq x", "!!map x", "!!merge x", "!!x y"),
        *("!!python/object/apply:os.system [true]", '"\\0"', "{? [a] : 1}", "&a [*a]", "&a {b: *a}"),
    ],
)
@pytest.mark.parametrize("key", ["seed", "learning_rate", "layers_per_ipu", "optimizer", "wandb", "corpus"])
def test_a_value_that_no_key_takes_is_an_error_of_ours(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "some.yml"
    path.write_text(f"run:\n  {key}: {value}\n")
    with pytest.raises(ConfigError) as raised:
        config.load("run", path=path)
    assert len(str(raised.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize("key", ["corpus", "cache_folder", "executable_cache", "tokenizer"])
def test_a_text_with_a_nul_names_no_file(tmp_path: Path, key: str) -> None:
    path = tmp_path / "some.yml"
    path.write_text(f'run:\n  {key}: "a\\0b"\n')
    with pytest.raises(ConfigError, match=f"some.yml:2: {key}: .* has a NUL character"):
        config.load("run", path=path)


@pytest.mark.parametrize(
    "text", ["!!map x", "run: !!map x", "run: !!seq x", "run: &a {<<: *a}", "run: {<<: [3]}"]
)
def test_a_mapping_that_is_none_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"some\.yml:1"):
        config.load("run", path=path)
