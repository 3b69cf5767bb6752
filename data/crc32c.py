"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), as TFRecord files use it, fast enough in NumPy."""

from __future__ import annotations

import functools
from typing import Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed
_BLOCK_BYTES = 1024


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """uint32 [_BLOCK_BYTES, 256]: what a byte's value adds to the final remainder, by place.

    A CRC is linear over XOR, so a block's remainder is the XOR of its bytes' contributions, in any order.
    """
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> np.uint32(1)) ^ np.where(last & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    table = np.empty((_BLOCK_BYTES, 256), dtype=np.uint32)
    table[-1] = last
    for place in range(_BLOCK_BYTES - 2, -1, -1):  # one more zero byte follows
        after = table[place + 1]
        table[place] = (after >> np.uint32(8)) ^ last[after & np.uint32(0xFF)]
    return table


def crc32c(data: bytes) -> int:
    """The CRC-32C of the bytes."""
    # The running remainder acts as if XORed into the next four bytes. Zeros in front of a message change
    # nothing while the remainder is zero, so the first block may be filled up from the left.
    content = np.frombuffer(data, dtype=np.uint8)
    if len(content) < 4:
        return _crc32c_of_few(data)
    fill = -len(content) % _BLOCK_BYTES
    filled = np.zeros(fill + len(content), dtype=np.uint8)
    filled[fill:] = content
    filled[fill : fill + 4] ^= 0xFF
    table, places = _table(), np.arange(_BLOCK_BYTES)
    remainder = np.uint32(0)
    for block in np.split(filled, len(filled) // _BLOCK_BYTES):
        block[:4] ^= np.frombuffer(int(remainder).to_bytes(4, "little"), dtype=np.uint8)
        remainder = np.bitwise_xor.reduce(table[places, block])
    return int(remainder) ^ 0xFFFFFFFF


def _crc32c_of_few(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = (remainder >> 8) ^ int(_table()[-1][(remainder ^ byte) & 0xFF])
    return remainder ^ 0xFFFFFFFF


@functools.lru_cache(maxsize=1)
def _pair_table() -> np.ndarray:
    """uint32 [65536]: the remainder of two bytes, the first in the low byte."""
    pairs = np.arange(1 << 16)
    return np.asarray(_table()[-2][pairs & 0xFF] ^ _table()[-1][pairs >> 8])


def crc32c_of_many(messages: Sequence[bytes]) -> np.ndarray:
    """uint32 [messages]: the CRC-32C of each. Side by side they take a fraction of the time of one by one."""
    lengths = np.array([len(message) for message in messages], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() < 4:
        return np.array([crc32c(message) for message in messages], dtype=np.uint32)
    width = int(lengths.max() + lengths.max() % 2)
    filled = np.zeros((len(messages), width), dtype=np.uint8)
    for row, message in zip(filled, messages):
        row[width - len(message) :] = np.frombuffer(message, dtype=np.uint8)
    # As in crc32c: the first four bytes carry the initial remainder, zeros in front change nothing.
    first = (width - lengths)[:, None] + np.arange(4)
    filled[np.arange(len(messages))[:, None], first] ^= 0xFF
    table = _pair_table()
    remainders = np.zeros(len(messages), dtype=np.uint32)
    for pairs in np.ascontiguousarray(filled.view("<u2").T):
        remainders = (remainders >> np.uint32(16)) ^ table[(remainders ^ pairs) & np.uint32(0xFFFF)]
    return remainders ^ np.uint32(0xFFFFFFFF)


def masked(crc: np.ndarray) -> np.ndarray:
    """As stored in TFRecord files: rotated right by 15 bits plus a constant (TensorFlow's record format)."""
    rotated = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return np.asarray(rotated + np.uint32(0xA282EAD8))


def masked_crc32c(data: bytes) -> int:
    return int(masked(np.array([crc32c(data)], dtype=np.uint32))[0])
