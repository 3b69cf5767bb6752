"""Changes of files that keep most of their structure, so that they reach past a parser's first check."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# Numbers at the edges of types and of Python's own limits, and values of every other type.
NASTY: tuple[Any, ...] = (
    *(0, -1, 1, 2, 255, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63, -(2**63), 2**64, 10**30),
    *(0.0, -0.5, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "-1", "nan", "true", "null", "\0", "\ud800", "é" * 50, "x" * 5000, "../../etc", "[PAD]"),
    *(True, False, None, [], {}, [[]], [None], {"": ""}, [1, "a"], {"a": {"a": {"a": 1}}}),
)
_WORDS = (
    b"[" * 2000,
    b"{" * 2000,
    b"9" * 6000,
    b"\xff" * 8,
    b"\0" * 8,
    b"\r\n",
    b"\xef\xbb\xbf",
    b'"',
    b"NaN",
)


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four changes of bytes: flips, cuts, copies, insertions."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind <= 1 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2 and place < len(changed):
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 3:
            del changed[place : place + rng.choice((1, 8, 100, 10**9))]
        elif kind == 4:
            changed[place:place] = changed[rng.randrange(len(changed) + 1) :][: rng.choice((1, 8, 100))]
        elif kind == 5:
            changed[place:place] = rng.choice(_WORDS)
        else:
            changed[place : place + 8] = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(changed)


def of_tree(rng: random.Random, tree: Any) -> Any:
    """One to three changes of a tree of JSON: other values, keys gone, new or doubled, more nesting."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        tree = _changed(rng, tree)
    return tree


def _changed(rng: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.02:
        return rng.choice(NASTY)
    parent, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind <= 2:
        parent[key] = copy.deepcopy(rng.choice(NASTY))
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        other, of = rng.choice(places)
        parent[key] = copy.deepcopy(other[of])
    elif isinstance(parent, dict):
        parent[rng.choice(("", "x", "vocab", "data", str(rng.choice(NASTY))))] = parent[key]
    else:
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    return tree


def _places(tree: Any) -> Any:
    """(parent, key) of every value in a tree; of a long list only some."""
    if isinstance(tree, dict):
        children = list(tree)[:40]
    elif isinstance(tree, list):
        children = [*range(min(len(tree), 5))]
    else:
        return
    for key in children:
        yield tree, key
        yield from _places(tree[key])


def of_json(rng: random.Random, content: bytes) -> bytes:
    """A change of a JSON file: of its tree, or, a quarter of the time, of its bytes."""
    if rng.random() < 0.25:
        return of_bytes(rng, content)
    changed = json.dumps(of_tree(rng, json.loads(content)))
    return changed.encode("utf-8", "surrogatepass")
