"""Blocks: attention and feed-forward around a residual stream, the same for every shape.

    decoder, encoder    x + attention(norm(x)), then x + feed-forward(norm(x))
    beside an encoder   the same with x + cross-attention(norm(x), encoder's output) in between
    parallel            x + attention(norm(x)) + feed-forward(norm(x)), one norm for both or one for each

`norm_placement` moves the norms: norm(x + f(x)), x + norm(f(norm(x))) or x + norm(f(x)) in place of x + f(norm(x)).
What a token may see is in the pattern alone; a block knows nothing of shapes.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern, attend
from model.kernels.bias import AttentionBias
from model.kernels.ops import activate, gate_by_sigmoid, rotate, rotate_split
from model.kernels.scoring import Scoring
from model.network.context_ranks import ContextRanks
from model.network.layers import CutColumns, CutRows, Initializer, RMSNorm, make_norm
from model.network.positions import RelativeBiasTable, relative_bias


class Surroundings(NamedTuple):
    """What all blocks of a stack are given in one pass, besides the residual stream."""

    pattern: AttentionPattern
    """Who attends to whom."""
    backend: str
    """Attention kernel, as `resolve_backend` gave it."""
    rope: tuple[torch.Tensor, torch.Tensor] | None = None
    """Cosines and sines of `rope_tables`, where positions are rotary."""
    bias: AttentionBias | None = None
    """Added to scores of self-attention, where positions are biases; empty where each layer has its own."""
    bidirectional: bool = False
    """Whether these tell the future apart."""
    cross: AttentionPattern | None = None
    """Who of the decoder attends to whom of the encoder, where there is one."""
    context: ContextRanks | None = None
    """Who shares rows with this rank; patterns are of whole rows all the same, biases of the heads that it has then."""
    sliding: AttentionPattern | None = None
    """`pattern` within the window, where some layers have one."""
    sliding_rope: tuple[torch.Tensor, torch.Tensor] | None = None
    """`rope` of these layers."""


class Attention(nn.Module):
    """Self-attention of layer `index` with grouped heads (arXiv 2305.13245); q, k, v in one matrix [(H + 2G) D, M].

    Below them the matrix has the gate's H D rows, where there is one.
    """

    def __init__(self, config: ModelConfig, residual_std: float, init: Initializer, index: int):
        super().__init__()
        self.slides, self.rotates, self.scoring = config.slides(index), config.rotates(index), scoring_of(config)
        heads, self.head_dim = (config.num_heads, config.kv_heads, config.kv_heads), config.head_size
        self.heads = tuple(map(init.split, heads))
        self.gate_heads = self.heads[0] if config.attention_gate else 0
        sections = tuple(count * self.head_dim for count in (*heads, *heads[:1] * config.attention_gate))
        self.qkv = CutRows(config.d_model, sections, config.init_std, init / "qkv", config.has_qkv_bias)
        self.norms_all_heads = config.qk_norm == "all_heads"
        assert not self.norms_all_heads or init.ranks is None, "ranks that share heads have no mean over all of them"
        self.q_norm, self.k_norm = (self._norm(config, count, init) if config.qk_norm else None for count in heads[:2])
        self.config = config
        self.relative_bias = RelativeBiasTable(config, init / "relative_bias") if config.t5_bias_per_layer else None
        bias = config.has_attention_output_bias
        self.output = CutColumns(sections[0], config.d_model, residual_std, init / "output", bias)

    def _norm(self, config: ModelConfig, num_heads: int, init: Initializer) -> RMSNorm:
        width = self.head_dim * (num_heads if self.norms_all_heads else 1)
        return RMSNorm(width, config.norm_eps, init.ranks, config.norm == "rmsnorm_1p")

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, around: Surroundings) -> torch.Tensor:
        """Attention(x), plus residual where it is given, all [T, M]."""
        rope = (around.sliding_rope if self.slides else around.rope) if self.rotates else None
        qkv, gate = _apart(self.qkv(x).unflatten(1, (-1, self.head_dim)), self.gate_heads)
        q, k, v = self._queries_keys_values(qkv, rope)
        pattern = around.sliding if self.slides else around.pattern
        assert pattern is not None, "a layer that slides needs its pattern"
        bias = around.bias
        if self.relative_bias is not None:
            bias = _own_bias(self.relative_bias(), self.config, around)
        attended = _attend(q, k, v, pattern, around.backend, around.context, self.scoring, bias)
        return self.output(attended if gate is None else gate_by_sigmoid(attended, gate), residual)

    def _queries_keys_values(
        self, qkv: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[T, H + 2G, D] -> q [T, H, D], k and v [T, G, D], normed and rotated where the config says."""
        if self.q_norm is None and rope is not None:
            return rotate_split(qkv, self.heads[0], self.heads[1], *rope)
        q, k, v = qkv.split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._normed(self.q_norm, q), self._normed(self.k_norm, k)
        return (q, k, v) if rope is None else (rotate(q, *rope), rotate(k, *rope), v)

    def _normed(self, norm: RMSNorm, heads: torch.Tensor) -> torch.Tensor:
        """[T, A, D] -> the same, head by head or all at once."""
        return norm(heads.flatten(1)).unflatten(1, (-1, self.head_dim)) if self.norms_all_heads else norm(heads)


class CrossAttention(nn.Module):
    """Attention of a decoder to its encoder's output (arXiv 1706.03762); k and v in one matrix [2 G D, M].

    It has no positions, windows or norms on queries and keys, whatever self-attention has; a scale and a soft cap of
    scores, and a gate, of the decoder's states, where that has such.
    """

    def __init__(self, config: ModelConfig, residual_std: float, init: Initializer):
        super().__init__()
        self.head_dim, std, bias = config.head_size, config.init_std, config.has_qkv_bias
        self.scoring = scoring_of(config)
        query, key = config.num_heads * self.head_dim, config.kv_heads * self.head_dim
        self.gate_heads = init.split(config.num_heads) if config.attention_gate else 0
        self.q = CutRows(config.d_model, (query,) * (1 + config.attention_gate), std, init / "q", bias)
        self.kv = CutRows(config.d_model, (key, key), std, init / "kv", bias)
        bias = config.has_attention_output_bias
        self.output = CutColumns(query, config.d_model, residual_std, init / "output", bias)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, residual: torch.Tensor | None, around: Surroundings
    ) -> torch.Tensor:
        """Attention(x, memory), plus residual where it is given; x, residual [T, M], memory [S, M]."""
        assert around.cross is not None, "cross-attention needs its pattern"
        q, gate = _apart(self.q(x).unflatten(1, (-1, self.head_dim)), self.gate_heads)
        k, v = self.kv(memory).unflatten(1, (-1, self.head_dim)).chunk(2, 1)
        attended = _attend(q, k, v, around.cross, around.backend, around.context, self.scoring)
        return self.output(attended if gate is None else gate_by_sigmoid(attended, gate), residual)


def scoring_of(config: ModelConfig) -> Scoring:
    """How all attentions of a model score, cross-attention too (as T5Gemma's)."""
    return Scoring(config.attention_scale, config.attention_softcap)


def _apart(heads: torch.Tensor, gate_heads: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[T, A, D] -> all but the last so many heads, and those as a gate [T, gate_heads D]."""
    if not gate_heads:
        return heads, None
    rest, gate = heads.split((heads.shape[1] - gate_heads, gate_heads), dim=1)
    return rest.contiguous(), gate.flatten(1)  # copied, or what is kept for the backward pass would keep the gate too


@torch.compiler.disable
def _own_bias(table: torch.Tensor, config: ModelConfig, around: Surroundings) -> AttentionBias:
    """The bias of a layer's own table; made outside of compiled graphs, as those of stacks are."""
    return relative_bias(table, config, around.bidirectional, around.context)


@torch.compiler.disable
def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    backend: str,
    context: ContextRanks | None,
    scoring: Scoring,
    bias: AttentionBias | None = None,
) -> torch.Tensor:
    """[Tq, H D]; kept out of compiled graphs, which would be specialised on the lengths of every new pack.

    Where ranks share rows, these are this rank's. Flattened here, for the strides of what kernels give depend on the
    pack too.
    """
    if context is None:
        return attend(q, k, v, pattern, backend, bias, scoring).flatten(1)
    q, k, v = context.all_rows(q, k, v)
    return context.own_rows(attend(q, k, v, pattern, backend, bias, scoring)).flatten(1)


class FeedForward(nn.Module):
    """Two maps with an activation in between; a gated one has gate and up in one matrix [2F, M]."""

    def __init__(self, config: ModelConfig, residual_std: float, init: Initializer):
        super().__init__()
        width, std, bias = config.d_model, config.init_std, config.bias
        self.activation, self.is_gated = config.activation, config.is_gated
        if self.is_gated:
            self.gate_up = CutRows(width, (config.d_ff, config.d_ff), std, init / "gate_up", bias)
        else:
            self.up = CutRows(width, (config.d_ff,), std, init / "up", bias)
        self.down = CutColumns(config.d_ff, width, residual_std, init / "down", bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """Feed-forward(x), plus residual where it is given, all [T, M]."""
        inner = self.gate_up(x) if self.is_gated else self.up(x)
        return self.down(activate(inner, self.activation), residual)


class Block(nn.Module):
    """Layer `index` of a stack of `num_layers`, with cross-attention where asked for.

    Each part has its norm beside it, but for the first attention where the embedding's norm stands for that one;
    `..._output_norm` is one that reads what the part gives before it is added.
    """

    def __init__(self, config: ModelConfig, num_layers: int, init: Initializer, index: int, cross: bool = False):
        super().__init__()
        residual_std = config.init_std / (2 * num_layers) ** 0.5
        self.is_parallel, self.is_post = config.parallel_block, config.norm_placement == "post"

        def norm(there: bool) -> nn.Module | None:
            return make_norm(config, init) if there else None

        first, last = config.norm_placement != "output", config.norm_placement in ("output", "sandwich")
        self.attention_norm = norm(first and (index > 0 or config.first_attention_norm))
        self.attention = Attention(config, residual_std, init / "attention", index)
        self.attention_output_norm = norm(last)
        self.cross_attention_norm = norm(cross and first)
        self.cross_attention = CrossAttention(config, residual_std, init / "cross_attention") if cross else None
        self.cross_attention_output_norm = norm(cross and last)
        self.feed_forward_norm = norm(first and config.num_norms(2) > 1)
        self.feed_forward = FeedForward(config, residual_std, init / "feed_forward")
        self.feed_forward_output_norm = norm(last)
        self.recomputes_attention = config.activation_checkpointing == "attention"

    def forward(self, x: torch.Tensor, around: Surroundings, memory: torch.Tensor | None = None) -> torch.Tensor:
        """[T, M] -> [T, M]; memory [S, M] is what cross-attention reads."""
        read = self._read(x, self.attention_norm)
        given = self._attended(self.attention, read, self._residual(x), around)
        if self.is_parallel:
            return self.feed_forward(read if self.feed_forward_norm is None else self.feed_forward_norm(x), given)
        x = self._added(x, given, self.attention_norm, self.attention_output_norm)
        if self.cross_attention is not None:
            read = self._read(x, self.cross_attention_norm)
            given = self._attended(self.cross_attention, read, memory, self._residual(x), around)
            x = self._added(x, given, self.cross_attention_norm, self.cross_attention_output_norm)
        given = self.feed_forward(self._read(x, self.feed_forward_norm), self._residual(x))
        return self._added(x, given, self.feed_forward_norm, self.feed_forward_output_norm)

    def _read(self, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """What a part reads of the residual stream."""
        return x if norm is None or self.is_post else norm(x)

    def _residual(self, x: torch.Tensor) -> torch.Tensor | None:
        """What a part adds to its output by itself: the residual stream, unless that output has a norm first."""
        return x if self.attention_output_norm is None else None

    def _added(
        self, x: torch.Tensor, given: torch.Tensor, norm: nn.Module | None, output_norm: nn.Module | None
    ) -> torch.Tensor:
        """The residual stream behind a part that read x and has given this."""
        if output_norm is not None:
            return x + output_norm(given)
        return norm(given) if self.is_post and norm is not None else given

    def _attended(self, attention: nn.Module, *inputs: Any) -> torch.Tensor:
        """What attention gives; of what it computes on the way nothing is kept where the config says so."""
        if self.recomputes_attention and torch.is_grad_enabled():
            return checkpoint(attention, *inputs, use_reentrant=False)
        return attention(*inputs)
