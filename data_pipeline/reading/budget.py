"""How much text goes into a sample, so that what an objective makes of it fits the rows of a shape.

    sample_lengths: how many raw tokens a sample spans, and how long its rows are     once, before training
    fitted:         the pieces of a sample that fit after all, the rest left out      for every sample

Objectives add tokens for every piece of a document (eos, sentinels, mode tokens), and how many pieces a sample holds is
a matter of chance, as is which part of a mixture they get. The window is chosen for somewhat more than the average; a
sample that becomes still more keeps as many of its tokens as fit. That is decided from lengths and keys, before
anything is made of the text, so that no target which was made is ever lost.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.draws import before, place_keys, places
from data_pipeline.reading.examples import Pieces, Sizes
from data_pipeline.reading.filling import Plan, Stretches
from data_pipeline.reading.objectives import NextToken, Objective, made_from
from data_pipeline.vocabulary import Vocabulary


class SampleLengths(NamedTuple):
    """Sizes of one sample in tokens."""

    window: int
    """Raw tokens that a sample moves on by, and holds (next_token holds one more, the last target)."""
    row: int
    """Row of a decoder or encoder; in encdec, of the encoder."""
    target_row: int
    """Row of the decoder in encdec; 0 for other shapes."""


def sample_lengths(
    config: ObjectiveConfig,
    shape: str,
    sequence_length: int,
    target_length: int | None,
    vocabulary: Vocabulary,
    mean_document_length: float,
    sources: Sequence[str] = (),
) -> SampleLengths:
    """Sizes of a sample; an empty `target_length` becomes what the objective needs for a full row of inputs.

    Raises ValueError when a target_length is given that nothing takes, when rows are too short for anything, or when
    the tokenizer has too few sentinels for documents as long as the window.
    """
    if target_length is not None and shape != "encdec":
        raise Mistake(
            f"training.target_length: only shape encdec has a row of targets beside its inputs, this is {shape}; "
            "leave it empty"
        )
    objective = made_from(config, vocabulary, sources)
    if isinstance(objective, NextToken):
        return SampleLengths(sequence_length, sequence_length, 0)
    window = _window(objective, shape, sequence_length, target_length, mean_document_length)
    if window < 2:
        raise Mistake(
            f"training.sequence_length: {sequence_length} has no room for {config.name} on documents of "
            f"{mean_document_length:.0f} tokens; make it longer" + (", target_length too" if target_length else "")
        )
    vocabulary.needs_sentinels(config.name, objective.num_sentinels(window), f"for documents of {window} tokens")
    if shape != "encdec":
        return SampleLengths(window, sequence_length, 0)
    needed = _use(objective, window, mean_document_length)[1]
    if target_length is None and needed == sequence_length + 1:
        # as T5 has it: not one token more in the decoder's row than in the encoder's
        window -= 1
        needed = _use(objective, window, mean_document_length)[1]
    return SampleLengths(window, sequence_length, target_length or needed)


def _window(objective: Objective, shape: str, length: int, target_length: int | None, mean_length: float) -> int:
    """The longest window that fits on average and a little more."""

    def fits(window: int) -> bool:
        inputs, targets, together = _use(objective, window, mean_length)
        if shape == "encdec":
            return inputs <= length and targets <= (target_length or targets)
        return (inputs if shape == "encoder" else together) <= length

    return _largest(fits, length + 1)


def _largest(fits: Callable[[int], bool], guess: int) -> int:
    """The largest number that fits, 0 if none does; there is nothing that fits above one that does not."""
    too_large = guess
    while fits(too_large):
        too_large *= 2
    too_small = 0
    while too_large - too_small > 1:
        middle = (too_small + too_large) // 2
        too_small, too_large = (middle, too_large) if fits(middle) else (too_small, middle)
    return too_small


def _use(objective: Objective, window: int, mean_length: float) -> tuple[int, int, int]:
    """Tokens of inputs, of targets and of a decoder's row of both, that a window becomes: (inputs, targets, both).

    A window with b borders of documents has b + 1 pieces. It is made ready for one standard deviation of b more, for a
    single piece too, since some objectives make less of many, and for two deviations of what is drawn.
    """
    borders = window / mean_length
    alone, _ = _of_pieces(objective, window, 1)
    among, variance = _of_pieces(objective, window, 1 + borders + borders**0.5)
    tokens = np.ceil(np.maximum(alone, among + 2 * variance**0.5) - 1e-6)
    inputs, targets, both = tokens.astype(int).tolist()
    return inputs, targets, both


def _of_pieces(objective: Objective, window: int, pieces: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, float64 [3], of what a window in so many equal pieces becomes, in the order of `_use`."""
    length = window / pieces
    below, above = objective.expected(int(length)), objective.expected(int(np.ceil(length)))
    share = length - int(length)
    mean = (1 - share) * below.mean + share * above.mean
    # a decoder reads one token less than inputs and targets are together
    return pieces * np.maximum(mean - [0, 0, 1], 0), pieces * above.variance


# ---- blocks of whole documents

ROWS_OF_BLOCK = 128
"""Rows that are filled together: more would be cheaper in padding and dearer to work out for a single one."""
SPARE_ROWS = 2
"""Rows of a block that are kept free: one for a document that its end cuts, one for what does not go together."""
SPARE_PAIRS = 3
"""The same of pairs of rows, which are harder to fill evenly."""
DRAWN = 0.05
"""Standard deviation of a document's inputs, in proportion, above which objectives are said to draw how it is split."""
PIECES_OF_PAIR = 10
"""Pieces to a pair of rows, of documents longer than one, where it is drawn how much of each goes into either."""


@dataclasses.dataclass(frozen=True)
class DrawnCosts:
    """What an objective makes of stretches of documents, with the keys that their places give them."""

    objective: Objective
    shape: str
    seed: int

    def keys(self, stretches: Stretches) -> np.ndarray:
        """uint64 [P]."""
        return place_keys(self.seed, stretches.passes, stretches.start)

    def __call__(self, stretches: Stretches) -> np.ndarray:
        """Tokens of each in each row of the shape, int64 [D, P]."""
        return np.stack(_used(self.objective.sizes(_as_pieces(stretches), self.keys(stretches)), self.shape))

    def longest(self, stretches: Stretches, room: np.ndarray) -> np.ndarray:
        """Most tokens of each that become no more than `room`, int64 [D, P]; 0 if too few for a target: int64 [P]."""
        pieces, keys = _as_pieces(stretches), self.keys(stretches)
        sizes = self.objective.sizes(pieces, keys)
        longest = np.where((np.stack(_used(sizes, self.shape)) <= room).all(axis=0), pieces.lengths, 0)
        over = np.flatnonzero(longest < pieces.lengths)
        longest[over] = _longest(self.objective, pieces.select(over), keys[over], self.shape, list(room[:, over]))
        return np.where(longest == pieces.lengths, np.where(sizes.targets > 0, longest, 0), longest)


def _as_pieces(stretches: Stretches) -> Pieces:
    """As a dataset is written: with a token at the beginning and one at the end of every document."""
    has_bos = stretches.begins & (stretches.lengths > 0)
    return Pieces(stretches.lengths, has_bos, stretches.ends & (stretches.lengths > has_bos))


def best_fit_plan(
    config: ObjectiveConfig,
    shape: str,
    lengths: SampleLengths,
    target_length: int | None,
    vocabulary: Vocabulary,
    mean_document_length: float,
) -> tuple[SampleLengths, Plan]:
    """Sizes of samples of whole documents, and the blocks they come from, where windows have `lengths`.

    Blocks get as much text as fills their rows on average, but for those kept free. An empty `target_length` becomes
    what the objective makes of a full row of inputs. ValueError when the tokenizer has too few sentinels.
    """
    objective = made_from(config, vocabulary)
    row = lengths.row
    if isinstance(objective, NextToken):
        num_rows = ROWS_OF_BLOCK - SPARE_ROWS
        return lengths, Plan(num_rows * row, ROWS_OF_BLOCK, (row,), row + 1, 0, 1)
    # no objective makes more text fit than there are places
    longest = row + (shape in ("causal", "prefix"))
    mean = min(mean_document_length, longest)
    rows: tuple[int, ...] = (row,)
    piece, spare = 0, SPARE_ROWS
    if shape == "encdec":
        rows, spare = _pair(objective, row, target_length, mean), SPARE_PAIRS
        if _is_drawn(objective, mean):
            piece = max(_text_of(objective, shape, rows, 1, mean) // PIECES_OF_PAIR, 2)
            mean = min(mean, piece)
            rows = _pair(objective, row, target_length, mean)
        else:
            longest = sum(rows)
    vocabulary.needs_sentinels(config.name, objective.num_sentinels(longest), f"for documents of {longest} tokens")
    tokens = _text_of(objective, shape, rows, ROWS_OF_BLOCK - spare, mean)
    sizes = SampleLengths(tokens // ROWS_OF_BLOCK, row, rows[1] if shape == "encdec" else 0)
    return sizes, Plan(tokens, ROWS_OF_BLOCK, rows, longest, piece, 0)


def _is_drawn(objective: Objective, mean_length: float) -> bool:
    """Whether it is a matter of chance how much of a piece becomes inputs and how much targets."""
    expected = objective.expected(max(round(mean_length), 2))
    return expected.variance[0] ** 0.5 > DRAWN * expected.mean[0]


def _pair(objective: Objective, row: int, target_length: int | None, mean_length: float) -> tuple[int, int]:
    """Rows of encoder and decoder that pieces of a mean length fill alike."""
    inputs, targets, _ = objective.expected(max(round(mean_length), 2)).mean
    return row, target_length or math.ceil(row * targets / inputs)


def _text_of(objective: Objective, shape: str, capacity: tuple[int, ...], num_rows: int, mean_length: float) -> int:
    """Tokens of text in pieces of a mean length that fill so many rows, or pairs of rows, on average."""

    def fits(tokens: int) -> bool:
        inputs, targets, both = _of_pieces(objective, tokens, max(tokens / mean_length, 1.0))[0]
        used = [inputs, targets] if shape == "encdec" else [inputs if shape == "encoder" else both]
        return all(tokens <= num_rows * room for tokens, room in zip(used, capacity, strict=True))

    return _largest(fits, num_rows * sum(capacity))


# ---- a sample that holds more than fits


def fitted(
    objective: Objective,
    documents: Documents,
    keys: np.ndarray,
    shape: str,
    lengths: SampleLengths,
    vocabulary: Vocabulary,
) -> tuple[Documents, np.ndarray, np.ndarray]:
    """As much of B samples as fits: documents, their keys, and raw tokens left out of each sample, int64 [B].

    A sample keeps its first pieces; the one that does not fit is shortened, those behind it are left out.
    """
    pieces = Pieces.of(documents, vocabulary.bos, vocabulary.eos)
    sizes = objective.sizes(pieces, keys)
    none_left_out = np.zeros(len(documents.num_pieces), np.int64)
    used = _used(sizes, shape)
    sample = np.repeat(np.arange(len(documents.num_pieces)), documents.num_pieces)
    before_piece = [before(tokens) for tokens in used]
    rows = (lengths.row, lengths.target_row)
    first = np.append(before(documents.num_pieces), len(sample))
    over = np.zeros(len(sample), bool)
    room = []
    for tokens, begin, row in zip(used, before_piece, rows, strict=False):
        begin = begin - np.append(begin, 0)[first[sample]]
        over |= begin + tokens > row
        room.append(row - begin)
    if not over.any():
        return documents, keys, none_left_out
    # the first piece of its sample that does not fit; all behind it go, whether or not they would
    num_over = np.append(0, np.cumsum(over))
    num_over = num_over[1:] - num_over[first[sample]]
    kept = documents.lengths.copy()
    kept[num_over > 0] = 0
    at = np.flatnonzero(over & (num_over == 1))
    kept[at] = _longest(objective, pieces.select(at), keys[at], shape, [tokens[at] for tokens in room])
    left_out = np.bincount(sample, documents.lengths - kept, minlength=len(none_left_out)).astype(np.int64)
    return _shortened(documents, kept, sample), keys[kept > 0], left_out


def _used(sizes: Sizes, shape: str) -> list[np.ndarray]:
    """Tokens that pieces take in each row of the shape."""
    if shape == "encdec":
        return [sizes.inputs, sizes.targets]
    if shape == "encoder":
        return [sizes.inputs]
    return [np.maximum(sizes.inputs + sizes.targets - 1, 0)]


def _longest(objective: Objective, pieces: Pieces, keys: np.ndarray, shape: str, room: list[np.ndarray]) -> np.ndarray:
    """Most tokens of each piece that fit into `room`, int64 [n]; 0 if too few to hold a target."""
    too_long, longest = pieces.lengths.copy(), np.zeros_like(pieces.lengths)
    while (too_long - longest > 1).any():
        middle = (too_long + longest) // 2
        used = _used(objective.sizes(pieces.shortened(middle), keys), shape)
        fits = np.all([tokens <= free for tokens, free in zip(used, room, strict=True)], axis=0)
        longest, too_long = np.where(fits, middle, longest), np.where(fits, too_long, middle)
    return np.where(objective.sizes(pieces.shortened(longest), keys).targets > 0, longest, 0)


def _shortened(documents: Documents, lengths: np.ndarray, sample: np.ndarray) -> Documents:
    """The first `lengths` tokens of each piece, int64 [N]; pieces of none are gone."""
    there = lengths > 0
    return Documents(
        tokens=documents.tokens[places(documents.lengths) < np.repeat(lengths, documents.lengths)],
        lengths=lengths[there],
        is_cut=(documents.is_cut | (lengths < documents.lengths))[there],
        sources=None if documents.sources is None else documents.sources[there],
        num_pieces=np.bincount(sample[there], minlength=len(documents.num_pieces)),
    )
