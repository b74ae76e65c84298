"""Zero-shot multiple choice: the choice whose tokens the model finds likeliest is its answer, for every shape alike.

questions -> examples in the form the model was trained on (reading/ranking.py) -> log-likelihood of each choice
          (text_model.py) -> answers -> accuracy
"""

import dataclasses

import numpy as np

from data_pipeline.questions import Question
from data_pipeline.reading.ranking import ranking
from training.text_model import Progress, TextModel, score


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
    """How a model did on some questions."""

    questions: int
    accuracy: float
    """Share answered rightly by the likeliest choice."""
    accuracy_per_byte: float
    """The same with likelihoods taken per UTF-8 byte of the choice, so that short choices have no advantage."""
    chance: float
    """What guessing scores on average."""


def score_questions(model: TextModel, questions: list[Question], progress: Progress | None = None) -> ChoiceResult:
    """Asks a model in memory.

    Raises ValueError when a choice is no token at all, or when a question is longer than the model's learned positions.
    """
    right = per_byte = 0
    for question, scores in zip(questions, log_likelihoods(model, questions, progress), strict=True):
        sizes = np.array([len(choice.encode()) for choice in question.choices])
        right += int(np.argmax(scores)) == question.gold
        per_byte += int(np.argmax(scores / sizes)) == question.gold
    num = len(questions)
    return ChoiceResult(num, right / num, per_byte / num, sum(1 / len(each.choices) for each in questions) / num)


def log_likelihoods(model: TextModel, questions: list[Question], progress: Progress | None = None) -> list[np.ndarray]:
    """Log-likelihood in nats of every choice of every question, float64 [choices] each."""
    ranked = ranking(questions, model.encode, model.manner)

    def name(example: int) -> str:
        return f"question {ranked.question[example] + 1}"

    result = [np.zeros(len(question.choices)) for question in questions]
    for example, scored in enumerate(score(model, ranked.examples, name, progress)):
        result[ranked.question[example]][ranked.choice[example]] += scored.log_likelihood
    return result
