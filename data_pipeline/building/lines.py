"""Long lines that an earlier document has too: headers, notices, paragraphs that are quoted all over a corpus.

    texts -> line_keys -> copies -> RepeatedLines.taken_out -> texts without them

A line ends with a line feed; blanks around it do not count. Short ones (list items, closing braces, "Read more") are
left alone, and so is what repeats within one document. Every distinct long line of a document has a number, counted
through its task, by which it is known whether it is a copy.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from data_pipeline.building.clean import CleanBatch

LINE_BYTES = 100
"""Lines of at least so many bytes of UTF-8 count as long: some 16 words of English, 33 characters of Chinese."""
LINE_PREFIX = "line-"
"""What the tables of hashes of lines are called."""


def line_keys(texts: Sequence[str]) -> np.ndarray:
    """Hashes of the long lines of texts in order, each once for a text, uint64 [2, N]."""
    digests = b"".join(digest for text in texts for digest in _distinct(_long_lines(text)))
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def _long_lines(text: str) -> Iterator[tuple[str, bytes | None]]:
    """Lines of a text, and the hash (xxh3_128) of each that is long."""
    for line in text.split("\n"):
        stripped = line.strip().encode() if len(line) >= LINE_BYTES // 4 else b""
        yield line, xxhash.xxh3_128_digest(stripped) if len(stripped) >= LINE_BYTES else None


def _distinct(lines: Iterator[tuple[str, bytes | None]]) -> list[bytes]:
    return list(dict.fromkeys(digest for _, digest in lines if digest is not None))


class RepeatedLines:
    """Takes repeated lines out of the documents of a task, which come in their order."""

    def __init__(self, numbers: np.ndarray):
        """numbers: of the repeated ones among the distinct long lines of the task, uint64 [N]."""
        self._repeated = frozenset(numbers.tolist())
        self._number = itertools.count()
        self.counts: Counter[str] = Counter()

    def taken_out(self, batch: CleanBatch, min_characters: int) -> tuple[CleanBatch, int]:
        """Documents without repeated lines, and how many are not among them because hardly anything was left.

        The others keep the hashes that they came with, so that they stay in their split.
        """
        texts = [self._without(text) for text in batch.texts]
        sizes = np.array([len(text.encode()) for text in texts], np.int64)
        left = np.array([len(text) >= max(min_characters, 1) for text in texts], bool)
        return CleanBatch(texts, sizes, batch.keys).only(left), int((~left).sum())

    def _without(self, text: str) -> str:
        lines = list(_long_lines(text))
        gone = {digest for digest in _distinct(iter(lines)) if next(self._number) in self._repeated}
        if not gone:
            return text
        removed = [line for line, digest in lines if digest in gone]
        self.counts["lines"] += len(removed)
        self.counts["characters"] += sum(map(len, removed))
        return "\n".join(line for line, digest in lines if digest not in gone)

    def facts(self) -> dict[str, Any]:
        """How many lines of how many characters were taken out."""
        return {"repeated_lines": dict(self.counts)}
