"""Which documents are worth a comparison: those that share bands, best first, and few for each of them.

    rows of one range of band keys -> candidate_pairs -> pairs    within each bucket of equal keys
    pairs of some documents        -> most_shared     -> pairs    few for each document, those with most bands in common

What is cut away here is not compared and therefore kept; nothing is ever removed because of a band.
"""

import numpy as np

from data_pipeline.building.tables import place_among_equals

BUCKET_ROWS = 1_000_000
"""Documents of one bucket that are looked at, an equal share from each table; of a template with more pages the rest is
compared by its other bands or kept."""
PARTNERS = 4
"""Documents that one is compared with at most, those with which it has most bands in common."""


def candidate_pairs(rows: np.ndarray) -> np.ndarray:
    """Pairs (document, better one) of places, uint64 [P, 2], sorted, from sorted rows (key, rank, place) [N, 3].

    Each document of a bucket is paired with the two best and with the two just before it, so that all are compared in
    buckets of up to five. Better documents also get a pair with themselves: they are to be there when it is compared.
    A pair is found once for every bucket that holds both.
    """
    place, bucket = place_among_equals(rows[:, 0])
    here = np.arange(len(rows))
    best, second = bucket, bucket + 1
    found = [
        np.stack([here[chosen], better[chosen]])
        for chosen, better in (
            (place >= 1, best),
            (place >= 2, second),
            (place >= 3, here - 1),
            (place >= 4, here - 2),
        )
    ]
    pairs = rows[:, 2][np.concatenate(found, axis=1).T]
    themselves = np.unique(pairs[:, 1])
    pairs = np.concatenate([pairs, np.stack([themselves, themselves], axis=1)])
    return pairs[np.lexsort(pairs.T[::-1])]


def most_shared(pairs: np.ndarray) -> np.ndarray:
    """Of sorted pairs, uint64 [P, 2], each once, at most PARTNERS of each document besides that with itself."""
    is_new = np.concatenate([np.ones(min(len(pairs), 1), bool), (pairs[1:] != pairs[:-1]).any(axis=1)])
    starts = np.flatnonzero(is_new)
    pairs, shared = pairs[starts], np.diff(np.append(starts, len(pairs)))
    with_itself = pairs[:, 0] == pairs[:, 1]
    order = np.lexsort([pairs[:, 1], -shared, ~with_itself, pairs[:, 0]])
    place, start = place_among_equals(pairs[:, 0][order])
    chosen = place < PARTNERS + with_itself[order][start]
    return pairs[np.sort(order[chosen])]
