"""Prediction of tokens beyond the next one (DeepSeek-V3, arXiv 2412.19437, section 2.2): one module for each depth.

    embeddings of the tokens k places on  -> norm \
                                                   [T, 2M] -> matrix [M, 2M] -> block -> norm -> states of depth k
    states of depth k - 1, or the stack's -> norm /

From its states of depth k a token is asked, by the model's own head, for the label of the token k places on. Both are
of its document, or it is asked for nothing.
"""

import torch
from torch import nn

from model.config import ModelConfig
from model.network.blocks import Block, Surroundings
from model.network.layers import CutInside, Initializer, make_norm
from model.network.loss import IGNORED


def places_on(
    tokens: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels int64 [T] of a pack -> those `depth` places on in the same document, at each place.

    positions int64 [T] begin at 0 in each document. Behind its end a label is -100 and the token any.
    """
    inside = positions.roll(-depth) == positions + depth
    return tokens.roll(-depth), torch.where(inside, labels.roll(-depth), IGNORED)


class FurtherDepth(nn.Module):
    """One depth more; its block is layer `index` of a stack of `num_layers`, with cross-attention where asked for."""

    def __init__(self, config: ModelConfig, num_layers: int, init: Initializer, index: int, cross: bool):
        super().__init__()
        self.embedding_norm = make_norm(config, init)
        self.state_norm = make_norm(config, init)
        self.merge = CutInside(2 * config.d_model, config.d_model, config.init_std, init / "merge")
        self.block = Block(config, num_layers, init / "block", index, cross)
        self.norm = make_norm(config, init) if config.has_final_norm else None

    def forward(
        self, states: torch.Tensor, embedded: torch.Tensor, around: Surroundings, memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States [T, M] of the depth before, embedded [T, M] tokens of this one -> its states [T, M]."""
        both = torch.cat((self.embedding_norm(embedded), self.state_norm(states)), 1)
        states = self.block(self.merge(both), around, memory)
        return states if self.norm is None else self.norm(states)
