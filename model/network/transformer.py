"""The network: tokens of a pack in, loss or logits out.

    tokens -> embedding -> stack (stack.py) of blocks (blocks.py) -> head -> logits, or loss without logits (loss.py)
                             ^ cross-attention         -> further depths, in training (multi_token.py) -> the same head
    encoder's tokens -> the same embedding -> encoder (stack.py), in an encoder-decoder

It knows nothing of processes or devices; every weight is used only inside the module that owns it,
so that sharded training may gather weights module by module.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from model.config import MULTI_TOKEN_WEIGHT, ModelConfig
from model.kernels.attention import AttentionPattern
from model.kernels.ops import activate
from model.network.context_ranks import ContextRanks, rows_of
from model.network.layers import CutInside, CutRows, Initializer, TokenEmbedding, make_norm
from model.network.loss import LossOutput, Shaping, chunked_cross_entropy
from model.network.multi_token import FurtherDepth, places_on
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


class HeadTransform(nn.Module):
    """What states go through before the output projection: linear map [M, M], activation, norm (BERT's)."""

    def __init__(self, config: ModelConfig, init: Initializer):
        super().__init__()
        self.dense = CutInside(config.d_model, config.d_model, config.init_std, init / "dense", config.bias)
        self.activation = config.plain_activation
        self.norm = make_norm(config, init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, M] -> [T, M], or this rank's rows of both."""
        return self.norm(activate(self.dense(x), self.activation))


class Head(CutRows):
    """Output projection [V, M], with a bias [V] where asked for; with labels it gives the loss."""

    is_hidden = False

    def __init__(self, config: ModelConfig, vocab_size: int, init: Initializer):
        super().__init__(config.d_model, (vocab_size,), config.init_std, init, config.head_bias)
        self.shaping = Shaping(config.logit_scale, config.logit_softcap)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, labels: torch.Tensor | None = None, z_loss: float = 0.0
    ) -> torch.Tensor | LossOutput:
        """[T, M] -> logits [T, V], or the loss against labels int64 [T]."""
        if labels is None:
            assert self.ranks is None, "logits are for layers in one piece"
            return self.shaping.logits(nn.functional.linear(x, self.weight, self.bias))
        return chunked_cross_entropy(
            x, self.weight, labels, z_loss, ranks=self.ranks, bias=self.bias, shaping=self.shaping
        )


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
            embedding=TokenEmbedding(
                vocab_size, config.d_model, config.init_std, init / "embedding", config.embedding_scale
            ),
        )
        self.vocab_size = vocab_size
        self.head_transform = HeadTransform(config, init / "head_transform") if config.head_transform else None
        self.head = Head(config, vocab_size, init / "head")
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.encoder = Encoder(config, init / "encoder", context) if config.shape == "encdec" else None
        self.multi_token = nn.ModuleList()
        for depth in range(config.multi_token_depths):
            name, cross = init / f"multi_token.{depth}", config.shape == "encdec"
            module = FurtherDepth(config, config.num_layers, name, config.num_layers + depth, cross)
            if config.compile:
                module.block.compile()
            self.multi_token.append(module)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pattern: AttentionPattern,
        labels: torch.Tensor | None = None,
        z_loss: float = 0.0,
        encoder: EncoderInput | None = None,
        further_weight: float = MULTI_TOKEN_WEIGHT,
    ) -> torch.Tensor | LossOutput:
        """Logits [T, V], or with labels the loss summed over targets, to which in training further depths add theirs.

        tokens and positions int64 [T], labels int64 [T] with -100 where there is no target; `encoder` is for an
        encoder-decoder and for no other. `further_weight` is that of the mean of the further depths' losses. Raises
        ValueError when a document is longer than the table of learned positions, or when the attention backend asked
        for cannot run here.
        """
        assert (encoder is None) == (self.encoder is None), "an encoder-decoder reads two streams, others one"
        depths = range(1, 1 + len(self.multi_token)) if labels is not None and self.training else ()
        further = [places_on(tokens, labels, positions, depth) for depth in depths if labels is not None]
        positions = rows_of(positions, self.context)
        labels = None if labels is None else rows_of(labels, self.context)
        read, x, *embedded = self._embedded(encoder.tokens if encoder else None, tokens, *(on for on, _ in further))
        memory = cross = None
        if self.encoder is not None and encoder is not None and read is not None:
            memory = self.encoder(read, rows_of(encoder.positions, self.context), encoder.pattern)
            cross = encoder.cross
        assert x is not None
        states = self.transform(x, positions, pattern, memory, cross)
        if labels is None or not further:
            return self._predicted(states, labels, z_loss)
        around = self._surroundings(states, positions, pattern, cross)
        found = [self._predicted(states, labels, z_loss)]
        for depth, (module, x, (_, asked)) in enumerate(zip(self.multi_token, embedded, further, strict=True), 1):
            own = around.pattern.ahead(depth)
            around_it = around._replace(pattern=own, sliding=own.within(self.config.sliding_window))
            states = self._through(module, self.config.num_layers + depth - 1, states, x, around_it, memory)
            found.append(self._predicted(states, rows_of(asked, self.context), z_loss))
        return _summed(found, further_weight)

    def _predicted(self, states: torch.Tensor, labels: torch.Tensor | None, z_loss: float) -> Any:
        """Logits or loss of final states [T, M] of any depth."""
        if self.head_transform is not None:
            states = self.head_transform(states)
        return self.head(states, labels, z_loss)

    def _embedded(self, *streams: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Embeddings of this rank's rows of each stream [T], of those that are there.

        One call of the embedding, so that sharded training gathers it once; copies of its parts, for compiled blocks
        are specialised on views.
        """
        there = [rows_of(stream, self.context) for stream in streams if stream is not None]
        if len(there) == 1:
            parts = [self.embedding.complete(self.embedding(there[0]))]
        else:
            both = self.embedding(torch.cat(there)).split([len(stream) for stream in there])
            parts = [self.embedding.complete(part.clone()) for part in both]
        return [parts.pop(0) if stream is not None else None for stream in streams]


def _summed(losses: list[LossOutput], further_weight: float) -> LossOutput:
    """The first of the losses, with the mean of the others added to what carries the gradient."""
    first, *others = losses
    mean = torch.stack([loss.loss_sum for loss in others]).mean()
    sums = torch.stack([loss.cross_entropy_sum for loss in others])
    return first._replace(loss_sum=first.loss_sum + further_weight * mean, further_sums=sums)
