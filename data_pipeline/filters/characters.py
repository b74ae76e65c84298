"""Rules on the length of a text and on what characters it is made of."""

import numpy as np

from data_pipeline.filters.document import BLANK, DIGIT, LETTER, OTHER, Document, Dropped
from data_pipeline.filters.gopher import outside
from data_pipeline.filters.settings import Characters


def characters(document: Document, settings: Characters) -> Document | Dropped:
    """Drops texts that are too short or long, or of too few letters, too many digits, symbols or blanks."""
    reason = (
        _length_reason(len(document.text), settings)
        or _share_reason(document.class_counts, settings)
        or _words_reason(document, settings)
    )
    return Dropped(reason) if reason else document


def _length_reason(length: int, settings: Characters) -> str | None:
    if outside(length, settings.min_length):
        return "short"
    return "long" if outside(length, most=settings.max_length) else None


def _share_reason(counts: np.ndarray, settings: Characters) -> str | None:
    total = int(counts.sum())
    visible = max(total - int(counts[BLANK]), 1)
    if outside(counts[LETTER] / visible, settings.min_letters):
        return "letters"
    if outside(counts[DIGIT] / visible, most=settings.max_digits):
        return "digits"
    if outside(counts[OTHER] / visible, most=settings.max_symbols):
        return "symbols"
    return "blanks" if outside(counts[BLANK] / max(total, 1), most=settings.max_blanks) else None


def _words_reason(document: Document, settings: Characters) -> str | None:
    least, most = settings.min_mean_word_length, settings.max_mean_word_length
    if least is None and most is None:
        return None
    proper = document.words.proper
    mean = int(document.words.lengths[proper].sum()) / max(int(np.count_nonzero(proper)), 1)
    if outside(mean, least):
        return "short_words"
    return "long_words" if outside(mean, most=most) else None
