"""Flags of the ids of a vocabulary as a short text, for JSON."""

import base64
import zlib

import numpy as np


def packed_flags(flags: np.ndarray) -> str:
    """Flags, bool [V], as a short text."""
    return base64.b85encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode()


def unpacked_flags(text: str, count: int) -> np.ndarray:
    """What `packed_flags` packed, bool [count]. ValueError when it was something else."""
    num_bytes = -(-count // 8)
    try:
        inflate = zlib.decompressobj()
        packed = inflate.decompress(base64.b85decode(text), num_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"not packed flags ({error})") from None
    if len(packed) != num_bytes:
        raise ValueError(f"not packed flags of {count} ids")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(bool)
