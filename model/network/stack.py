"""A stack of blocks with its own positions and norms: the one of a decoder or encoder, each of the two of both.

embedded tokens (+ learned positions) (+ segment) -> embedding norm? -> blocks -> norm, unless blocks end with theirs
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.mistakes import Mistake
from model.config import ModelConfig
from model.kernels.attention import AttentionPattern, resolve_backend
from model.kernels.ops import rope_tables
from model.network.blocks import Block, Surroundings
from model.network.context_ranks import ContextRanks
from model.network.layers import Embedding, FirstRow, Initializer, TokenEmbedding, make_norm
from model.network.positions import RelativeBiasTable, rope_frequencies, score_bias


class Stack(nn.Module):
    """Blocks of one side of a model, and what goes before and after them; of `context` ranks each has its rows.

    `bidirectional` says whether relative biases, its own or its layers', tell the future apart, `cross` whether blocks
    read another stack. The token embedding is given where it belongs to this stack; its weights come first.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_layers: int,
        init: Initializer,
        *,
        bidirectional: bool,
        cross: bool = False,
        context: ContextRanks | None = None,
        embedding: TokenEmbedding | None = None,
    ):
        super().__init__()
        self.config, self.bidirectional, self.ranks, self.context = config, bidirectional, init.ranks, context
        if embedding is not None:
            self.embedding = embedding
        self.position_embedding: Embedding | None = None
        if config.max_positions is not None:
            rows, name = config.max_positions + config.position_offset, init / "position_embedding"
            self.position_embedding = Embedding(rows, config.d_model, config.init_std, name)
        self.segment_embedding: FirstRow | None = None
        if config.segment_embeddings is not None:
            rows, name = config.segment_embeddings, init / "segment_embedding"
            self.segment_embedding = FirstRow(rows, config.d_model, config.init_std, name)
        self.embedding_norm = make_norm(config, init) if config.embedding_norm else None
        has_table = config.positions == "t5_bias" and not config.t5_bias_per_layer
        self.attention_bias = RelativeBiasTable(config, init / "attention_bias") if has_table else None
        self.blocks = nn.ModuleList(
            Block(config, num_layers, init / f"blocks.{i}", i, cross) for i in range(num_layers)
        )
        self.norm = make_norm(config, init) if config.has_final_norm else None
        if config.compile:
            for block in self.blocks:
                block.compile()

    def transform(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        pattern: AttentionPattern,
        memory: torch.Tensor | None = None,
        cross: AttentionPattern | None = None,
    ) -> torch.Tensor:
        """Embedded tokens x [T, M] at positions int64 [T] -> their final states [T, M]; or this rank's rows of both.

        memory [S, M] and `cross` are what cross-attention reads and how. Raises ValueError when a document is longer
        than the table of learned positions, or when the attention backend asked for cannot run here.
        """
        if self.position_embedding is not None:
            self._check_lengths(pattern)
            x = x + self.position_embedding(positions + self.config.position_offset)
        if self.segment_embedding is not None:
            x = self.segment_embedding(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        around = self._surroundings(x, positions, pattern, cross)
        for index, block in enumerate(self.blocks):
            x = self._through(block, index, x, around, memory)
        return x if self.norm is None else self.norm(x)

    def _through(self, layer: nn.Module, index: int, *inputs: Any) -> torch.Tensor:
        """What layer `index` gives; nothing of what it computes on the way is kept where the config says so."""
        if self.config.recomputes(index) and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def _check_lengths(self, pattern: AttentionPattern) -> None:
        longest, rows = pattern.max_queries, self.config.max_positions
        if rows is not None and longest > rows:
            raise Mistake(
                f"model.max_positions: a document of {longest} tokens is longer than the {rows} learned positions; "
                "raise it or lower training.sequence_length"
            )

    def _surroundings(
        self, x: torch.Tensor, positions: torch.Tensor, pattern: AttentionPattern, cross: AttentionPattern | None
    ) -> Surroundings:
        config, pattern = self.config, pattern.to(x.device)
        facts = config.head_size, config.positions, config.attention_softcap
        rope = sliding_rope = None
        if config.positions == "rope":
            rope = sliding_rope = rope_tables(positions, rope_frequencies(config, x.device))
        if config.sliding_rope_theta is not None:
            sliding_rope = rope_tables(positions, rope_frequencies(config, x.device, sliding=True))
        return Surroundings(
            pattern=pattern,
            backend=resolve_backend(config.attention_backend, x.device, x.dtype, *facts),
            rope=rope,
            bias=score_bias(config, self.attention_bias, self.bidirectional, x.device, self.ranks, self.context),
            cross=None if cross is None else cross.to(x.device),
            bidirectional=self.bidirectional,
            context=self.context,
            sliding=pattern.within(config.sliding_window),
            sliding_rope=sliding_rope,
        )


class Encoder(Stack):
    """The encoder beside a decoder."""

    def __init__(self, config: ModelConfig, init: Initializer, context: ContextRanks | None = None):
        super().__init__(config, config.encoder_layers, init, bidirectional=True, context=context)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
        """Embedded tokens x [S, M] at positions int64 [S] -> the memory [S, M] that the decoder reads."""
        return self.transform(x, positions, pattern)
