"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), as TFRecord files use it, fast enough in NumPy."""

from __future__ import annotations

import functools

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


def masked_crc32c(data: bytes) -> int:
    """As stored in TFRecord files: rotated right by 15 bits plus a constant (TensorFlow's record format)."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
