"""Gopher's quality and repetition rules (Rae et al., arXiv 2112.11446, appendix A.1.1 and table A1).

Both count as datatrove does, given the same words. Table A1 measures what is repeated in characters, of all there are.
"""

import re

import numpy as np

from data_pipeline.filters.document import Document, Dropped, Words
from data_pipeline.filters.settings import GopherQuality, GopherRepetition

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
"""Two of them are in any English text; the paper's list."""
BULLETS, ELLIPSES = ("•", "-"), ("...", "…")
SOME_WORDS = 300
PARAGRAPHS, LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


def outside(value: float, least: float | None = None, most: float | None = None) -> bool:
    """Whether a value is below or above thresholds, of which those that are None are not looked at."""
    return (least is not None and value < least) or (most is not None and value > most)


# ---- quality


def gopher_quality(document: Document, settings: GopherQuality) -> Document | Dropped:
    """Drops what does not look like prose: too short or long, odd words, symbols, bullets, no stop words."""
    reason = _quality_reason(document, settings)
    return Dropped(reason) if reason else document


def _quality_reason(document: Document, settings: GopherQuality) -> str | None:
    words = document.words
    if not words.texts:
        return "few_words"
    return (
        _lengths_reason(words, settings)
        or _symbols_reason(document.text, words, settings)
        or _lines_reason(document, settings)
        or _words_reason(words, settings)
    )


def _lengths_reason(words: Words, settings: GopherQuality) -> str | None:
    num_words = int(np.count_nonzero(words.proper))
    mean_length = int(words.lengths[words.proper].sum()) / max(num_words, 1)
    if outside(num_words, settings.min_words):
        return "few_words"
    if outside(num_words, most=settings.max_words):
        return "many_words"
    if outside(mean_length, settings.min_mean_word_length):
        return "short_words"
    if outside(mean_length, most=settings.max_mean_word_length):
        return "long_words"
    return None


def _symbols_reason(text: str, words: Words, settings: GopherQuality) -> str | None:
    most = settings.max_symbols_per_word
    if outside(text.count("#") / len(words.texts), most=most):
        return "hashes"
    if outside(_count(text, ELLIPSES) / len(words.texts), most=most):
        return "ellipses"
    return None


def _lines_reason(document: Document, settings: GopherQuality) -> str | None:
    lines = document.lines
    # no more lines can begin with a bullet or end with an ellipsis than there are in the text
    most = settings.max_bullet_lines
    if outside(_count(document.text, BULLETS) / len(lines), most=most) and outside(
        sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines), most=most
    ):
        return "bullet_lines"
    most = settings.max_ellipsis_lines
    if outside(_count(document.text, ELLIPSES) / len(lines), most=most) and outside(
        sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines), most=most
    ):
        return "ellipsis_lines"
    return None


def _count(text: str, parts: tuple[str, ...]) -> int:
    return sum(map(text.count, parts))


def _words_reason(words: Words, settings: GopherQuality) -> str | None:
    if outside(np.count_nonzero(words.alphabetic) / len(words.texts), settings.min_alphabetic_words):
        return "alphabetic_words"
    least = settings.min_stop_words
    # in prose a few hundred words are enough to see them
    if outside(len(STOP_WORDS.intersection(words.texts[:SOME_WORDS])), least) and outside(
        len(STOP_WORDS.intersection(words.texts)), least
    ):
        return "stop_words"
    return None


# ---- repetition


def gopher_repetition(document: Document, settings: GopherRepetition) -> Document | Dropped:
    """Drops what says the same again and again: paragraphs, lines, or n words in a row."""
    reason = _repetition_reason(document, settings)
    return Dropped(reason) if reason else document


def _repetition_reason(document: Document, settings: GopherRepetition) -> str | None:
    text = document.text
    for name, parts in (("paragraphs", PARAGRAPHS.split(text.strip())), ("lines", LINES.split(text))):
        share, characters = repeated(parts)
        if outside(share, most=getattr(settings, f"max_repeated_{name}")):
            return f"repeated_{name}"
        if outside(characters / max(len(text), 1), most=getattr(settings, f"max_characters_in_repeated_{name}")):
            return f"characters_in_repeated_{name}"
    return _repeated_words(document.words, len(text), settings)


def repeated(parts: list[str]) -> tuple[float, int]:
    """The share of parts that were there before, and their characters."""
    once = set(parts)
    return (len(parts) - len(once)) / len(parts), sum(map(len, parts)) - sum(map(len, once))


def _repeated_words(words: Words, num_characters: int, settings: GopherRepetition) -> str | None:
    """Follows words in a row as they grow longer: only where n - 1 of them are repeated, n of them can be."""
    tops = {n: getattr(settings, f"max_top_{n}_gram") for n in range(2, 5)}
    repeats = {n: getattr(settings, f"max_repeated_{n}_grams") for n in range(5, 11)}
    ends = np.concatenate(([0], np.cumsum(words.lengths)))
    places, ranks = np.arange(len(words.texts)), words.ids
    for n in (*tops, *repeats):
        if n > len(words.texts):
            return None
        # before n = 3 every place is one to look at, later those whose n - 1 words come again
        going_on = places + n <= len(words.texts)
        places, ranks = places[going_on], ranks[going_on]
        firsts, ranks, counts = _ranked(ranks << 32 | words.ids[places + n - 1])
        if n in tops and outside(_top_share(n, ends, places[firsts], counts, num_characters), most=tops[n]):
            return f"top_{n}_gram"
        again = counts[ranks] > 1
        places, ranks = places[again], ranks[again]
        if n in repeats and outside(_greedy_characters(n, ends, places, ranks) / num_characters, most=repeats[n]):
            return f"repeated_{n}_grams"
    return None


def _ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each different key comes first, the number of each key among the different ones, how often it comes."""
    _, firsts, ranks, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return firsts, ranks, counts


def _top_share(n: int, ends: np.ndarray, firsts: np.ndarray, counts: np.ndarray, num_characters: int) -> float:
    """Characters of the n words in a row that come most often (of several the first), blanks between them included."""
    if len(counts) == 0:
        first, most = 0, 1
    else:
        most = int(counts.max())
        first = int(firsts[counts == most].min()) if most > 1 else 0
    return (int(ends[first + n] - ends[first]) + n - 1) * most / num_characters


def _greedy_characters(n: int, ends: np.ndarray, places: np.ndarray, ranks: np.ndarray) -> int:
    """Characters of n words in a row that were there before, none counted twice, looked for from the beginning."""
    characters, free, seen = 0, 0, set()
    for place, rank in zip(places.tolist(), ranks.tolist(), strict=True):
        if place < free:
            continue
        if rank in seen:
            characters += int(ends[place + n] - ends[place])
            free = place + n
        else:
            seen.add(rank)
    return characters
