"""Drops documents that hold what a model will be evaluated on (Brown et al., arXiv 2005.14165, appendix C).

    files of questions -> words in a row of each question with each of its choices -> Overlaps, saved once
    document -> its words in a row -> found among them, or not

Words are compared in small letters and without punctuation. Of a document only those places are looked at where all
words in a row are words of the questions.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from common.files import read_file, written_aside
from common.mistakes import Mistake
from data_pipeline.filters.document import KNOWN_WORDS, Document, Dropped
from data_pipeline.filters.settings import Decontaminate
from data_pipeline.questions import read_questions

FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no place of a word in a row is lost."""
UNKNOWN, NO_WORD = 0, 1
"""Values of words that are in no question, and of punctuation."""
SKIPPED = str.maketrans("", "", "'\u2019.,_")
"""What may stand within a word and does not count."""


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Words in a row of all questions: as hashes, since words are many and questions are not to be handed round."""

    vocabulary: dict[str, int]
    """Value of every word in them."""
    hashes: dict[int, np.ndarray]
    """Of n words in a row, by n: sorted, uint64."""

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        words = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        with written_aside(path) as file:
            np.savez(file, allow_pickle=False, words=words, **{f"of_{n}": row for n, row in self.hashes.items()})

    @classmethod
    def load(cls, path: Path) -> "Overlaps":
        """What was saved."""
        with np.load(path) as saved:
            hashes = {int(name[3:]): saved[name] for name in saved.files if name != "words"}
            return cls(_vocabulary(saved["words"].tobytes().decode().split("\n")), hashes)


def find_overlaps(settings: Decontaminate) -> Overlaps:
    """Reads the questions. Raises ValueError when a file is not there or no file of questions."""
    vocabulary: dict[str, int] = {}
    found: dict[int, list[np.ndarray]] = {}
    for file in _files(settings):
        for question in read_questions(file):
            for choice in question.choices:
                words = [word for word in map(normal_word, Document(f"{question.query} {choice}").words.texts) if word]
                n = min(len(words), settings.ngram)
                if n < min(settings.min_words, settings.ngram):
                    continue
                new = _vocabulary(words)
                vocabulary.update(new)
                values = np.array([new[word] for word in words], np.uint64)
                rows = len(words) - n + 1
                found.setdefault(n, []).append(_hashes([values[start : start + rows] for start in range(n)]))
    return Overlaps(vocabulary, {n: np.unique(np.concatenate(rows)) for n, rows in sorted(found.items())})


def digest(settings: Decontaminate) -> str:
    """Hash of the files' contents, wherever they lie. Raises ValueError when one is not there."""
    whole = xxhash.xxh3_128()
    for file in _files(settings):
        whole.update(xxhash.xxh3_128_digest(read_file(file)))
    return whole.hexdigest()


def _files(settings: Decontaminate) -> list[Path]:
    for file in settings.files:
        if not Path(file).is_file():
            raise Mistake(
                f"data.filters: decontaminate.files: there is no file {file}; "
                "name files of questions, as 'shardline evaluate --task' takes them"
            )
    return [Path(file) for file in settings.files]


def normal_word(word: str) -> str:
    """A word as it is compared; empty for punctuation."""
    plain = word.lower().translate(SKIPPED)
    return plain if any(map(str.isalnum, plain)) else ""


def _vocabulary(words: Iterable[str]) -> dict[str, int]:
    return {word: xxhash.xxh3_64_intdigest(word.encode()) | 2 for word in words if word}


def _hashes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Hashes of words in a row, from the values of their first words, of their second ones, and so on."""
    result = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        result = result * FACTOR + column
    return result


class _Values(dict[str, int]):
    """Values of words as they stand in texts."""

    def __init__(self, vocabulary: dict[str, int]):
        super().__init__()
        self._vocabulary = vocabulary

    def __missing__(self, word: str) -> int:
        plain = normal_word(word)
        value = self[word] = self._vocabulary.get(plain, UNKNOWN) if plain else NO_WORD
        return value


class Decontamination:
    """The filter, with the overlaps it looks for."""

    def __init__(self, overlaps: Overlaps):
        self._overlaps = overlaps
        self._values = _Values(overlaps.vocabulary)

    def __call__(self, document: Document) -> Document | Dropped:
        """Drops a document with one of the overlaps in it."""
        texts = document.words.texts
        if len(self._values) > KNOWN_WORDS:
            self._values.clear()
        values = np.fromiter(map(self._values.__getitem__, texts), np.uint64, len(texts))
        values = values[values != NO_WORD]
        unknown = np.concatenate(([0], np.cumsum(values == UNKNOWN)))
        for n, hashes in self._overlaps.hashes.items():
            if len(values) < n:
                continue
            places = np.flatnonzero(unknown[n:] == unknown[:-n])
            if len(places) and np.isin(_hashes([values[places + k] for k in range(n)]), hashes).any():
                return Dropped("overlap")
        return document
