"""One text and what filters ask of it, each fact computed once and only when it is asked for.

    text -> lines, paragraphs, words -> Words   ids, lengths and kinds of the words, as arrays
         -> character classes                   letters, digits, blanks

A word is a run of letters, digits, marks and underscores, with single apostrophes, points and commas within
(`don't`, `1,000`, `U.S`); two or more points in a row and any other visible character are words of their own, as are
single characters of scripts that put no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese).
"""

import dataclasses
import functools
import itertools
import re
import unicodedata

import numpy as np

WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),
    (0x20000, 0x3FFFF),
)
"""First and last characters of scripts whose words are not set apart."""
BEYOND = "\U00010000-\U0001cfff\U0001d400-\U0001d7ff\U0001e000-\U0001efff"
"""Characters of words above U+FFFF: whole blocks, since a list of them would be looked through for every blank."""
KNOWN_WORDS = 1 << 20
"""Words whose facts a process remembers."""

OTHER, LETTER, DIGIT, BLANK = range(4)
"""Classes of characters."""


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A document that a filter leaves out."""

    reason: str
    """Which of its rules, such as `stop_words`."""


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a text, W of them, in their order."""

    texts: list[str]
    ids: np.ndarray
    """Equal words have equal numbers, int64 [W]."""
    lengths: np.ndarray
    """Characters of each, int64 [W]."""
    proper: np.ndarray
    """Which have a letter, a digit, a mark or an underscore, bool [W]; others are punctuation and symbols."""
    alphabetic: np.ndarray
    """Which have a letter, bool [W]."""


class Document:
    """A text on its way through the filters."""

    def __init__(self, text: str, changes: dict[str, int] | None = None):
        self.text = text
        self.changes = changes or {}
        """What filters have replaced in it, and how often."""

    def with_text(self, text: str, changes: dict[str, int] | None = None) -> "Document":
        """The document with another text; itself where it is the same one."""
        return self if text == self.text and not changes else Document(text, {**self.changes, **(changes or {})})

    @functools.cached_property
    def words(self) -> Words:
        """Its words."""
        texts = word_pattern().findall(self.text)
        if len(_facts) > KNOWN_WORDS:
            _facts.clear()
        facts = np.fromiter(map(_facts.__getitem__, texts), np.int64, len(texts))
        return Words(texts, facts >> 32, facts >> 2 & (1 << 30) - 1, facts & 2 > 0, facts & 1 > 0)

    @functools.cached_property
    def lines(self) -> list[str]:
        """Its lines, ended by whatever Unicode takes for the end of one."""
        return self.text.splitlines()

    @functools.cached_property
    def class_counts(self) -> np.ndarray:
        """How many characters are of each class, int64 [4]."""
        codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return np.bincount(_classes()[codes], minlength=4)


class _Facts(dict[str, int]):
    """Facts of words in one number each: id << 32 | length << 2 | proper << 1 | alphabetic."""

    def __missing__(self, word: str) -> int:
        proper = _is_proper(word[0])
        alphabetic = proper and any(map(str.isalpha, word))
        fact = self[word] = len(self) << 32 | min(len(word), (1 << 30) - 1) << 2 | proper << 1 | alphabetic
        return fact


_facts = _Facts()


def _is_proper(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


@functools.lru_cache(maxsize=1)
def word_pattern() -> re.Pattern[str]:
    """What one word is."""
    alone = [range(first, last + 1) for first, last in WITHOUT_BLANKS]
    codes = [
        code for code in range(0x10000) if _is_proper(chr(code)) and not any(code in characters for characters in alone)
    ]
    inner = _ranges(codes) + BEYOND
    return re.compile(rf"[{inner}]+(?:['\u2019.,][{inner}]+)*|\.\.+|\S")


def _ranges(codes: list[int]) -> str:
    """The inside of a character class of a regular expression."""
    breaks = [0, *(place for place in range(1, len(codes)) if codes[place] != codes[place - 1] + 1), len(codes)]
    ends = ((codes[start], codes[stop - 1]) for start, stop in itertools.pairwise(breaks))
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ends)


@functools.lru_cache(maxsize=1)
def _classes() -> np.ndarray:
    """Class of every character, uint8 [0x110000]."""
    classes = np.full(0x110000, OTHER, np.uint8)
    kinds = {"L": LETTER, "M": LETTER, "N": DIGIT, "Z": BLANK}
    for code in (*range(0x20000), *range(0xE0000, 0xE0200)):
        classes[code] = kinds.get(unicodedata.category(chr(code))[0], OTHER)
    classes[0x20000:0x40000] = LETTER  # Han, and nothing else
    classes[[9, 10, 11, 12, 13, 28, 29, 30, 31, 0x85]] = BLANK
    return classes
