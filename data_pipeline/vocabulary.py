"""The ids that objectives put into examples, from the manifest of a dataset."""

import dataclasses
from functools import cached_property

import numpy as np

from common.mistakes import Mistake
from data_pipeline.flags import unpacked_flags
from data_pipeline.manifest import Manifest

MODES = ("R", "S", "X")
"""Modes of UL2 (arXiv 2205.05131, section 3.1), each with a piece of its own: [R], [S], [X]."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Special ids of a dataset's tokenizer, and which ids are none."""

    size: int
    """Ids are below this."""
    bos: int
    """Begins documents, and starts every decoder beside an encoder."""
    eos: int
    """Ends documents, inputs and targets."""
    special: dict[str, int] = dataclasses.field(default_factory=dict)
    """Further ids by name: pad, unk, mask, cls, sep, R, S and X, those there are."""
    first_sentinel: int = 0
    """Id of `<extra_id_0>`; the others follow it."""
    num_sentinels: int = 0
    """How many there are."""
    word_starts: str | None = None
    """`packed_flags` of the ids that begin a word; None in a dataset built before they were kept."""
    word_ends: str | None = None
    """The same of the ids that end one, so that what follows begins another."""
    sentinel_step: int = 1
    """From the id of one to that of the next: 1, or -1 in T5's vocabularies."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Vocabulary":
        """What a manifest says."""
        return cls(
            size=manifest.vocab_size,
            bos=manifest.bos_id,
            eos=manifest.eos_id,
            special=manifest.special_ids,
            first_sentinel=manifest.first_sentinel_id or 0,
            num_sentinels=manifest.num_sentinels,
            sentinel_step=manifest.sentinel_step,
            word_starts=manifest.word_starts,
            word_ends=manifest.word_ends,
        )

    @property
    def pad(self) -> int:
        """What fills rows; nobody sees it, so any id will do where the tokenizer has none of its own."""
        return self.special.get("pad", self.eos)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids that are pieces of text, int64 [n]."""
        special = [self.bos, self.eos, *self.special.values()]
        return np.setdiff1d(np.arange(self.size), [*special, *self.sentinels(np.arange(self.num_sentinels))])

    def sentinels(self, numbers: np.ndarray) -> np.ndarray:
        """Ids of sentinels by number: `<extra_id_0>` is number 0."""
        return self.first_sentinel + self.sentinel_step * numbers

    @cached_property
    def starts_word(self) -> np.ndarray:
        """Whether an id begins a word, bool [V]; only where this is kept, see `needs_words`."""
        assert self.word_starts is not None
        return unpacked_flags(self.word_starts, self.size)

    @cached_property
    def ends_word(self) -> np.ndarray:
        """Whether an id ends a word, bool [V]; only where this is kept."""
        assert self.word_ends is not None
        return unpacked_flags(self.word_ends, self.size)

    def needs(self, objective: str, *names: str) -> None:
        """Raises ValueError if one of the named special pieces is missing."""
        missing = [name for name in names if name not in self.special]
        if missing:
            pieces = ", ".join(f"[{name}]" if name in MODES else f"<{name}>" for name in missing)
            raise Mistake(
                f"objective.name: {objective} needs {pieces}, which the tokenizer of this dataset does not have; "
                "train one with 'shardline tokenizer train CONFIG', or give another's the piece with tokenizer.extend: "
                "true, and build the dataset with it"
            )

    def needs_sentinels(self, objective: str, count: int, why: str) -> None:
        """Raises ValueError if there are fewer than `count` sentinels."""
        if count > self.num_sentinels:
            raise Mistake(
                f"tokenizer.num_sentinels: {objective} needs {count} sentinels {why}, this dataset's tokenizer has "
                f"{self.num_sentinels}; train a tokenizer with num_sentinels {count}, or give another's that many "
                "with tokenizer.extend: true, and build the dataset with it, "
                "or use fewer or longer spans, or a shorter sequence_length"
            )

    def needs_words(self, objective: str) -> None:
        """Raises ValueError if nobody kept which ids begin a word."""
        if self.word_starts is None or self.word_ends is None:
            raise Mistake(
                f"objective.whole_words: {objective} must know which pieces begin a word, which this dataset was "
                "built too early to say; build it anew with 'shardline data build CONFIG'"
            )
