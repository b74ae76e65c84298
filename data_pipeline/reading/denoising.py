"""Objectives that hide spans of a text and ask for them: span corruption (T5), suffixes (UL2), blanks (GLM).

    content -> lengths of visible and hidden spans -> inputs: text, a sentinel for every hidden span
                                                   -> targets: the sentinels, each with what it hides

The eos of a document is no content: inputs and targets end with one eos each, whether or not the document ended. Its
bos stays where it is, the first of the inputs and never hidden. All are pure functions of documents and keys.
"""

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from common.mistakes import Mistake
from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.draws import before, below, bits, fork, fractions, places, ranges, segments, shuffled
from data_pipeline.reading.examples import Examples, Expected, Pieces, Ragged, Sizes, content_of, scattered
from data_pipeline.vocabulary import Vocabulary

_VISIBLE, _HIDDEN, _LENGTHS, _ORDER = range(10, 14)
"""Purposes of random numbers."""
LEAST_CONTENT = 2
"""Tokens below which nothing can be hidden while something is shown."""


class Spans(NamedTuple):
    """How rows of content fall into spans, visible and hidden in turn, visible first."""

    counts: np.ndarray
    """Hidden spans of each row, int64 [R]."""
    visible: np.ndarray
    """Tokens before each hidden span, int64 [sum of counts]."""
    hidden: np.ndarray
    """Tokens of each hidden span, int64 [sum of counts]."""
    tail: np.ndarray
    """Tokens after the last hidden span of each row, int64 [R]."""


def noise_counts(content: np.ndarray, noise_density: float, mean_span_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens to hide and spans to hide them in, of texts of `content` tokens: int64 [N] each, 0 below 2 tokens.

    Both are rounded half to even, as in T5 (arXiv 1910.10683, section 3.1.4 and its `random_spans_noise_mask`).
    """
    noise = np.clip(np.rint(content * noise_density), 1, np.maximum(content - 1, 1))
    spans = np.clip(np.rint(noise / mean_span_length), 1, np.minimum(noise, np.maximum(content - noise, 1)))
    enough = content >= LEAST_CONTENT
    return np.where(enough, noise, 0).astype(np.int64), np.where(enough, spans, 0).astype(np.int64)


def t5_lengths(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Raw tokens that become at most `length` inputs, eos included, and how many targets they become: (raw, targets).

    T5's arithmetic: one sentinel per span in both, one eos in both; at density 0.5 the targets may not be longer than
    the inputs.
    """
    raw = np.arange(LEAST_CONTENT, 2 * int(length / (1 - noise_density)) + LEAST_CONTENT)
    noise, spans = noise_counts(raw, noise_density, mean_span_length)
    inputs, targets = raw - noise + spans + 1, noise + spans + 1
    fits = (inputs <= length) & ((targets <= inputs) | (noise_density != 0.5))
    if not fits.any():
        raise Mistake(f"training.sequence_length: {length} tokens hold no corrupted text; make it longer")
    best = int(np.flatnonzero(fits)[-1])
    return int(raw[best]), int(targets[best])


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Hides random spans of fixed number and total length; any such choice is equally likely (T5).

    The first span is visible and the last one hidden, as in T5's code.
    """

    vocabulary: Vocabulary
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    mode: str | None = None
    """Name of a mode whose piece goes before the text, after bos: R, S or X."""
    name: str = "span_corruption"

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Tokens of inputs and targets, of which nothing is left to chance."""
        noise, spans = noise_counts(pieces.content, self.noise_density, self.mean_span_length)
        head = pieces.has_bos + int(self.mode is not None)
        inputs = np.where(spans > 0, head + pieces.content - noise + spans + 1, 0)
        return Sizes(inputs, np.where(spans > 0, noise + spans + 1, 0))

    def expected(self, length: int) -> Expected:
        """Tokens that a piece of `length` becomes."""
        sizes = self.sizes(Pieces.inner(np.array([length])), np.zeros(1, np.uint64))
        return Expected.exactly(int(sizes.inputs[0]), int(sizes.targets[0]))

    def num_sentinels(self, length: int) -> int:
        """Sentinels for the longest piece, of `length` tokens."""
        return int(noise_counts(np.array([length]), self.noise_density, self.mean_span_length)[1][0])

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents; keys uint64 [N]."""
        pieces = Pieces.of(documents, self.vocabulary.bos, self.vocabulary.eos)
        rows, content = content_of(documents, pieces, LEAST_CONTENT)
        noise, counts = noise_counts(content.lengths, self.noise_density, self.mean_span_length)
        # both partitions at once, since numpy's fixed costs are per call
        names = np.concatenate((fork(keys[rows], _VISIBLE), fork(keys[rows], _HIDDEN)))
        items = np.concatenate((content.lengths - noise, noise))
        visible, hidden = segments(names, items, np.concatenate((counts, counts))).reshape(2, -1)
        spans = Spans(counts, visible, hidden, np.zeros(len(rows), np.int64))
        return _hide(content, spans, pieces.has_bos[rows], self.vocabulary, self.mode).among(rows, len(keys))


@dataclasses.dataclass(frozen=True)
class SuffixCorruption:
    """Hides one span at the end of the text, of uniform length with a mean of `noise_density` of the text.

    UL2's S-denoiser (arXiv 2205.05131, section 3.1.2 and table 1: one span, mean length L/4, uniform, at the end).
    """

    vocabulary: Vocabulary
    noise_density: float = 0.25
    mode: str | None = "S"
    name: str = "ul2"

    def _longest(self, content: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(2 * self.noise_density * content), 1, np.maximum(content - 1, 1)).astype(np.int64)

    def _hidden(self, content: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return 1 + below(fork(keys, _HIDDEN), self._longest(content))

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Tokens of inputs and targets with the suffix that these keys draw."""
        hidden = self._hidden(pieces.content, keys)
        enough = pieces.content >= LEAST_CONTENT
        inputs = pieces.has_bos + int(self.mode is not None) + pieces.content - hidden + 2
        return Sizes(np.where(enough, inputs, 0), np.where(enough, hidden + 2, 0))

    def expected(self, length: int) -> Expected:
        """Tokens that a piece of `length` becomes."""
        longest = int(self._longest(np.array([length]))[0])
        hidden, variance = (1 + longest) / 2, (longest**2 - 1) / 12
        whole = Expected.exactly((self.mode is not None) + length - hidden + 2, hidden + 2)
        return Expected(whole.mean, np.array([variance, variance, 0.0]))

    def num_sentinels(self, length: int) -> int:
        """One, whatever the length."""
        return 1

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents; keys uint64 [N]."""
        pieces = Pieces.of(documents, self.vocabulary.bos, self.vocabulary.eos)
        rows, content = content_of(documents, pieces, LEAST_CONTENT)
        hidden = self._hidden(content.lengths, keys[rows])
        ones = np.ones(len(rows), np.int64)
        spans = Spans(ones, content.lengths - hidden, hidden, 0 * ones)
        return _hide(content, spans, pieces.has_bos[rows], self.vocabulary, self.mode).among(rows, len(keys))


@dataclasses.dataclass(frozen=True)
class BlankInfilling:
    """Hides spans of Poisson lengths and asks for them in shuffled order (GLM, arXiv 2103.10360, section 2.1).

    Spans are drawn until `noise_density` of the text is hidden, the last one shortened to fit; a visible token is
    between any two. Lengths are Poisson numbers that are not 0, as in GLM's code. Here each blank has a sentinel of its
    own in text order, where GLM has one [MASK] and tells blanks apart by a second position: in the targets the
    sentinel, which is given and not scored, says whose turn it is, and an eos ends each span.
    """

    vocabulary: Vocabulary
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    """Lambda of the Poisson distribution."""
    name: str = "blank_infilling"

    @cached_property
    def _distribution(self) -> np.ndarray:
        """Cumulative probabilities of lengths 1, 2, ..."""
        lengths = np.arange(1, int(self.mean_span_length + 12 * self.mean_span_length**0.5) + 12)
        logs = lengths * np.log(self.mean_span_length) - np.cumsum(np.log(lengths))
        return np.cumsum(np.exp(logs)) / np.exp(logs).sum()

    def _noise(self, content: np.ndarray) -> np.ndarray:
        noise = np.clip(np.rint(content * self.noise_density), 1, np.maximum(content - 1, 1)).astype(np.int64)
        return np.where(content >= LEAST_CONTENT, noise, 0)

    def _spans(self, content: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hidden tokens and spans of each row, int64 [R], and lengths of the spans, int64 [sum of spans]."""
        noise = self._noise(content)
        drawn = np.searchsorted(self._distribution, fractions(bits(fork(keys, _LENGTHS), noise)), side="right") + 1
        hidden_before = before(drawn)
        hidden_before -= np.repeat(np.concatenate((hidden_before, [0]))[before(noise)], noise)
        needed = hidden_before < np.repeat(noise, noise)
        counts = np.add.reduceat(np.append(needed, False), before(noise)) * (noise > 0) if len(noise) else noise
        counts = np.minimum(counts, np.minimum(content - noise + 1, max(self.vocabulary.num_sentinels, 1)))
        kept = places(noise) < np.repeat(counts, noise)
        lengths = drawn[kept]
        last = np.cumsum(counts)[counts > 0] - 1
        lengths[last] = noise[counts > 0] - hidden_before[kept][last]
        return noise, counts, lengths

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Tokens of inputs and targets with the spans that these keys draw."""
        noise, counts, _ = self._spans(pieces.content, keys)
        inputs = np.where(counts > 0, pieces.has_bos + pieces.content - noise + counts + 1, 0)
        return Sizes(inputs, noise + 2 * counts)

    @property
    def _mean_drawn(self) -> float:
        return self.mean_span_length / -np.expm1(-self.mean_span_length)

    def expected(self, length: int) -> Expected:
        """Tokens that a piece of `length` becomes; the number of spans varies as in a renewal process."""
        noise = int(self._noise(np.array([length]))[0])
        spans = min(noise / self._mean_drawn + 0.5, noise)
        of_lengths = self._mean_drawn * (1 + self.mean_span_length - self._mean_drawn)
        variance = noise * of_lengths / self._mean_drawn**3
        whole = Expected.exactly(length - noise + spans + 1, noise + 2 * spans)
        return Expected(whole.mean, variance * np.array([1.0, 4.0, 9.0]))

    def num_sentinels(self, length: int) -> int:
        """Spans that a piece of `length` tokens hardly ever exceeds: the mean and more than four deviations."""
        noise = int(self._noise(np.array([length]))[0])
        return min(int(np.ceil(noise / self._mean_drawn + 2 * noise**0.5)), noise)

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents; keys uint64 [N]."""
        pieces = Pieces.of(documents, self.vocabulary.bos, self.vocabulary.eos)
        rows, content = content_of(documents, pieces, LEAST_CONTENT)
        keys = keys[rows]
        noise, counts, hidden = self._spans(content.lengths, keys)
        # gaps around the blanks: one token at least between two, none needed at the ends
        gaps = segments(fork(keys, _VISIBLE), content.lengths - noise + 2, counts + 1)
        ends = np.cumsum(counts + 1)
        gaps[ends - counts - 1] -= 1
        gaps[ends - 1] -= 1
        is_tail = np.zeros(len(gaps), bool)
        is_tail[ends - 1] = True
        spans = Spans(counts, gaps[~is_tail], hidden, gaps[is_tail])
        order = shuffled(fork(keys, _ORDER), counts)
        hidden_rows = _hide(content, spans, pieces.has_bos[rows], self.vocabulary, None, order)
        return hidden_rows.among(rows, len(pieces.lengths))


# ---- inputs and targets of a text in which spans are hidden


class _Hidden(NamedTuple):
    """Inputs and targets of the rows that have any."""

    inputs: Ragged
    targets: Ragged
    scored: np.ndarray | None

    def among(self, rows: np.ndarray, num_rows: int) -> Examples:
        """Examples of all `num_rows` pieces; those not in `rows` are empty."""
        inputs = Ragged(self.inputs.tokens, scattered(self.inputs.lengths, rows, num_rows))
        targets = Ragged(self.targets.tokens, scattered(self.targets.lengths, rows, num_rows))
        return Examples(inputs, targets, self.scored)


def _hide(
    content: Ragged,
    spans: Spans,
    has_bos: np.ndarray,
    vocabulary: Vocabulary,
    mode: str | None,
    order: np.ndarray | None = None,
) -> _Hidden:
    """Inputs and targets of R rows; with `order`, [sum of counts], spans come so and each ends with an eos."""
    stride = spans.visible + spans.hidden
    hidden_starts = np.cumsum(stride) - spans.hidden + np.repeat(before(spans.tail), spans.counts)
    hidden_places = ranges(hidden_starts, spans.hidden)
    is_visible = np.ones(len(content.tokens), bool)
    is_visible[hidden_places] = False
    sentinels = vocabulary.sentinels(places(spans.counts))
    inputs = _inputs(content.tokens[is_visible], spans, sentinels, has_bos, vocabulary, mode)
    if order is None:
        return _Hidden(inputs, _targets(content.tokens[hidden_places], spans, sentinels, vocabulary.eos), None)
    hidden_places = ranges(hidden_starts[order], spans.hidden[order])
    spans = spans._replace(hidden=spans.hidden[order])
    targets, scored = _blanks(content.tokens[hidden_places], spans, sentinels[order], vocabulary.eos)
    return _Hidden(inputs, targets, scored)


def _inputs(visible: np.ndarray, spans: Spans, sentinels, has_bos, vocabulary: Vocabulary, mode) -> Ragged:
    head = has_bos.astype(np.int64) + (mode is not None)
    rows = np.arange(len(head))
    ends = np.cumsum(spans.visible + 1)
    lengths = head + np.diff(np.concatenate(([0], ends))[np.append(0, np.cumsum(spans.counts))]) + spans.tail + 1
    tokens = np.empty(lengths.sum(), visible.dtype)
    is_text = np.ones(len(tokens), bool)
    starts = before(lengths)
    special = [
        (ends - 1 + np.repeat(np.cumsum(head) + rows + before(spans.tail), spans.counts), sentinels),
        (starts[has_bos], vocabulary.bos),
        (starts + lengths - 1, vocabulary.eos),
    ]
    if mode is not None:
        special.append((starts + has_bos, vocabulary.special[mode]))
    for where, ids in special:
        tokens[where] = ids
        is_text[where] = False
    tokens[is_text] = visible
    return Ragged(tokens, lengths)


def _targets(hidden: np.ndarray, spans: Spans, sentinels: np.ndarray, eos: int) -> Ragged:
    """Each sentinel with its span, an eos at the end of the row."""
    ends = np.cumsum(spans.hidden + 1)
    lengths = np.diff(np.concatenate(([0], ends))[np.append(0, np.cumsum(spans.counts))]) + 1
    sentinel_places = ends - spans.hidden - 1 + np.repeat(np.arange(len(lengths)), spans.counts)
    eos_places = np.cumsum(lengths) - 1
    return Ragged(_filled(hidden, int(lengths.sum()), sentinel_places, sentinels, eos_places, eos), lengths)


def _blanks(hidden: np.ndarray, spans: Spans, sentinels: np.ndarray, eos: int) -> tuple[Ragged, np.ndarray]:
    """Each sentinel with its span and an eos; and all but the sentinels are scored."""
    ends = np.cumsum(spans.hidden + 2)
    lengths = np.diff(np.concatenate(([0], ends))[np.append(0, np.cumsum(spans.counts))])
    total = int(lengths.sum())
    scored = np.ones(total, bool)
    scored[ends - spans.hidden - 2] = False
    return Ragged(_filled(hidden, total, ends - spans.hidden - 2, sentinels, ends - 1, eos), lengths), scored


def _filled(text: np.ndarray, total: int, sentinel_places, sentinels, eos_places, eos: int) -> np.ndarray:
    tokens = np.empty(total, text.dtype)
    is_text = np.ones(total, bool)
    is_text[sentinel_places] = False
    is_text[eos_places] = False
    tokens[sentinel_places] = sentinels
    tokens[eos_places] = eos
    tokens[is_text] = text
    return tokens
