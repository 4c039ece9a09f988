"""A pseudo-random order of any number of rows, computed row by row: nothing is stored or shuffled."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


def permuted(index: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """The images of ``index`` under a permutation of range(size) that ``key`` picks.

    A Feistel network permutes the next power of four; images outside the range are permuted again until they
    fall inside (cycle walking; Black & Rogaway, CT-RSA 2002), at most four times on average.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), "<u8")

    def feistel(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> half, value & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        return (left << half) | right

    image = feistel(index.astype(np.uint64))
    while (outside := image >= size).any():
        image[outside] = feistel(image[outside])
    return image.astype(np.int64)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: every input bit reaches every output bit (Steele et al., OOPSLA 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
