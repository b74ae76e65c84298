"""Objectives of encoders: masked tokens, and pairs of texts (BERT, arXiv 1810.04805, section 3.1 and appendix A.1).

tokens -> which to predict -> 80 % become <mask>, 10 % a random piece of text, 10 % stay -> inputs
                           -> the tokens as they were, scored there alone                -> targets
"""

import dataclasses

import numpy as np

from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.draws import before, below, bits, choose, fork, fractions, places, ranges, row_sums
from data_pipeline.reading.examples import Examples, Expected, Pieces, Ragged, Sizes, content_of, reordered
from data_pipeline.vocabulary import Vocabulary

_CHOICE, _ROUNDING, _KIND, _PIECE, _PAIR, _BORDER, _COIN = range(20, 27)
"""Purposes of random numbers."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the predicted tokens that become <mask> and that become a random piece; the others stay."""


@dataclasses.dataclass(frozen=True)
class MaskedTokens:
    """Which tokens are hidden and how; the common part of both objectives."""

    vocabulary: Vocabulary
    noise_density: float = 0.15
    whole_words: bool = False

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, can_hide: np.ndarray, keys: np.ndarray):
        """Inputs and which of them are predicted, of N rows: tokens [T] to integers [T] and bool [T].

        At least one token of each row that has any to hide; otherwise the density, rounded. `can_hide`, bool [T].
        """
        choice = self._words if self.whole_words else self._tokens
        chosen = choice(tokens, lengths, can_hide, keys)
        counts = row_sums(chosen, lengths)
        kind = fractions(bits(fork(keys, _KIND), counts))
        what = bits(fork(keys, _PIECE), counts)
        inputs = tokens.copy()
        changed = np.flatnonzero(chosen)
        inputs[changed[kind < MASKED]] = self.vocabulary.special["mask"]
        replaced = (kind >= MASKED) & (kind < MASKED + REPLACED)
        ordinary = self.vocabulary.ordinary
        inputs[changed[replaced]] = ordinary[below(what[replaced], len(ordinary))]
        return inputs, chosen

    def _num_hidden(self, available: np.ndarray) -> np.ndarray:
        return np.where(available > 0, np.maximum(np.rint(available * self.noise_density), 1), 0).astype(np.int64)

    def _tokens(self, tokens, lengths, can_hide, keys) -> np.ndarray:
        available = row_sums(can_hide, lengths)
        chosen = np.zeros(len(tokens), bool)
        chosen[can_hide] = choose(fork(keys, _CHOICE), available, self._num_hidden(available))
        return chosen

    def _words(self, tokens, lengths, can_hide, keys) -> np.ndarray:
        """Words in random order until the density is reached, the first one always.

        Whether the last one, which goes beyond it, is taken is drawn so that the density is met on average.
        """
        at_start = np.zeros(len(tokens), bool)
        at_start[before(lengths)[lengths > 0]] = True
        is_border = ~can_hide | self.vocabulary.ends_word[tokens]
        after_border = np.append(True, is_border[:-1])[: len(tokens)]
        begins = can_hide & (self.vocabulary.starts_word[tokens] | at_start | after_border)
        word_of_token = np.cumsum(begins)[can_hide] - 1
        sizes = np.bincount(word_of_token, minlength=int(begins.sum()))
        num_words = row_sums(begins, lengths)
        row = np.repeat(np.arange(len(lengths)), num_words)
        order = np.lexsort((bits(fork(keys, _CHOICE), num_words), row))
        hidden_before = before(sizes[order])
        hidden_before -= np.repeat(np.append(hidden_before, 0)[before(num_words)], num_words)
        left = self._num_hidden(row_sums(can_hide, lengths))[row] - hidden_before
        taken = left > fractions(bits(fork(keys, _ROUNDING), num_words)) * sizes[order]
        taken &= left > 0
        taken |= places(num_words) == 0
        is_hidden = np.zeros(len(sizes), bool)
        is_hidden[order[taken]] = True
        chosen = np.zeros(len(tokens), bool)
        chosen[can_hide] = is_hidden[word_of_token]
        return chosen


@dataclasses.dataclass(frozen=True)
class MaskedLm:
    """Predicts masked tokens; the piece is read as it is, with its bos and eos, which are never masked."""

    vocabulary: Vocabulary
    noise_density: float = 0.15
    whole_words: bool = False
    name: str = "masked_lm"

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """The piece's own length, 0 where it has no content."""
        lengths = np.where(pieces.content > 0, pieces.lengths, 0)
        return Sizes(lengths, lengths)

    def expected(self, length: int) -> Expected:
        """The length itself."""
        return Expected.exactly(length, length)

    def num_sentinels(self, length: int) -> int:
        """None."""
        return 0

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents, targets aligned with inputs; keys uint64 [N]."""
        pieces = Pieces.of(documents, self.vocabulary.bos, self.vocabulary.eos)
        lengths = np.where(pieces.content > 0, pieces.lengths, 0)
        tokens = documents.tokens[np.repeat(lengths > 0, documents.lengths)]
        can_hide = np.ones(len(tokens), bool)
        starts, filled = before(lengths), lengths > 0
        can_hide[starts[filled & pieces.has_bos]] = False
        can_hide[(starts + lengths)[filled & pieces.has_eos] - 1] = False
        hide = MaskedTokens(self.vocabulary, self.noise_density, self.whole_words)
        inputs, chosen = hide(tokens, lengths, can_hide, keys)
        return Examples(Ragged(inputs, lengths), Ragged(tokens, lengths), chosen)


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Masked tokens of two texts, and whether the second follows the first: [CLS] A [SEP] B [SEP].

    A document's content is divided into pairs of neighbouring texts, each at most half of `max_pair_length`. Half of
    the pairs of a sample then exchange their B with one another, so that no text is lost or seen twice; the partner is
    of another document unless more than half of the sample's pairs are of the same one. The label at [CLS] is
    <extra_id_0> where B follows A and <extra_id_1> where it does not; a pair alone in its sample stays as it is.
    Models here have no segment embeddings: [SEP] alone tells A from B.
    """

    vocabulary: Vocabulary
    noise_density: float = 0.15
    whole_words: bool = False
    max_pair_length: int = 128
    name: str = "sentence_pairs"

    def _num_pairs(self, content: np.ndarray) -> np.ndarray:
        return np.where(content >= 2, -(-content // (2 * self._half)), 0)

    @property
    def _half(self) -> int:
        return (self.max_pair_length - 3) // 2

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Content and three special tokens for each pair."""
        pairs = self._num_pairs(pieces.content)
        lengths = np.where(pairs > 0, pieces.content + 3 * pairs, 0)
        return Sizes(lengths, lengths)

    def expected(self, length: int) -> Expected:
        """Tokens that a piece of `length` becomes."""
        total = int(self.sizes(Pieces.inner(np.array([length])), np.zeros(1, np.uint64)).inputs[0])
        return Expected.exactly(total, total)

    def num_sentinels(self, length: int) -> int:
        """Two: yes and no."""
        return 2

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents, any number of each; keys uint64 [N]."""
        pieces = Pieces.of(documents, self.vocabulary.bos, self.vocabulary.eos)
        rows, content = content_of(documents, pieces, 2)
        first, second, piece, pair_keys = self._divide(content, rows, keys[rows])
        sample = np.repeat(np.arange(len(documents.num_pieces)), documents.num_pieces)[piece]
        source = _partners(np.bincount(sample, minlength=len(documents.num_pieces)), pair_keys)
        tokens, lengths, can_hide = self._joined(first, reordered(second, source))
        hide = MaskedTokens(self.vocabulary, self.noise_density, self.whole_words)
        inputs, chosen = hide(tokens, lengths, can_hide, pair_keys)
        starts = before(lengths)
        targets = tokens.copy()
        targets[starts] = self.vocabulary.sentinels(source != np.arange(len(source)))
        chosen[starts] = True
        # a piece too short for a pair keeps an empty example, so that it is counted
        missing = np.setdiff1d(np.arange(len(pieces.lengths)), rows)
        order = np.argsort(np.concatenate((piece, missing)), kind="stable")
        lengths = np.concatenate((lengths, np.zeros(len(missing), np.int64)))[order]
        made_of = np.concatenate((piece, missing))[order]
        return Examples(Ragged(inputs, lengths), Ragged(targets, lengths), chosen, made_of)

    def _divide(self, content: Ragged, rows: np.ndarray, keys: np.ndarray):
        """A and B of each pair, Ragged with P rows each, the number of its piece, and a key of its own."""
        pairs = self._num_pairs(content.lengths)
        number, total = places(pairs), np.repeat(content.lengths, pairs)
        per_row = np.repeat(pairs, pairs)
        begin, end = total * number // per_row, total * (number + 1) // per_row
        pair_keys = bits(fork(keys, _PAIR), pairs)
        # both halves hold at least one token and at most half of the longest pair
        least = np.maximum(end - begin - self._half, 1)
        most = np.minimum(end - begin - 1, self._half)
        cut = least + below(fork(pair_keys, _BORDER), most - least + 1)
        starts = np.repeat(before(content.lengths), pairs) + begin
        first = Ragged(content.tokens[ranges(starts, cut)], cut)
        second = Ragged(content.tokens[ranges(starts + cut, end - begin - cut)], end - begin - cut)
        return first, second, np.repeat(rows, pairs), pair_keys

    def _joined(self, first: Ragged, second: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[CLS] A [SEP] B [SEP] of each row: tokens, lengths, and where there is text."""
        lengths = first.lengths + second.lengths + 3
        tokens = np.empty(lengths.sum(), first.tokens.dtype)
        is_text = np.ones(len(tokens), bool)
        starts = before(lengths)
        middle, end = starts + 1 + first.lengths, starts + lengths - 1
        for where, name in ((starts, "cls"), (middle, "sep"), (end, "sep")):
            tokens[where] = self.vocabulary.special[name]
            is_text[where] = False
        tokens[ranges(starts + 1, first.lengths)] = first.tokens
        tokens[ranges(middle + 1, second.lengths)] = second.tokens
        return tokens, lengths, is_text


def _partners(num_pairs: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whose B each pair gets: int64 [sum of num_pairs], its own number where it keeps its own.

    Pair r of a sample of n is grouped with pair r + n // 2, an odd one left over with the first two; a coin decides
    whether the B of a group go round.
    """
    count = np.repeat(num_pairs, num_pairs)
    place = places(num_pairs)
    half = np.maximum(count // 2, 1)
    base = np.arange(len(place)) - place
    leader = base + place % half
    following = np.where(place + half < count, place + half, place % half)
    coin = (fork(keys, _COIN)[leader] >> np.uint64(63)).astype(bool)
    return np.where(coin & (count > 1), base + following, base + place)
