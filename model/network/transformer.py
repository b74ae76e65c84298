"""The network: tokens of a pack in, loss or logits out.

    tokens -> embedding -> stack (stack.py) of blocks (blocks.py) -> head -> logits, or loss without logits (loss.py)
                             ^ cross-attention
    encoder's tokens -> the same embedding -> encoder (stack.py), in an encoder-decoder

It knows nothing of processes or devices; every weight is used only inside the module that owns it,
so that sharded training may gather weights module by module.
"""

from typing import NamedTuple

import torch
from torch import nn

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network.context_ranks import ContextRanks, rows_of
from model.network.layers import CutRows, Initializer, TokenEmbedding
from model.network.loss import LossOutput, chunked_cross_entropy
from model.network.stack import Encoder, Stack
from model.network.tensor_ranks import TensorRanks


class EncoderInput(NamedTuple):
    """What the encoder of an encoder-decoder reads: document j of it belongs to document j of the decoder."""

    tokens: torch.Tensor
    """int64 [S]."""
    positions: torch.Tensor
    """int64 [S], from 0 in each document."""
    pattern: AttentionPattern
    """Bidirectional, over the S tokens."""
    cross: AttentionPattern
    """`AttentionPattern.cross` of the decoder's T tokens over these."""


class Head(CutRows):
    """Output projection [V, M]; with labels it gives the loss."""

    is_hidden = False

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, labels: torch.Tensor | None = None, z_loss: float = 0.0
    ) -> torch.Tensor | LossOutput:
        """[T, M] -> logits [T, V], or the loss against labels int64 [T]."""
        if labels is None:
            assert self.ranks is None, "logits are for layers in one piece"
            return nn.functional.linear(x, self.weight)
        return chunked_cross_entropy(x, self.weight, labels, z_loss, ranks=self.ranks)


class Transformer(Stack):
    """The model of `config` over `vocab_size` tokens, weights drawn from `seed`; a part where `ranks` share it.

    They must divide heads, key/value heads, inner width and vocabulary, and with sequence parallelism every row. Where
    `context` ranks share rows, they must divide these and the heads that are left; each gets the loss of its rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        seed: int = 0,
        ranks: TensorRanks | None = None,
        context: ContextRanks | None = None,
    ):
        init = Initializer(seed, ranks=ranks)
        super().__init__(
            config,
            config.num_layers,
            init,
            bidirectional=config.shape in ("prefix", "encoder"),
            cross=config.shape == "encdec",
            context=context,
            embedding=TokenEmbedding(vocab_size, config.d_model, config.init_std, init / "embedding"),
        )
        self.vocab_size = vocab_size
        self.head = Head(config.d_model, (vocab_size,), config.init_std, init / "head")
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.encoder = Encoder(config, init / "encoder", context) if config.shape == "encdec" else None

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pattern: AttentionPattern,
        labels: torch.Tensor | None = None,
        z_loss: float = 0.0,
        encoder: EncoderInput | None = None,
    ) -> torch.Tensor | LossOutput:
        """Logits [T, V], or with labels the loss summed over targets.

        tokens and positions int64 [T], labels int64 [T] with -100 where there is no target; `encoder` is for an
        encoder-decoder and for no other. Raises ValueError when a document is longer than the table of learned
        positions, or when the attention backend asked for cannot run here.
        """
        assert (encoder is None) == (self.encoder is None), "an encoder-decoder reads two streams, others one"
        tokens, positions = rows_of(tokens, self.context), rows_of(positions, self.context)
        labels = None if labels is None else rows_of(labels, self.context)
        if self.encoder is None or encoder is None:
            states = self.transform(self.embedding.complete(self.embedding(tokens)), positions, pattern)
        else:
            # One call of the embedding, so that sharded training gathers it once; copies, for compiled blocks are
            # specialised on views.
            read_tokens, read_positions = (rows_of(x, self.context) for x in (encoder.tokens, encoder.positions))
            both = self.embedding(torch.cat((read_tokens, tokens)))
            parts = both.split((read_tokens.shape[0], tokens.shape[0]))
            read, x = (self.embedding.complete(part.clone()) for part in parts)
            memory = self.encoder(read, read_positions, encoder.pattern)
            states = self.transform(x, positions, pattern, memory, encoder.cross)
        return self.head(states, labels, z_loss)
