"""How products of queries and keys become attention scores, before biases are added and hidden keys left out."""

from typing import NamedTuple

import torch


class Scoring(NamedTuple):
    """A scale and, where asked for, a soft cap: the same for every attention of a model."""

    scale: float | None = None
    """Products are multiplied by it; empty means head_dim**-0.5."""
    softcap: float | None = None
    """Then they become softcap x tanh(product / softcap) (Gemma 2, arXiv 2408.00118, section 2); empty leaves them."""

    def factor(self, head_dim: int) -> float:
        """What products of heads of this width are multiplied by."""
        return head_dim**-0.5 if self.scale is None else self.scale

    def scores(self, products: torch.Tensor, head_dim: int) -> torch.Tensor:
        """The scores of products [..., Lq, Lk]."""
        scores = products * self.factor(head_dim)
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()


PLAIN = Scoring()
