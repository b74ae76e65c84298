"""What an objective makes of documents: rows of inputs and targets, and what it asks of each piece of a document."""

import dataclasses

import numpy as np

from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.draws import before, ranges


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of token ids of unequal length, one after the other."""

    tokens: np.ndarray
    """Integers [sum of lengths]."""
    lengths: np.ndarray
    """int64 [N]."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """What is given to the model and what it must predict, row for row, N of each; a row without targets is empty."""

    inputs: Ragged
    targets: Ragged
    scored: np.ndarray | None = None
    """Which target tokens the loss is taken on, bool [sum of target lengths]; None means all of them."""
    pieces: np.ndarray | None = None
    """Number of the piece each example was made of, int64 [N], ascending; None means row j was made of piece j."""


_NOTHING = Ragged(np.zeros(0, np.int64), np.zeros(0, np.int64))

NO_EXAMPLES = Examples(_NOTHING, _NOTHING)
"""What is left when there is no document."""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Lengths of pieces of documents, and whether bos and eos, which are no content, are among their tokens."""

    lengths: np.ndarray
    """Tokens of each piece, bos and eos included: int64 [N]."""
    has_bos: np.ndarray
    """bool [N]."""
    has_eos: np.ndarray
    """bool [N]."""
    sources: np.ndarray | None = None
    """Number of the source of each, int64 [N], where the objective asks for it."""

    @classmethod
    def of(cls, documents: Documents, bos_id: int, eos_id: int) -> "Pieces":
        """Looks at the first and last token of each piece."""
        lengths = documents.lengths
        filled = lengths > 0
        ends = np.cumsum(lengths)[filled]
        has_bos, has_eos = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
        has_bos[filled] = documents.tokens[ends - lengths[filled]] == bos_id
        has_eos[filled] = documents.tokens[ends - 1] == eos_id
        return cls(lengths, has_bos, has_eos & (lengths > has_bos), documents.sources)

    @classmethod
    def inner(cls, lengths: np.ndarray) -> "Pieces":
        """Pieces from the middle of documents, which have neither."""
        nowhere = np.zeros(len(lengths), bool)
        return cls(lengths, nowhere, nowhere)

    @property
    def content(self) -> np.ndarray:
        """Tokens of each piece without bos and eos: int64 [N]."""
        return self.lengths - self.has_bos - self.has_eos

    def select(self, rows: np.ndarray) -> "Pieces":
        """Some of the pieces: by index or by a mask."""
        sources = None if self.sources is None else self.sources[rows]
        return Pieces(self.lengths[rows], self.has_bos[rows], self.has_eos[rows], sources)

    def shortened(self, lengths: np.ndarray) -> "Pieces":
        """The first `lengths` tokens of each piece."""
        has_bos, has_eos = self.has_bos & (lengths > 0), self.has_eos & (lengths == self.lengths)
        return Pieces(lengths, has_bos, has_eos, self.sources)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens of the inputs and targets that pieces become, int64 [N] each."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Expected:
    """Tokens that a piece of some length becomes: of inputs, of targets, and of both together, float64 [3] each."""

    mean: np.ndarray
    variance: np.ndarray
    """Of what is drawn at random, not of the piece's length; inputs may grow at the cost of targets."""

    @classmethod
    def exactly(cls, inputs: float, targets: float) -> "Expected":
        """Nothing is left to chance."""
        return cls(np.array([inputs, targets, inputs + targets], float), np.zeros(3))


def content_of(documents: Documents, pieces: Pieces, least: int) -> tuple[np.ndarray, Ragged]:
    """Numbers of the pieces with at least `least` tokens of content, and that content without bos and eos."""
    rows = np.flatnonzero(pieces.content >= least)
    kept = pieces.select(rows)
    starts = before(documents.lengths)[rows] + kept.has_bos
    if len(rows) == len(documents.lengths) and not (kept.has_bos.any() or kept.has_eos.any()):
        return rows, Ragged(documents.tokens, documents.lengths)
    return rows, Ragged(documents.tokens[ranges(starts, kept.content)], kept.content)


def selected(documents: Documents, rows: np.ndarray) -> Documents:
    """Some pieces of documents, numbers int64 [n] ascending, in the same samples."""
    starts = before(documents.lengths)[rows]
    lengths = documents.lengths[rows]
    sample = np.repeat(np.arange(len(documents.num_pieces)), documents.num_pieces)[rows]
    return Documents(
        tokens=documents.tokens[ranges(starts, lengths)],
        lengths=lengths,
        is_cut=documents.is_cut[rows],
        sources=None if documents.sources is None else documents.sources[rows],
        num_pieces=np.bincount(sample, minlength=len(documents.num_pieces)),
    )


def scattered(values: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """`values` [n] put at `rows` of an array of zeros [num_rows]."""
    result = np.zeros(num_rows, values.dtype)
    result[rows] = values
    return result


def reordered(ragged: Ragged, order: np.ndarray) -> Ragged:
    """The rows in another order."""
    lengths = ragged.lengths[order]
    return Ragged(ragged.tokens[ranges(before(ragged.lengths)[order], lengths)], lengths)
