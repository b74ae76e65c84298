"""What an encoder does with texts, several at once: fill their gaps, or make a vector of each.

All gaps of a text are filled at once, each for itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from common.mistakes import Mistake
from launcher.serving.loaded import Loaded
from launcher.serving.sampling import Chooser, Sampling


class Candidate(NamedTuple):
    """A token for a gap."""

    token: int
    text: str
    score: float
    """Its probability."""


class Filled(NamedTuple):
    """A text without gaps."""

    text: str
    gaps: list[list[Candidate]]
    """The likeliest tokens for each gap, the likeliest first."""
    num_tokens: int


def gaps_of(loaded: Loaded, text: str, where: str) -> list[int]:
    """Tokens of a text with gaps. Mistake, which begins with `where`, when it has none."""
    mask = loaded.tokenizer.mask_token
    if mask is None or mask not in text:
        raise Mistake(f"{where}: {text!r} has no {mask or 'mask'}; mark the tokens to fill with it")
    return loaded.encode(text)


@torch.inference_mode()
def fill(loaded: Loaded, texts: Sequence[list[int]], sampling: Sampling, num_candidates: int = 1) -> list[Filled]:
    """Fills the gaps of texts given as tokens; each gap's token is taken by the settings, special ones never."""
    tokenizer = loaded.tokenizer
    special = [index for index, piece in tokenizer.added_tokens_decoder.items() if piece.special]
    all_scores = loaded.model(**loaded.batch(texts, left=False)).logits
    done = []
    for ids, scores in zip(texts, all_scores, strict=True):
        scores = scores[: len(ids)].float()
        scores[:, special] = -torch.inf
        places = [place for place, index in enumerate(ids) if index == tokenizer.mask_token_id]
        chooser, filled = Chooser(sampling), torch.tensor(ids)
        for place in places:
            filled[place] = chooser.choose(torch.tensor(ids), scores[place])
        gaps = [_candidates(loaded, scores[place], num_candidates) for place in places]
        done.append(Filled(loaded.decode(filled.tolist()), gaps, len(ids)))
    return done


def _candidates(loaded: Loaded, scores: torch.Tensor, count: int) -> list[Candidate]:
    """The likeliest tokens by scores float [V]."""
    values, ids = scores.softmax(-1).topk(min(count, len(scores)))
    return [
        Candidate(index, loaded.decode([index]), value)
        for index, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]


@torch.inference_mode()
def embed(loaded: Loaded, texts: Sequence[list[int]]) -> torch.Tensor:
    """Vectors float32 [B, M] of texts given as tokens: the mean of the last layer's normed states."""
    inputs = loaded.batch(texts, left=False)
    states = loaded.model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return ((states * mask).sum(1) / mask.sum(1)).float().cpu()
