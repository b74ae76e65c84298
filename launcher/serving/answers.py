"""What is answered, in OpenAI's forms."""

import base64
import itertools
import time
import uuid
from collections.abc import Sequence
from typing import Any

import torch

from launcher.serving.filling import Filled
from launcher.serving.loaded import Loaded
from launcher.serving.sampling import Taken
from launcher.serving.writing import Row

Answer = dict[str, Any]


def error(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Answer:
    """OpenAI's error object; a message of ours begins with the key that it is about."""
    key = message.partition(":")[0]
    if param is None and key.isidentifier() and key != message:
        param = key
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model(name: str, created: int) -> Answer:
    """A model of the list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "shardline"}


def usage(rows: Sequence[Row], num_samples: int) -> Answer:
    """Tokens that were read and written; a prompt counts once, however many texts were written for it."""
    read, written = sum(len(row.prompt) for row in rows[::num_samples]), sum(len(row.taken) for row in rows)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Form:
    """How texts of one request are told: as /v1/completions tells them."""

    object, object_of_chunks, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, name: str):
        self.facts = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

    def whole(self, choices: list[Answer], usage: Answer) -> Answer:
        """The answer at once."""
        return {**self.facts, "object": self.object, "choices": choices, "usage": usage}

    def chunk(self, index: int, text: str, ended: str | None) -> Answer:
        """A piece of a streamed answer."""
        return {**self.facts, "object": self.object_of_chunks, "choices": [self.piece(index, text, ended)]}

    def last_chunk(self, usage: Answer) -> Answer:
        """What closes a stream, where usage is asked for."""
        return {**self.facts, "object": self.object_of_chunks, "choices": [], "usage": usage}

    def choice(self, index: int, text: str, ended: str | None, logprobs: Answer | None = None) -> Answer:
        """A text."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": ended}

    def piece(self, index: int, text: str, ended: str | None) -> Answer:
        """A piece of a text."""
        return self.choice(index, text, ended)


class ChatForm(Form):
    """As /v1/chat/completions tells them."""

    object, object_of_chunks, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, text: str, ended: str | None, logprobs: Answer | None = None) -> Answer:
        """A message."""
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": ended}

    def piece(self, index: int, text: str, ended: str | None) -> Answer:
        """A piece of a message."""
        delta = {"role": "assistant", "content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": ended}


def logprobs(loaded: Loaded, tokens: Sequence[Taken], first: int | None) -> Answer:
    """How likely tokens were; `first`: a token before them that nothing is known of, and no letter of the text if it
    is a special one.
    """
    pieces = {index: _piece(loaded, index) for index in _all_ids(tokens, first)}
    names = [pieces[index] for index in ([] if first is None else [first])] + [pieces[each.token] for each in tokens]
    unknown: list[Any] = [] if first is None else [None]
    widths = list(map(len, names))
    if first is not None:
        widths[0] = len(loaded.decode([first]))
    offsets = [0, *itertools.accumulate(widths)]
    tops = [
        {pieces[index]: value for index, value in reversed([*each.top, (each.token, each.logprob)])} for each in tokens
    ]
    return {
        "tokens": names,
        "token_logprobs": unknown + [each.logprob for each in tokens],
        "top_logprobs": unknown + tops,
        "text_offset": offsets[: len(names)],
    }


def _all_ids(tokens: Sequence[Taken], first: int | None) -> set[int]:
    ids = {index for each in tokens for index in (each.token, *(top for top, _ in each.top))}
    return ids if first is None else ids | {first}


def _piece(loaded: Loaded, index: int) -> str:
    with loaded.tokenizing:
        return str(loaded.tokenizer.decode([index]))


def embeddings(name: str, vectors: Sequence[torch.Tensor], num_tokens: int, as_base64: bool) -> Answer:
    """Vectors float32 [M] each."""
    values = [
        base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
        for vector in vectors
    ]
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    return _listed(name, data, num_tokens)


def filled(name: str, texts: Sequence[Filled]) -> Answer:
    """Texts without gaps, and what else could stand in each."""
    data = [
        {"index": index, "text": text.text, "gaps": [[candidate._asdict() for candidate in gap] for gap in text.gaps]}
        for index, text in enumerate(texts)
    ]
    return _listed(name, data, sum(text.num_tokens for text in texts))


def _listed(name: str, data: list[Answer], num_tokens: int) -> Answer:
    return {
        "object": "list",
        "model": name,
        "data": data,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
