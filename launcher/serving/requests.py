"""What may be asked, by OpenAI's keys and, for sampling, vLLM's further ones.

A key that is unknown is refused, as OpenAI refuses it: a setting passed over in silence gives other text than was asked
for. Keys of OpenAI's that have no meaning here are taken where they ask for nothing.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.mistakes import Mistake, shown
from launcher.serving.sampling import Sampling

Prompts = str | list[str] | list[int] | list[list[int]]
"""Texts or tokens, one or several."""
Length = Annotated[int, Field(ge=0, le=2**31)]
"""Tokens of the longest text."""
MOST_SAMPLES = 32
ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "dimensions": (None,),
}
"""Keys that are not done here, by their values that are no different from leaving them out."""


class Request(BaseModel):
    """Keys of all requests."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    user: str | None = None

    def refuse_what_is_not_done(self) -> None:
        """Mistake when a key asks for what is not done here."""
        for key, idle in ASKS_FOR_NOTHING.items():
            if (value := getattr(self, key, None)) not in idle:
                raise Mistake(f"{key}: {shown(value)} was found, which is not done here; leave it out")


class StreamOptions(BaseModel):
    """What else a stream is to tell."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None


class WritingRequest(Request):
    """Keys of what a decoder or an encoder-decoder is asked."""

    n: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    """Texts for each prompt; the second is drawn with the next seed, and so on."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def samplings(self, max_new_tokens: int, logprobs: int | None = None) -> list[Sampling]:
        """Settings of each of the n texts of a prompt. Mistake when one is out of bounds."""
        given: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": max_new_tokens, "logprobs": logprobs}
        for key in ("temperature", "top_p", "top_k", "repetition_penalty"):
            if (value := getattr(self, key)) is not None:
                given[key] = value
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        seed = int.from_bytes(os.urandom(6)) if self.seed is None else self.seed
        return [Sampling.of(**given, seed=seed + index) for index in range(self.n or 1)]


class CompletionRequest(WritingRequest):
    """A body of /v1/completions."""

    prompt: Prompts
    max_tokens: Length | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """It as templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatRequest(WritingRequest):
    """A body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None


class EmbeddingRequest(Request):
    """A body of /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class FillMaskRequest(Request):
    """A body of /v1/fill-mask."""

    input: str | list[str]
    top_k: int | None = Field(default=None, ge=1, le=1000)
    """Tokens for each gap."""


def as_list(prompts: Prompts, key: str) -> list[str] | list[list[int]]:
    """One or several as several. Mistake, naming the key, when there are none."""
    if not prompts:
        raise Mistake(f"{key}: it is empty; give a text")
    if isinstance(prompts, str):
        return [prompts]
    return [prompts] if isinstance(prompts[0], int) else prompts  # type: ignore[list-item, return-value]
