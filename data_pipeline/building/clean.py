"""What happens to a document between its file and the tokenizer; nothing here knows of files or tasks.

texts -> clean_batches -> CleanBatch   normalised, through the filters, with the 128-bit hash (xxh3) of each
hash -> is_validation                  the held-out share
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xxhash

from data_pipeline.building.sources import Record, Rejects
from data_pipeline.config import DataConfig
from data_pipeline.filters.chain import Step, apply_steps
from data_pipeline.filters.document import Document, Dropped

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


def clean_batches(
    documents: Iterable[Record], config: DataConfig, rejects: Rejects, steps: Sequence[Step] = ()
) -> Iterator[CleanBatch]:
    """Normalises and filters; yields batches of about BATCH_BYTES, so that memory is bounded by one long document.

    `steps` are the filters of the config, ready to run.
    """
    texts: list[str] = []
    sizes: list[int] = []
    digests = bytearray()
    total = 0
    for number, given in documents:
        document = cleaned(given, config, steps)
        if isinstance(document, Dropped):
            rejects.add(document.reason, number, given)
            continue
        rejects.changes.update(document.changes)
        raw = document.text.encode()
        texts.append(document.text)
        sizes.append(len(raw))
        digests += xxhash.xxh3_128_digest(raw)
        total += len(raw)
        if total >= BATCH_BYTES or len(texts) >= BATCH_DOCUMENTS:
            yield _batch(texts, sizes, digests)
            texts, sizes, digests, total = [], [], bytearray(), 0
    if texts:
        yield _batch(texts, sizes, digests)


def cleaned(text: str, config: DataConfig, steps: Sequence[Step]) -> Document | Dropped:
    """A document as it is tokenized, or why it is not."""
    document = normalized(text, config)
    if isinstance(document, Dropped) or not steps:
        return document
    filtered = apply_steps(steps, document)
    if filtered is document or isinstance(filtered, Dropped):
        return filtered
    reason = _reject_reason(filtered.text, config) or ("empty" if not filtered.text else None)
    return Dropped(reason) if reason else filtered


def normalized(text: str, config: DataConfig) -> Document | Dropped:
    """A document as filters see it."""
    if config.unicode_normalization != "none":
        text = _normalize(config.unicode_normalization, text)
    reason = _reject_reason(text, config)
    return Dropped(reason) if reason else Document(text)


def _normalize(form, text: str) -> str:
    return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def _reject_reason(text: str, config: DataConfig) -> str | None:
    if len(text) < config.min_characters:
        return "too_short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "too_long"
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "invalid_utf8"
    return None


def _batch(texts: list[str], sizes: list[int], digests: bytearray) -> CleanBatch:
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2).T.astype(np.uint64)
    return CleanBatch(texts, np.array(sizes, dtype=np.int64), keys)


def is_validation(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out, bool [N], from their hashes, uint64 [2, N]: the same text always falls alike."""
    return keys[1] < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
