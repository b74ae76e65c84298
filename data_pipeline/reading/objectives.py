"""What the model is asked to predict: a function from documents to examples of (inputs, targets).

    documents -> objective -> Examples -> layout of the model's shape (packing.py)

An objective sees many documents at once. Its randomness comes from one key per piece of a document (draws.py), so that
a sample looks the same whatever batch, rank or restart it is read in. What it will make of a piece it tells from the
piece's length and key beforehand, so that room is kept for all of it (budget.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import DenoiserConfig, ObjectiveConfig, ObjectivePart
from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.denoising import BlankInfilling, SpanCorruption, SuffixCorruption
from data_pipeline.reading.draws import below, fork, fractions, places
from data_pipeline.reading.examples import (
    NO_EXAMPLES,
    Examples,
    Expected,
    Pieces,
    Ragged,
    Sizes,
    reordered,
    selected,
)
from data_pipeline.reading.masking import MaskedLm, SentencePairs
from data_pipeline.vocabulary import Vocabulary

__all__ = ["NO_EXAMPLES", "Examples", "Mixture", "NextToken", "Objective", "PrefixLm", "Ragged", "made_from"]

_SPLIT, _DENOISER, _PART = range(3)
"""Purposes of random numbers."""

PAPERS_DENOISERS = (
    DenoiserConfig(mode="R", mean_span_length=3, noise_density=0.15),
    DenoiserConfig(mode="R", mean_span_length=8, noise_density=0.15),
    DenoiserConfig(mode="S", noise_density=0.25),
    DenoiserConfig(mode="X", mean_span_length=3, noise_density=0.5),
    DenoiserConfig(mode="X", mean_span_length=8, noise_density=0.5),
    DenoiserConfig(mode="X", mean_span_length=64, noise_density=0.15),
    DenoiserConfig(mode="X", mean_span_length=64, noise_density=0.5),
)
"""The seven of UL2 (arXiv 2205.05131, section 3.1.2 and table 1), equally likely.

The paper draws the lengths of R and X spans from a normal distribution of which it gives the mean alone; here any
partition into as many spans is equally likely, as in T5.
"""


class Objective(Protocol):
    """A pure function of documents and their keys."""

    @property
    def name(self) -> str:
        """Its name in a config."""

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Tokens that N pieces will become; never fewer for a longer piece, 0 of both if it can hold no target."""

    def expected(self, length: int) -> Expected:
        """Tokens that a piece of `length` tokens from the middle of a document becomes, on average."""

    def num_sentinels(self, length: int) -> int:
        """Sentinels that a piece of `length` tokens takes."""

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N pieces; keys uint64 [N]."""


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Every token is predicted from those before it: no inputs, the piece as targets. Draws nothing."""

    name: str = "next_token"

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """The piece's own length, 0 for a single token."""
        return Sizes(np.zeros_like(pieces.lengths), np.where(pieces.lengths > 1, pieces.lengths, 0))

    def expected(self, length: int) -> Expected:
        """All of it targets."""
        return Expected.exactly(0, length)

    def num_sentinels(self, length: int) -> int:
        """None."""
        return 0

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """The documents as they are; a single token stays a row of one, which no layout has room for."""
        nothing = Ragged(documents.tokens[:0], np.zeros_like(documents.lengths))
        return Examples(inputs=nothing, targets=Ragged(documents.tokens, documents.lengths))


@dataclasses.dataclass(frozen=True)
class PrefixLm:
    """A piece is split anywhere, every place equally likely: its beginning is given, its end predicted.

    The split of arXiv 1910.10683, section 3.2.1: both parts hold at least one token.
    """

    name: str = "prefix_lm"

    @staticmethod
    def _split(lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return 1 + below(fork(keys, _SPLIT), np.maximum(lengths - 1, 1))

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Tokens on either side of the split that these keys draw."""
        split = self._split(pieces.lengths, keys)
        enough = pieces.lengths > 1
        return Sizes(np.where(enough, split, 0), np.where(enough, pieces.lengths - split, 0))

    def expected(self, length: int) -> Expected:
        """Half on either side, anything between one token and all but one being equally likely."""
        variance = max((length - 1) ** 2 - 1, 0) / 12
        return Expected(Expected.exactly(length / 2, length / 2).mean, np.array([variance, variance, 0.0]))

    def num_sentinels(self, length: int) -> int:
        """None."""
        return 0

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples of N documents; keys uint64 [N]."""
        lengths = documents.lengths
        enough = lengths > 1
        split = np.where(enough, self._split(lengths, keys), lengths)
        is_input = places(lengths) < np.repeat(split, lengths)
        inputs = documents.tokens[is_input & np.repeat(enough, lengths)]
        targets = documents.tokens[~is_input]
        return Examples(Ragged(inputs, np.where(enough, split, 0)), Ragged(targets, lengths - split))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Each piece gets one of several objectives, drawn by weight; which weights, may depend on its source."""

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]
    name: str = "mixture"
    purpose: int = _PART
    """Of the draw: a mixture within a mixture needs one of its own, or it would only see some of its numbers."""
    weights_of_sources: tuple[tuple[float, ...], ...] = ()
    """Weights of the parts for the pieces of each source; empty where they are the same for all."""

    def choice(self, keys: np.ndarray, sources: np.ndarray | None = None) -> np.ndarray:
        """Which part each piece gets, int64 [N]; `sources` int64 [N] where weights depend on them."""
        if self.weights_of_sources:
            assert sources is not None, "nobody said of which sources the pieces are"
            shares = np.cumsum(self.weights_of_sources, axis=1)
            drawn = fractions(fork(keys, self.purpose)) * shares[sources, -1]
            return (shares[sources] <= drawn[:, None]).sum(axis=1)
        shares = np.cumsum(self.weights) / np.sum(self.weights)
        return np.minimum(
            np.searchsorted(shares, fractions(fork(keys, self.purpose)), side="right"), len(self.parts) - 1
        )

    def sizes(self, pieces: Pieces, keys: np.ndarray) -> Sizes:
        """Those of the part that each piece gets."""
        inputs, targets = np.zeros_like(pieces.lengths), np.zeros_like(pieces.lengths)
        choice = self.choice(keys, pieces.sources)
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(choice == number)
            if len(rows):
                sizes = part.sizes(pieces.select(rows), keys[rows])
                inputs[rows], targets[rows] = sizes.inputs, sizes.targets
        return Sizes(inputs, targets)

    def expected(self, length: int) -> Expected:
        """Mean of the parts; which one a piece gets adds to the variance. Where sources differ, the most of any."""
        each = [part.expected(length) for part in self.parts]
        of_sources = [_mean(each, weights) for weights in self.weights_of_sources or (self.weights,)]
        return Expected(
            np.max([source.mean for source in of_sources], axis=0),
            np.max([source.variance for source in of_sources], axis=0),
        )

    def num_sentinels(self, length: int) -> int:
        """As many as the greediest part takes."""
        return max(part.num_sentinels(length) for part in self.parts)

    def __call__(self, documents: Documents, keys: np.ndarray) -> Examples:
        """Examples in the order of the pieces they were made of; keys uint64 [N]."""
        choice = self.choice(keys, documents.sources)
        made = []
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(choice == number)
            if len(rows):
                examples = part(selected(documents, rows), keys[rows])
                made.append((examples, rows if examples.pieces is None else rows[examples.pieces]))
        return _merged(made) if made else NO_EXAMPLES


def _mean(each: Sequence[Expected], weights: Sequence[float]) -> Expected:
    shares = np.array(weights) / np.sum(weights)
    mean = shares @ [part.mean for part in each]
    square = shares @ [part.variance + part.mean**2 for part in each]
    return Expected(mean, np.maximum(square - mean**2, 0))


def _merged(made: Sequence[tuple[Examples, np.ndarray]]) -> Examples:
    """Examples of several objectives in the order of their pieces, whose numbers, int64 [n], stand beside them."""
    pieces = np.concatenate([numbers for _, numbers in made])
    order = np.argsort(pieces, kind="stable")
    inputs = _concatenated([examples.inputs for examples, _ in made])
    targets = _concatenated([examples.targets for examples, _ in made])
    scored = None
    if any(examples.scored is not None for examples, _ in made):
        flags = np.concatenate([_scored(examples) for examples, _ in made])
        scored = reordered(Ragged(flags, targets.lengths), order).tokens
    return Examples(reordered(inputs, order), reordered(targets, order), scored, pieces[order])


def _scored(examples: Examples) -> np.ndarray:
    return np.ones(len(examples.targets.tokens), bool) if examples.scored is None else examples.scored


def _concatenated(rows: Sequence[Ragged]) -> Ragged:
    return Ragged(np.concatenate([each.tokens for each in rows]), np.concatenate([each.lengths for each in rows]))


# ---- from a config


def made_from(
    config: ObjectiveConfig | ObjectivePart, vocabulary: Vocabulary, sources: Sequence[str] = ()
) -> Objective:
    """The objective a config describes, for documents of sources with these names where it tells them apart.

    ValueError if the vocabulary lacks a piece that it needs, or if it leaves nothing for a source.
    """
    name, density, span = config.name, config.noise_density, config.mean_span_length
    if name == "next_token":
        return NextToken()
    if name == "prefix_lm":
        return PrefixLm()
    if name == "span_corruption":
        if config.mode:
            vocabulary.needs(name, config.mode)
        return SpanCorruption(vocabulary, density or 0.15, span or 3.0, config.mode)
    if name == "blank_infilling":
        return BlankInfilling(vocabulary, density or 0.15, span or 3.0)
    if name == "ul2":
        denoisers = config.denoisers or PAPERS_DENOISERS
        vocabulary.needs(name, *sorted({denoiser.mode for denoiser in denoisers}))
        parts = tuple(_denoiser(denoiser, vocabulary) for denoiser in denoisers)
        return Mixture(parts, tuple(denoiser.weight for denoiser in denoisers), name, _DENOISER)
    if name == "mixture":
        assert isinstance(config, ObjectiveConfig) and config.parts
        parts = tuple(made_from(part, vocabulary) for part in config.parts)
        return Mixture(
            parts, tuple(part.weight for part in config.parts), weights_of_sources=_by_source(config, sources)
        )
    vocabulary.needs(name, "mask")
    if config.whole_words:
        vocabulary.needs_words(name)
    if name == "masked_lm":
        return MaskedLm(vocabulary, density or 0.15, bool(config.whole_words))
    vocabulary.needs(name, "cls", "sep")
    return SentencePairs(vocabulary, density or 0.15, bool(config.whole_words), config.max_pair_length or 128)


def tells_sources_apart(config: ObjectiveConfig) -> bool:
    """Whether what a document is asked depends on its source."""
    return any(part.sources for part in config.parts or ())


def check_sources(config: ObjectiveConfig, sources: Sequence[str]) -> None:
    """ValueError when a part of a mixture is for a source that is not there; `sources` are the names of all."""
    for number, part in enumerate(config.parts or ()):
        if unknown := next((name for name in part.sources or () if name not in sources), None):
            there = f"they are {', '.join(sources)}" if sources else "the dataset was built before sources had names"
            raise Mistake(f"objective.parts[{number}].sources: '{unknown}' is no source of this run; {there}")


def _by_source(config: ObjectiveConfig, sources: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Weights of the parts of a mixture for each source; nothing where it does not tell them apart."""
    if not tells_sources_apart(config):
        return ()
    parts = config.parts or []
    for name in sources:
        if not any(part.sources is None or name in part.sources for part in parts):
            raise Mistake(
                f"objective.parts: none is for documents of the source '{name}'; name it in the sources of a part, or "
                "leave those of one empty, which are all"
            )
    return tuple(
        tuple(part.weight if part.sources is None or name in part.sources else 0.0 for part in parts)
        for name in sources
    )


def _denoiser(config: DenoiserConfig, vocabulary: Vocabulary) -> Objective:
    if config.mode == "S":
        return SuffixCorruption(vocabulary, config.noise_density)
    assert config.mean_span_length is not None
    return SpanCorruption(vocabulary, config.noise_density, config.mean_span_length, config.mode, "ul2")
