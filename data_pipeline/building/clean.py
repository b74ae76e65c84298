"""What happens to a document between its file and the tokenizer; nothing here knows of files or tasks.

texts -> clean_batches -> CleanBatch   normalised, filtered, with the 128-bit hash (xxh3) of each
hash -> is_validation                  the held-out share
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from data_pipeline.building.sources import Record, Rejects
from data_pipeline.config import DataConfig

BATCH_BYTES = 8 << 20
BATCH_DOCUMENTS = 1 << 14


@dataclasses.dataclass(frozen=True)
class CleanBatch:
    """Documents that passed, N of them."""

    texts: list[str]
    """Their texts."""
    sizes: np.ndarray
    """UTF-8 bytes of each, int64 [N]."""
    keys: np.ndarray
    """Hash of each, uint64 [2, N]: high and low half."""

    def only(self, chosen: np.ndarray) -> "CleanBatch":
        """Those that are chosen, bool [N]."""
        texts = [self.texts[number] for number in np.flatnonzero(chosen)]
        return CleanBatch(texts, self.sizes[chosen], self.keys[:, chosen])


def clean_batches(documents: Iterable[Record], config: DataConfig, rejects: Rejects) -> Iterator[CleanBatch]:
    """Normalises and filters; yields batches of about BATCH_BYTES, so that memory is bounded by one long document."""
    texts: list[str] = []
    sizes: list[int] = []
    digests = bytearray()
    total = 0
    for number, given in documents:
        text = given if config.unicode_normalization == "none" else _normalize(config.unicode_normalization, given)
        reason = _reject_reason(text, config)
        if reason is None:
            try:
                raw = text.encode()
            except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
                reason = "invalid_utf8"
        if reason is not None:
            rejects.add(reason, number)
            continue
        texts.append(text)
        sizes.append(len(raw))
        digests += xxhash.xxh3_128_digest(raw)
        total += len(raw)
        if total >= BATCH_BYTES or len(texts) >= BATCH_DOCUMENTS:
            yield _batch(texts, sizes, digests)
            texts, sizes, digests, total = [], [], bytearray(), 0
    if texts:
        yield _batch(texts, sizes, digests)


def _normalize(form, text: str) -> str:
    return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def _reject_reason(text: str, config: DataConfig) -> str | None:
    if len(text) < config.min_characters:
        return "too_short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "too_long"
    return None


def _batch(texts: list[str], sizes: list[int], digests: bytearray) -> CleanBatch:
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2).T.astype(np.uint64)
    return CleanBatch(texts, np.array(sizes, dtype=np.int64), keys)


def is_validation(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out, bool [N], from their hashes, uint64 [2, N]: the same text always falls alike."""
    return keys[1] < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
