"""Multiple choice as examples of an objective: which of some texts goes best after, or into, another.

    Question -> one example per choice, in the form the model was trained on (masked_lm: several)

The choice whose tokens the model finds likeliest is its answer; nothing is generated. Texts are taken as they are:
where a blank belongs between query and choice, the choice begins with it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig, ObjectivePart
from data_pipeline.questions import Question
from data_pipeline.reading.examples import Examples, Ragged
from data_pipeline.reading.objectives import PAPERS_DENOISERS
from data_pipeline.vocabulary import Vocabulary

Encode = Callable[[str], np.ndarray]
Form = Literal["continuation", "blank", "masked"]


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


def ranking(
    questions: list[Question], encode: Encode, vocabulary: Vocabulary, objective: ObjectiveConfig, shape: str
) -> Ranking:
    """Examples for every choice of every question. ValueError when a choice is no token at all."""
    form = form_of(objective, shape)
    mode = _mode(objective, vocabulary)
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    owners: list[tuple[int, int]] = []
    for number, question in enumerate(questions):
        query = np.concatenate(([vocabulary.bos], encode(question.query))).astype(np.int64)
        for place, text in enumerate(question.choices):
            choice = encode(text).astype(np.int64)
            if not len(choice):
                raise Mistake(f"question {number + 1}: choice {text!r} has no token; write it out")
            made = list(_rows(form, query, choice, vocabulary, mode))
            rows += made
            owners += [(number, place)] * len(made)
    inputs, targets, scored = zip(*rows, strict=True)
    examples = Examples(_ragged(inputs), _ragged(targets), np.concatenate(scored))
    question_of, choice_of = np.array(owners, np.int64).T
    return Ranking(examples, question_of, choice_of)


def _mode(objective: ObjectiveConfig, vocabulary: Vocabulary) -> list[int]:
    """The piece that a model trained on blanks knows before a text whose end is missing: S where it was trained on it.

    Else there is none, unless every text it ever saw had one.
    """
    parts: Sequence[ObjectiveConfig | ObjectivePart] = objective.parts or [objective]
    modes = [mode for part in parts for mode in _modes_of(part)]
    mode = "S" if "S" in modes else None if None in modes else modes[0]
    return [] if mode is None else [vocabulary.special[mode]]


def _modes_of(part: ObjectiveConfig | ObjectivePart) -> list[str | None]:
    if part.name != "ul2":
        return [part.mode]
    return [denoiser.mode for denoiser in part.denoisers or PAPERS_DENOISERS]


def _rows(
    form: Form, query: np.ndarray, choice: np.ndarray, vocabulary: Vocabulary, mode: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs, targets, and which targets count."""
    if form == "continuation":
        yield query, choice, np.ones(len(choice), bool)
    elif form == "blank":
        blank, eos = vocabulary.first_sentinel, vocabulary.eos
        inputs = np.concatenate((query[:1], mode, query[1:], [blank, eos])).astype(np.int64)
        yield inputs, np.concatenate(([blank], choice)), np.arange(len(choice) + 1) > 0
    else:
        text = np.concatenate((query, choice, [vocabulary.eos]))
        for place in range(len(query), len(query) + len(choice)):
            masked = text.copy()
            masked[place] = vocabulary.special["mask"]
            yield masked, text, np.arange(len(text)) == place


def _ragged(rows: tuple[np.ndarray, ...]) -> Ragged:
    return Ragged(np.concatenate(rows), np.array([len(row) for row in rows], np.int64))
