"""Texts by a decoder or an encoder-decoder, several at once.

    rows (prompt and settings) -> one padded batch -> transformers' generate with a cache
    each step: every row's own Chooser takes its token -> its text grows -> who waits for it is told

A row's greedy text is the same alone and in a batch, and so is what it draws.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from launcher.serving.loaded import Loaded
from launcher.serving.sampling import Chooser, Sampling, Taken, taken
from launcher.serving.text import TextSoFar
from model.exchange.in_transformers import cache_for


@dataclasses.dataclass(eq=False)
class Row:
    """A prompt, how it is to be gone on from, and what came of it so far."""

    prompt: list[int]
    sampling: Sampling
    text: TextSoFar
    most: int
    """Tokens that are written at most."""
    tell: Callable[["Row"], None] = lambda row: None
    """Called when there is more of it, and at its end, by the thread that writes."""
    taken: list[Taken] = dataclasses.field(default_factory=list)
    """Tokens that were written; what is known of them is less than that where nobody asked for probabilities."""
    ended: str | None = None
    """Why it ended: "stop" (an end token or a stop string) or "length", as OpenAI says; None before."""
    error: Exception | None = None
    """What broke it."""
    cancelled: bool = False
    """Set by who does not wait for it any more."""

    @classmethod
    def of(cls, loaded: Loaded, prompt: list[int], sampling: Sampling) -> "Row":
        """A row for a prompt. Mistake when it is none that the model can read."""
        loaded.check(prompt)
        before = 1 if loaded.kind == "encdec" else len(prompt)
        room = sampling.max_new_tokens if loaded.longest is None else loaded.longest - before
        context = [] if loaded.kind == "encdec" else prompt
        text = TextSoFar(loaded.decode, context, sampling.stop)
        return cls(prompt, sampling, text, min(sampling.max_new_tokens, room))

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes."""
        return self.ended is not None or self.error is not None or self.cancelled

    def add(self, token: Taken, end_ids: frozenset[int]) -> None:
        """Appends a token and ends the row where it ends."""
        self.taken.append(token)
        if token.token in end_ids:
            self.end("stop")
            return
        self.text.add(token.token)
        if self.text.stopped:
            self.end("stop")
        elif len(self.taken) >= self.most:
            self.end("length")
        else:
            self.tell(self)

    def end(self, why: str) -> None:
        """Nothing more comes."""
        self.text.finish()
        self.ended = "stop" if self.text.stopped else why
        self.tell(self)


@torch.inference_mode()
def write(loaded: Loaded, rows: Sequence[Row]) -> None:
    """Writes all rows to their ends, as one batch."""
    for row in rows:
        if not row.most:
            row.end("length")
    rows = [row for row in rows if not row.is_done]
    if not rows:
        return
    model = loaded.model
    is_encdec = loaded.kind == "encdec"
    inputs = loaded.batch([row.prompt for row in rows], left=not is_encdec)
    steps = _Steps(rows, loaded.end_ids, None if is_encdec else inputs["input_ids"].shape[1])
    model.generate(
        **inputs,
        max_new_tokens=max(row.most for row in rows),
        do_sample=False,
        num_beams=1,
        eos_token_id=None,  # rows end by themselves
        pad_token_id=loaded.pad_id,
        logits_processor=[steps.choose],
        stopping_criteria=[steps.note],
        **(cache_for(model) if is_encdec else {}),
    )


class _Steps:
    """What `generate` calls at each step, for all rows."""

    def __init__(self, rows: Sequence[Row], end_ids: frozenset[int], width: int | None):
        self.rows, self.end_ids = rows, end_ids
        self.choosers = [Chooser(row.sampling) for row in rows]
        self.begins = [0 if width is None else width - len(row.prompt) for row in rows]
        """Where each row begins behind its padding."""
        self.new: list[Taken | None] = []

    def choose(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] that leave each row but one token to take after ids [B, L]."""
        self.new = [None if row.is_done else self._take(index, ids, scores) for index, row in enumerate(self.rows)]
        only = torch.full_like(scores, -torch.inf)
        for index, new in enumerate(self.new):
            only[index, 0 if new is None else new.token] = 0.0
        return only

    def _take(self, index: int, ids: torch.Tensor, scores: torch.Tensor) -> Taken:
        token = self.choosers[index].choose(ids[index, self.begins[index] :], scores[index])
        wanted = self.rows[index].sampling.logprobs
        return Taken(token, 0.0, []) if wanted is None else taken(scores[index], token, wanted)

    def note(self, ids: torch.Tensor, _: Any) -> torch.Tensor:
        """Which rows are done, bool [B], now that their tokens are taken."""
        for row, new in zip(self.rows, self.new, strict=True):
            if new is not None:
                row.add(new, self.end_ids)
        return torch.tensor([row.is_done for row in self.rows], device=ids.device)


@torch.inference_mode()
def score(loaded: Loaded, prompt: list[int], num_top: int) -> list[Taken]:
    """How likely a causal model finds each token of a prompt but its first."""
    ids = torch.tensor([prompt], device=loaded.model.device)
    logits = loaded.model(input_ids=ids).logits[0]
    return [taken(row, token, num_top) for row, token in zip(logits, prompt[1:], strict=False)]
