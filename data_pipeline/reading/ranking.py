"""Multiple choice as examples of an objective: which of some texts goes best after, or into, another.

    Question -> Asked: a query and a choice as ids
             -> one example in the form the model was trained on (masked_lm: several)

The choice whose tokens the model finds likeliest is its answer; nothing is generated. Texts are taken as they are:
where a blank belongs between query and choice, the choice begins with it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig, ObjectivePart
from data_pipeline.questions import Question
from data_pipeline.reading.examples import Examples, Ragged
from data_pipeline.reading.objectives import PAPERS_DENOISERS
from data_pipeline.vocabulary import Vocabulary

Encode = Callable[[str], np.ndarray]
Form = Literal["continuation", "blank", "masked"]
AskedRow = tuple[np.ndarray, np.ndarray, np.ndarray]


class Asked(NamedTuple):
    """A text, and what is asked how likely it is after it."""

    query: np.ndarray
    """int64 [n]."""
    choice: np.ndarray
    """int64 [m]."""
    opens: bool = True
    """Whether the query begins a text, and not somewhere in it."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Examples of questions, N of them, and what each is about."""

    examples: Examples
    question: np.ndarray
    """int64 [N]."""
    choice: np.ndarray
    """int64 [N]; the score of a choice is the sum over its examples."""


def form_of(objective: ObjectiveConfig, shape: str) -> Form:
    """How a model of this shape and objective is asked.

    A model that continues texts is given the choice after the query; one that was trained on blanks alone finds it in
    a blank after the query; an encoder sees both, each token of the choice masked in turn (arXiv 1910.14659).
    """
    if shape == "encoder":
        return "masked"
    names = {objective.name, *(part.name for part in objective.parts or ())}
    return "continuation" if names & {"next_token", "prefix_lm"} else "blank"


@dataclasses.dataclass(frozen=True)
class Manner:
    """What a model is given around a query and a choice."""

    form: Form
    opening: tuple[int, ...]
    """Ids before every query."""
    closing: tuple[int, ...]
    """Ids behind what is read in one piece: a blank, a masked text, the input of an encoder beside a decoder."""
    blank: int = 0
    """Sentinel of the form `blank`."""
    mode: tuple[int, ...] = ()
    """Piece that it knows before a text whose end is missing."""
    mask: int = 0
    """Mask of the form `masked`."""

    @classmethod
    def of(cls, objective: ObjectiveConfig, shape: str, vocabulary: Vocabulary) -> "Manner":
        """That of a model trained here. ValueError where the tokenizer lacks a piece that the form needs."""
        form = form_of(objective, shape)
        if form == "masked":
            vocabulary.needs(objective.name, "mask")
        elif form == "blank":
            vocabulary.needs_sentinels(objective.name, 1, "for the place of an answer")
        return cls(
            form,
            opening=(vocabulary.bos,),
            closing=() if form == "continuation" else (vocabulary.eos,),
            blank=vocabulary.first_sentinel,
            mode=_mode(objective, vocabulary) if form == "blank" else (),
            mask=vocabulary.special.get("mask", 0),
        )

    def rows(self, asked: Asked) -> Iterator[AskedRow]:
        """Inputs int64 [i], targets int64 [t], and which targets count, bool [t], of each example."""
        query, choice = asked.query, asked.choice
        opening = self.opening if asked.opens else ()
        if self.form == "masked":
            text = np.concatenate((opening, query, choice, self.closing)).astype(np.int64)
            begin = len(opening) + len(query)
            for place in range(begin, begin + len(choice)):
                masked = text.copy()
                masked[place] = self.mask
                yield masked, text, np.arange(len(text)) == place
            return
        blank = (self.blank,) if self.form == "blank" else ()
        inputs = np.concatenate((opening, self.mode, query, blank, self.closing)).astype(np.int64)
        targets = np.concatenate((blank, choice)).astype(np.int64)
        yield inputs, targets, np.arange(len(targets)) >= len(blank)


def ask(asked: Iterable[Asked], manner: Manner) -> tuple[Examples, np.ndarray]:
    """Examples for all that is asked, and the number of what it belongs to for every example, int64 [N]."""
    rows = [(number, row) for number, each in enumerate(asked) for row in manner.rows(each)]
    inputs, targets, scored = zip(*(row for _, row in rows), strict=True)
    examples = Examples(_ragged(inputs), _ragged(targets), np.concatenate(scored))
    return examples, np.array([number for number, _ in rows], np.int64)


def ranking(questions: list[Question], encode: Encode, manner: Manner) -> Ranking:
    """Examples for every choice of every question. ValueError when a choice is no token at all."""
    owners = [(number, place) for number, question in enumerate(questions) for place in range(len(question.choices))]
    examples, owner = ask(_asked(questions, encode), manner)
    question_of, choice_of = np.array(owners, np.int64)[owner].T
    return Ranking(examples, question_of, choice_of)


def _asked(questions: list[Question], encode: Encode) -> Iterator[Asked]:
    for number, question in enumerate(questions):
        query = encode(question.query).astype(np.int64)
        for text in question.choices:
            choice = encode(text).astype(np.int64)
            if not len(choice):
                raise Mistake(f"question {number + 1}: choice {text!r} has no token; write it out")
            yield Asked(query, choice)


def _mode(objective: ObjectiveConfig, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The piece that a model trained on blanks knows before a text whose end is missing: S where it was trained on it.

    Else there is none, unless every text it ever saw had one.
    """
    parts: Sequence[ObjectiveConfig | ObjectivePart] = objective.parts or [objective]
    modes = [mode for part in parts for mode in _modes_of(part)]
    mode = "S" if "S" in modes else None if None in modes else modes[0]
    return () if mode is None else (vocabulary.special[mode],)


def _modes_of(part: ObjectiveConfig | ObjectivePart) -> list[str | None]:
    if part.name != "ul2":
        return [part.mode]
    return [denoiser.mode for denoiser in part.denoisers or PAPERS_DENOISERS]


def _ragged(rows: Sequence[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(rows), np.array([len(row) for row in rows], np.int64))
