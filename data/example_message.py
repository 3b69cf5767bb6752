"""Reads the int64 features of a serialised tf.train.Example, without a protobuf library.

The messages, from TensorFlow's example.proto and feature.proto (field numbers at the right):
    Example   { Features features = 1 }
    Features  { map<string, Feature> feature = 1 }, so repeated { string key = 1; Feature value = 2 }
    Feature   { BytesList = 1 | FloatList = 2 | Int64List = 3 }
    Int64List { repeated int64 value = 1 }, packed (one run of varints) or not (a field each)
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Tuple, Union

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MessageError(Exception):
    """The bytes are not such a message; says what is wrong."""


def int64_features(message: bytes) -> Dict[str, np.ndarray]:
    """Feature names to int64 [values]; features of other types are left out."""
    features: Dict[str, np.ndarray] = {}
    for container in _submessages(message, 1):
        for entry in _submessages(container, 1):
            fields = dict(_fields(entry))
            key, value = fields.get(1, b""), fields.get(2, b"")
            if not isinstance(key, bytes) or not isinstance(value, bytes):
                raise MessageError("a feature's name or value is not a message")
            for values in _submessages(value, 3):
                features[key.decode("utf-8", "replace")] = _int64_list(values)
    return features


def _int64_list(message: bytes) -> np.ndarray:
    parts: List[np.ndarray] = []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            parts.append(_packed_varints(value))
        elif number == 1:
            parts.append(np.array([value], dtype=np.uint64).view(np.int64))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _packed_varints(data: bytes) -> np.ndarray:
    """Base 128, least significant group first; the high bit of a byte says that another follows."""
    groups = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(groups < 0x80)
    if len(ends) == len(groups):
        return groups.astype(np.int64)
    if groups[-1] >= 0x80:
        raise MessageError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if lengths.max() > 10:
        raise MessageError("a number has more than 64 bits")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    shifted = (groups & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    values: np.ndarray = np.bitwise_or.reduceat(shifted, starts).view(np.int64)
    return values


def _submessages(message: bytes, wanted: int) -> Iterator[bytes]:
    for number, value in _fields(message):
        if number == wanted:
            if not isinstance(value, bytes):
                raise MessageError(f"field {wanted} is not a message")
            yield value


def _fields(message: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    """Field numbers with values: an int for a varint, the bytes for every other type."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise MessageError(f"unknown wire type {kind} at byte {at}")
        if at + length > len(message):
            raise MessageError(f"a field of {length} bytes at byte {at} goes beyond the end")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise MessageError("a number is cut off or has more than 64 bits")
