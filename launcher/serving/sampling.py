"""How the next token is taken from a row's scores, by the keys that the field uses.

A row has settings and a random generator of its own, so what it draws does not depend on the rows beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.mistakes import Mistake, shown

MOST_STOPS, MOST_LOGPROBS = 16, 20


class Sampling(BaseModel):
    """Settings of a row."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_new_tokens: int = Field(default=100, ge=0, le=2**31)
    """Longest text, in tokens; less where the model's longest text leaves no room."""
    temperature: float = Field(default=0.7, ge=0, le=100, allow_inf_nan=False)
    """Scores are divided by it; 0 takes the likeliest token every time."""
    top_k: int = Field(default=0, ge=-1, le=2**31)
    """Only so many likeliest tokens are drawn from; 0 and -1 mean all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens are, whose probabilities sum to it (nucleus sampling, arXiv 1904.09751)."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Scores of tokens that are there already are divided by it, negative ones multiplied (CTRL, arXiv 1909.05858)."""
    stop: tuple[str, ...] = Field(default=(), max_length=MOST_STOPS)
    """A text ends before the first of these."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Seed of what is drawn."""
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """How many of the likeliest tokens to note at each place beside the taken one, with probabilities; none if None."""

    @classmethod
    def of(cls, spelled: Callable[[str], str] = str, **keys: Any) -> "Sampling":
        """Settings from keys that a user gave, who spells them so. Mistake, naming one, when it is out of bounds."""
        try:
            made = cls(**keys)
        except ValidationError as error:
            fault = error.errors()[0]
            key, reason = spelled(str(fault["loc"][0])), f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
            raise Mistake(f"{key}: {shown(fault['input'])} was found; {reason}") from None
        if "" in made.stop:
            raise Mistake(f"{spelled('stop')}: an empty text is in it, which every text ends with; leave it out")
        return made


class Taken(NamedTuple):
    """A token and how likely it was, before temperature and the like."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens at its place, the likeliest first."""


def taken(scores: torch.Tensor, token: int, num_top: int) -> Taken:
    """How likely a token was by scores float [V]."""
    logprobs = scores.float().log_softmax(-1)
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    return Taken(token, logprobs[token].item(), list(zip(ids.tolist(), values.tolist(), strict=True)))


class Chooser:
    """Takes the tokens of one row."""

    def __init__(self, sampling: Sampling):
        from transformers import generation

        self._warpers: list[Any] = []
        if sampling.repetition_penalty != 1:
            self._warpers.append(generation.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if draws := sampling.temperature > 0:
            self._warpers.append(generation.TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k > 0:
                self._warpers.append(generation.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(generation.TopPLogitsWarper(sampling.top_p))
        self._random = torch.Generator().manual_seed(sampling.seed) if draws else None

    def choose(self, ids: torch.Tensor, scores: torch.Tensor) -> int:
        """A token after those of the row int64 [L], by its scores float [V]."""
        left = scores.float().cpu()[None]
        for warper in self._warpers:
            left = warper(ids.cpu()[None], left)
        if self._random is None:
            return int(left.argmax(-1))
        return int(torch.multinomial(left.softmax(-1), 1, generator=self._random))
