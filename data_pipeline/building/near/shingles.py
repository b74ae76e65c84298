"""What near copies are compared by: the set of hashes of every five words in a row.

    texts -> tokens      words without regard to case, punctuation and blanks; where a script puts no blanks between
                         words (Chinese, Japanese, Thai ...) every character is one
          -> shingles    SHINGLE_TOKENS of them in a row as one 32-bit hash; a shorter text is one shingle

What a character counts as is decided character by character and not for the document as a whole: two near copies could
fall on different sides of such a line and would have nothing in common. Numpy does all texts of a batch at once: the
hash of a stretch of text is a difference of two sums of a polynomial, so no word is ever cut out.
"""

import functools
import itertools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE_TOKENS = 5
PIECE_CHARACTERS = 1 << 19
"""Texts are hashed together up to so many, and longer ones in pieces; no shingle reaches from one piece to the next."""
_UNSPACED = (
    *[(0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)],  # Thai and Lao, Tibetan, Burmese, Khmer
    *[(0x2E80, 0x312F), (0x31A0, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF)],  # kana and ideographs; Hangul has blanks
    *[(0xFF66, 0xFF9F), (0x1B000, 0x1B16F)],  # kana again
)
_COMMON = 0x20000
"""Code points from here on are rare ideographs."""
_SEPARATOR, _LETTER, _ALONE = 0, 1, 2
_BASE, _BEGIN = 0x9E6C63D0876A9A47, 0x2545F4914F6CDD1D
"""The polynomial's base, and what is added where a token begins, so that borders of words count."""


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the shingles of all texts behind each other, uint32 [S], and where each text begins, int64 [N + 1].

    A shingle that a text has twice is there twice. A text without any letter or digit has none.
    """
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for numbers, pieces in _groups(texts):
        hashes, starts = _shingles_of_pieces(pieces)
        for number, (start, stop) in zip(numbers, itertools.pairwise(starts.tolist()), strict=True):
            found[number].append(hashes[start:stop])
    counts = [sum(map(len, parts)) for parts in found]
    parts = [part for each in found for part in each]
    return np.concatenate([np.zeros(0, np.uint32), *parts]), np.cumsum([0, *counts])


def shingle_sets(texts: Sequence[str]) -> list[np.ndarray]:
    """The set of shingles of each text, ascending, uint32 [S]."""
    hashes, starts = shingles(texts)
    return [_unique(hashes[start:stop]) for start, stop in itertools.pairwise(starts.tolist())]


def _unique(hashes: np.ndarray) -> np.ndarray:
    ordered = np.sort(hashes)
    return ordered[np.concatenate([np.ones(min(len(ordered), 1), bool), ordered[1:] != ordered[:-1]])]


def _groups(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Pieces of texts that are hashed together, and of which text each is.

    Those of ASCII alone stay by themselves: a character of theirs takes a byte, one of the others four.
    """
    waiting: dict[bool, tuple[list[int], list[str], int]] = {}
    for number, text in enumerate(texts):
        plain = text.isascii()
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            numbers, pieces, size = waiting.pop(plain, ([], [], 0))
            if size + len(piece) > PIECE_CHARACTERS:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
            waiting[plain] = [*numbers, number], [*pieces, piece], size + len(piece)
    for numbers, pieces, _ in waiting.values():
        yield numbers, pieces


def _shingles_of_pieces(pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `shingles`, of texts whose characters are few enough to be hashed together."""
    characters = _characters("".join(pieces))
    kinds, values = _tables()
    borders = np.cumsum([0, *map(len, pieces)])
    kind = kinds[characters]
    is_letter = kind != _SEPARATOR
    begins = _begins(kind, borders)
    first_tokens = np.searchsorted(np.flatnonzero(begins), borders)
    letters, begins = characters[is_letter], begins[is_letter]
    token_starts = np.append(np.flatnonzero(begins), len(letters))
    powers, inverses = _powers()
    terms = values[letters] + begins.view(np.uint8) * np.uint64(_BEGIN)
    terms *= powers[: len(letters)]
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    first, last, starts = _windows(first_tokens)
    begin, end = token_starts[first], token_starts[last]
    return _mixed((sums[end] - sums[begin]) * inverses[begin]), starts


def _begins(kind: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Which characters begin a token, bool [C], from their kinds, uint8 [C], and where texts begin, int64 [N + 1]."""
    begins = kind == _ALONE
    begins[1:] |= (kind[1:] == _LETTER) & (kind[:-1] != _LETTER)
    first = borders[borders < len(kind)]
    begins[first] = kind[first] != _SEPARATOR
    return begins


def _windows(first_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First token of each shingle, the one after its last, and where the shingles of each text begin."""
    num_tokens = np.diff(first_tokens)
    num_shingles = np.where(num_tokens > 0, np.maximum(num_tokens - SHINGLE_TOKENS + 1, 1), 0)
    starts = np.concatenate([[0], np.cumsum(num_shingles)])
    first = np.arange(starts[-1]) + np.repeat(first_tokens[:-1] - starts[:-1], num_shingles)
    return first, np.minimum(first + SHINGLE_TOKENS, np.repeat(first_tokens[1:], num_shingles)), starts


def _characters(text: str) -> np.ndarray:
    """Code points, uint8 or uint32 [C]."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), np.uint32(_COMMON))


def _mixed(sums: np.ndarray) -> np.ndarray:
    """The upper half of each number once all its bits have come there, uint32."""
    sums = (sums ^ sums >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return ((sums ^ sums >> np.uint64(29)) * np.uint64(0xC2B2AE3D27D4EB4F) >> np.uint64(32)).astype(np.uint32)


@functools.lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What each code point counts as, uint8, and what it is hashed as, uint64: small letters as capital ones."""
    letters = [unicodedata.category(chr(code))[0] in "LMN" or code == ord("_") for code in range(_COMMON)]
    kinds = np.array([*letters, True], np.uint8)
    folded = np.arange(_COMMON + 1, dtype=np.uint64)
    for code in range(_COMMON):
        lower = chr(code).lower()
        if len(lower) == 1:
            folded[code] = ord(lower)
    for start, stop in _UNSPACED:
        kinds[start : stop + 1] *= np.uint8(_ALONE)
    kinds[_COMMON] = _ALONE
    return kinds, splitmix(folded)


def splitmix(numbers: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood's mixing of 64-bit numbers (OOPSLA 2014)."""
    numbers = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


@functools.lru_cache(maxsize=1)
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """The base to the power of 0, 1, 2 ..., and what undoes multiplying by it, modulo 2^64, uint64."""
    bases = np.array([[_BASE], [pow(_BASE, -1, 2**64)]], np.uint64)
    both = np.cumprod(np.repeat(bases, PIECE_CHARACTERS, axis=1), axis=1)
    return np.insert(both[0], 0, 1), np.insert(both[1], 0, 1)
