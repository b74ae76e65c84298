"""MinHash sketches of sets of shingles, cut into bands: what two texts have a band in common by is worth a look.

    shingles -> signature      the least of each of some 128 permutations of the hashes (Broder 1997)
             -> band keys      a 64-bit hash of `rows` neighbouring ones; texts with similarity s share one of b bands
                               with probability 1 - (1 - s^rows)^b (Leskovec et al., Mining of Massive Datasets, 3.4)

A shared band is a reason to compare two documents and never one to remove any.
"""

import dataclasses
import functools

import numpy as np

from data_pipeline.building.near.shingles import splitmix

PERMUTATIONS = 128
"""At most so many are drawn."""
LEAST_FOUND = 0.98
"""Share of pairs with the very similarity asked for that share a band; more similar ones do so more often."""


@dataclasses.dataclass(frozen=True)
class Bands:
    """How signatures are cut."""

    num_bands: int
    """Bands."""
    rows: int
    """Permutations in each."""


@functools.lru_cache(maxsize=8)
def bands_for(similarity: float) -> Bands:
    """The longest bands, which give the fewest needless pairs, that find LEAST_FOUND of what is to be found."""
    for rows in range(16, 1, -1):
        num_bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** num_bands >= LEAST_FOUND:
            return Bands(num_bands, rows)
    return Bands(PERMUTATIONS, 1)


def band_keys(hashes: np.ndarray, starts: np.ndarray, bands: Bands) -> np.ndarray:
    """Keys of the bands of texts, uint64 [N, bands], from their shingles, uint32 [S] cut at int64 [N + 1].

    Every text must have a shingle. The number of the band is a part of its key.
    """
    signature = _signatures(hashes, starts[:-1], bands.num_bands * bands.rows).astype(np.uint64)
    signature = signature.reshape(bands.num_bands, bands.rows, -1)
    keys = (
        np.zeros((bands.num_bands, signature.shape[2]), np.uint64)
        + np.arange(bands.num_bands, dtype=np.uint64)[:, None]
    )
    for row in range(bands.rows):
        keys = splitmix(keys ^ signature[:, row])
    return np.ascontiguousarray(keys.T)


def _signatures(hashes: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
    """The least of each permutation for each text, uint32 [count, N]."""
    factors, terms = _permutations()
    result = np.empty((count, len(starts)), np.uint32)
    permuted = np.empty_like(hashes)
    if len(starts):
        for row, factor, term in zip(result, factors, terms, strict=False):
            np.multiply(hashes, factor, out=permuted)
            np.add(permuted, term, out=permuted)
            np.minimum.reduceat(permuted, starts, out=row)
    return result


@functools.lru_cache(maxsize=1)
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and terms of permutations x -> factor x + term of 32-bit numbers, uint32 [PERMUTATIONS] each."""
    drawn = (splitmix(np.arange(2 * PERMUTATIONS, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return drawn[:PERMUTATIONS] | np.uint32(1), drawn[PERMUTATIONS:]
