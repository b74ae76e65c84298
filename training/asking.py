"""What evaluations ask of a model: how likely a text is, alone or after another one, and how a text goes on.

    (context, continuation) -> ids as the whole text has them -> the context's end that fits -> likelihood
    text                    -> windows of the model's length  -> likelihood of each token once
    prompt                  -> the likeliest token, again and again, until a stop

The context is what the model's shape reads both ways: the prefix of a prefix model, the encoder's input of an
encoder-decoder. Nothing is cached between tokens: a token more costs a pass over the text so far.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from common.mistakes import Mistake, cut
from data_pipeline.reading.ranking import Asked, ask
from training.text_model import Progress, Scored, TextModel, score


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of one request."""

    value: float
    """Log-likelihood in nats; of an encoder the pseudo-log-likelihood (arXiv 1910.14659)."""
    is_greedy: bool
    """Whether the model would have written just this."""
    is_cut: bool = False
    """Whether the beginning of the context found no room."""


def of_continuations(
    model: TextModel, requests: Sequence[tuple[str, str]], progress: Progress | None = None
) -> list[Likelihood]:
    """How likely each continuation is after its context. ValueError when one is longer than the model reads at once."""
    asked, is_cut = [], []
    for context, continuation in requests:
        whole = _paired(model, context, continuation)
        fitting = _fitted(model, whole)
        is_cut.append(len(fitting.query) < len(whole.query))
        asked.append(fitting)
    return [
        Likelihood(value, is_greedy, was_cut)
        for (value, is_greedy), was_cut in zip(_summed(model, asked, progress), is_cut, strict=True)
    ]


def of_texts(model: TextModel, texts: Sequence[str], progress: Progress | None = None) -> list[float]:
    """Log-likelihood of each text, every token of it once; a long one in windows."""
    asked: list[Asked] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        made = [_begun(model, part) for part in _windows(model.encode(text).astype(np.int64), _window(model))]
        asked += made
        owners += [number] * len(made)
    result = [0.0] * len(texts)
    for owner, (value, _) in zip(owners, _summed(model, asked, progress), strict=True):
        result[owner] += value
    return result


def continued(model: TextModel, prompts: Sequence[str], stops: Sequence[Sequence[str]], max_tokens: int) -> list[str]:
    """What the model writes after each prompt, greedily, up to the first of its `stops`, the end or `max_tokens`.

    ValueError of an encoder, which writes nothing, and where so many tokens leave no room for a prompt.
    """
    if model.shape == "encoder":
        raise Mistake("generate_until: shape encoder fills in places and continues no text; leave such tasks out")
    room = _room(model, max_tokens + 1)
    if room < 1:
        raise Mistake(
            f"max_gen_toks: {max_tokens} leaves no room for a prompt in the {model.length} tokens that the model reads "
            "at once; set generation_kwargs.max_gen_toks of the task, or its until"
        )
    queries = [model.encode(prompt).astype(np.int64)[-room:] for prompt in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    texts, active = [""] * len(prompts), list(range(len(prompts)))
    while active:
        asked = [_begun(model, Asked(queries[i], np.array([*written[i], model.eos_id], np.int64))) for i in active]
        still = []
        for i, scored in zip(active, _scored(model, asked), strict=True):
            if scored.last == model.eos_id:
                continue
            written[i].append(scored.last)
            texts[i], stopped = _before(model.decode(written[i]), stops[i])
            if not stopped and len(written[i]) < max_tokens:
                still.append(i)
        active = still
    return texts


def _paired(model: TextModel, context: str, continuation: str) -> Asked:
    """Ids of both: beside an encoder each alone, else those that the two have as one text.

    Blanks at the end of a context go to the continuation, for pieces begin with them (as lm-eval does it).
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    query = model.encode(stripped).astype(np.int64)
    if model.shape == "encdec":
        return Asked(query, model.encode(continuation).astype(np.int64))
    whole = model.encode(stripped + continuation).astype(np.int64)
    return _begun(model, Asked(query, whole[len(query) :]))


def _begun(model: TextModel, asked: Asked) -> Asked:
    """The same with something before it, which a decoder needs to predict a first token."""
    if len(asked.query) or model.shape in ("encoder", "encdec") or (asked.opens and model.manner.opening):
        return asked
    return asked._replace(query=np.array([model.eos_id], np.int64))


def _num_around(model: TextModel) -> int:
    """Tokens besides the text itself in the row where a query stands, a blank's second sentinel left out."""
    manner = model.manner
    return len(manner.opening) + len(manner.mode) + len(manner.closing) + (manner.form == "blank")


def _room(model: TextModel, num_asked: int) -> int:
    """Tokens of a query that fit before so many of a continuation; the last of these is not read by a decoder."""
    written = num_asked + (model.manner.form == "blank")
    if model.shape == "encdec":
        return model.length - _num_around(model) if written <= model.length else -1
    return model.length - _num_around(model) - written + (model.shape != "encoder")


def _window(model: TextModel) -> int:
    """Tokens of a text that are asked at once, with something before them."""
    if model.shape == "encdec":
        return model.length - (model.manner.form == "blank")
    return _room(model, 0) - (not model.manner.opening)


def _fitted(model: TextModel, asked: Asked) -> Asked:
    """The same without the beginning of a query that is too long."""
    if not len(asked.choice):
        raise Mistake("a continuation has no token of its own after its context; write it out in the task")
    room = _room(model, len(asked.choice))
    if room < (0 if model.manner.opening or model.shape in ("encoder", "encdec") else 1):
        text = cut(repr(model.decode(asked.choice.tolist())))
        raise Mistake(
            f"a continuation of {len(asked.choice)} tokens, {text}, does not fit in the {model.length} tokens that the "
            "model reads at once; leave it out of the task, or have more read at once with --length"
        )
    return asked._replace(query=asked.query[max(0, len(asked.query) - room) :])


def _windows(ids: np.ndarray, room: int) -> Iterator[Asked]:
    """A text as parts of at most `room` tokens, each asked after as much as fits, one token at least.

    The windows of lm-eval: only the last one, which is shorter, has more than one token before it.
    """
    for begin, end in pairwise([*range(0, len(ids), room), len(ids)]):
        before = max(0, min(begin - 1, end - room - 1))
        yield Asked(ids[before:begin], ids[begin:end], opens=not begin)


def _summed(model: TextModel, asked: Sequence[Asked], progress: Progress | None) -> list[tuple[float, bool]]:
    """Likelihood of each, over all examples that it takes, and whether all its tokens are the likeliest."""
    if not asked:
        return []
    examples, owners = ask(asked, model.manner)
    found = [(0.0, True)] * len(asked)
    for owner, scored in zip(
        owners.tolist(), score(model, examples, lambda i: _name(owners, i), progress), strict=True
    ):
        value, is_greedy = found[owner]
        found[owner] = (value + scored.log_likelihood, is_greedy and scored.is_greedy)
    return found


def _scored(model: TextModel, asked: Sequence[Asked]) -> list[Scored]:
    examples, owners = ask(asked, model.manner)
    return list(score(model, examples, lambda i: _name(owners, i)))


def _name(owners: np.ndarray, example: int) -> str:
    return f"request {owners[example] + 1}"


def _before(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stops, and whether there is one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
