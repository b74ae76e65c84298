"""Which weights of ours are which tensors of a GGUF file, laid out as families/layout.py says.

Values stay as they are but where llama.cpp wants them otherwise: its T5 does not scale its scores (queries are
multiplied instead) and has as many key heads as query heads (ours are repeated), and norms kept less 1 are whole there.
Rows of queries and keys change places where an architecture rotates neighbours instead of halves.
"""

import torch

from model.config import ModelConfig
from model.exchange.families.classic import head_bias, position_table
from model.exchange.families.layout import (
    Added,
    Part,
    Repeated,
    Scaled,
    Step,
    WeightTable,
    ends,
    interleaved,
    linear,
    norm,
    stacked,
)
from model.exchange.gguf.architecture import GgufArchitecture
from model.exchange.gguf.architectures import gguf_architecture
from model.network.positions import rope_frequencies

ROPE_FREQS = "rope_freqs.weight"
"""Tensor of what each rotary frequency is divided by, where llama3's scaling stretches them."""
SINKS, NO_SINK = "blk.{}.attn_sinks.weight", -1e30
"""Scores beside those of the tokens, one a head, whose exponential is 0 beside any of theirs."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
HEAD_PARTS = ("head.", "head_transform.")
"""How names of ours begin that stay behind where an architecture has no head."""


def tensor_table(config: ModelConfig, vocab_size: int) -> WeightTable:
    """All weights of a model that `gguf_architecture` lets pass; a tied head has no entry, and theirs is tied."""
    found = gguf_architecture(config)
    names = _Names(config, found)
    table, head = ends(EMBEDDING, HEAD, vocab_size, config.d_model, config.tie_embeddings)
    if config.tie_embeddings and found.wants_head:
        table["embedding.weight"] += [Part(HEAD, (vocab_size, config.d_model))]
    table |= names.beside_embedding()
    if config.shape == "encdec":
        table |= names.stack("encoder.", "enc.", config.encoder_layers) | names.stack("", "dec.", config.num_layers)
    else:
        table |= names.stack("", "", config.num_layers)
    return table | head | head_bias(config, vocab_size, "output.bias") if found.has_head else table


def left_behind(config: ModelConfig) -> tuple[str, ...]:
    """How names of weights begin that have no place in the file."""
    return () if gguf_architecture(config).has_head else HEAD_PARTS


def derived_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Tensors that follow from the config alone, float32."""
    tensors = {}
    if gguf_architecture(config).has_sinks:
        tensors = {SINKS.format(i): torch.full((config.num_heads,), NO_SINK) for i in range(config.num_layers)}
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}), "cpu")
        tensors[ROPE_FREQS] = (plain / rope_frequencies(config, "cpu")).float()
    return tensors


class _Names:
    """Names of the stacks of an architecture."""

    def __init__(self, config: ModelConfig, found: GgufArchitecture):
        self.config, self.found, self.is_t5 = config, found, config.shape == "encdec"
        self.inner, self.keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
        self.output = "attn_o" if self.is_t5 else "attn_output"
        times = config.num_heads // config.kv_heads if self.is_t5 else 1
        of_q: tuple[Step, ...] = (Scaled(config.head_size**-0.5),) if self.is_t5 else ()
        of_k: tuple[Step, ...] = (Repeated(times, config.head_size),) if times > 1 else ()
        of_v = of_k
        if found.pairs_neighbours:
            turned = (interleaved(n, config.head_size, config.head_size) for n in (config.num_heads, config.kv_heads))
            of_q, of_k = ((each,) for each in turned)
        self.steps = of_q, of_k, of_v
        """What is done to queries, keys and values."""
        self.of_norms: tuple[Step, ...] = (Added(1.0),) if config.norm == "rmsnorm_1p" else ()
        self.norm_bias = config.bias and config.norm == "layernorm"

    def beside_embedding(self) -> WeightTable:
        """Positions, segments and the norm that stand between tokens and blocks."""
        config, table = self.config, WeightTable()
        if config.positions == "learned":
            table |= position_table(config, "position_embedding.weight", "position_embd.weight", unread=False)
        if config.segment_embeddings is not None:
            shape = (config.segment_embeddings, config.d_model)
            table["segment_embedding.weight"] = [Part("token_types.weight", shape)]
        return table | (self._norm("embedding_norm", "token_embd_norm") if config.embedding_norm else {})

    def stack(self, ours: str, theirs: str, num_layers: int) -> WeightTable:
        """Blocks and last norm of the stack that our names begin with `ours` for, and theirs with `theirs`."""
        config = self.config
        table: WeightTable = {}
        for i in range(num_layers):
            table |= self._block(f"{ours}blocks.{i}.", f"{theirs}blk.{i}.", crosses=theirs == "dec.")
        if self.is_t5:
            shape = (config.t5_num_buckets, config.num_heads)
            table[f"{ours}attention_bias.weight"] = [Part(f"{theirs}blk.0.attn_rel_b.weight", shape)]
        return table | (self._norm(f"{ours}norm", f"{theirs}output_norm") if config.has_final_norm else {})

    def _block(self, ours: str, theirs: str, crosses: bool) -> WeightTable:
        config, width = self.config, self.config.d_model
        table = self._norms(ours, theirs)
        table |= self._attention(f"{ours}attention.qkv", f"{theirs}attn_", "qkv")
        table |= linear(f"{ours}attention.output", [(f"{theirs}{self.output}", width)], self.inner, config.bias)
        widths = (self.inner, self.keys) if config.qk_norm == "all_heads" else (config.head_size,) * 2
        for name, count in zip(("q_norm", "k_norm"), widths, strict=True) if config.qk_norm else ():
            table |= norm(f"{ours}attention.{name}", f"{theirs}attn_{name}", count, False, *self.of_norms)
        if crosses:
            table |= self._norm(f"{ours}cross_attention_norm", f"{theirs}cross_attn_norm")
            table |= self._attention(f"{ours}cross_attention.q", f"{theirs}cross_attn_", "q")
            table |= self._attention(f"{ours}cross_attention.kv", f"{theirs}cross_attn_", "kv")
            output = [(f"{theirs}cross_attn_o", width)]
            table |= linear(f"{ours}cross_attention.output", output, self.inner, config.bias)
        return table | self._feed_forward(ours, theirs)

    def _norm(self, ours: str, theirs: str) -> WeightTable:
        return norm(ours, theirs, self.config.d_model, self.norm_bias, *self.of_norms)

    def _norms(self, ours: str, theirs: str) -> WeightTable:
        """Norms around attention and feed-forward; one for both is written twice where there are two names for it."""
        config, found = self.config, self.found
        first, last = config.norm_placement != "output", config.norm_placement in ("output", "sandwich")
        one_for_both = config.parallel_block and config.parallel_norms == 1
        there = {"attention_norm": first, "feed_forward_norm": first and not one_for_both}
        there |= {"attention_output_norm": last, "feed_forward_output_norm": last}
        table: WeightTable = {}
        for name in (name for name, is_there in there.items() if is_there):
            table |= self._norm(f"{ours}{name}", f"{theirs}{found.norms[name]}")
        if one_for_both and found.wants_both_norms:
            again = self._norm(f"{ours}attention_norm", f"{theirs}{found.norms['feed_forward_norm']}")
            table = {name: parts + again.get(name, []) for name, parts in table.items()}
        return table

    def _attention(self, ours: str, theirs: str, which: str) -> WeightTable:
        """The maps to those of queries, keys and values that `which` names."""
        width, bias = self.config.d_model, self.config.has_qkv_bias
        rows, steps = {"q": self.inner, "k": self.keys, "v": self.keys}, dict(zip("qkv", self.steps, strict=True))
        if self.found.fuses:
            return linear(ours, [(f"{theirs}qkv", self.inner + 2 * self.keys)], width, bias)
        table: WeightTable = {}
        for key, columns in {"weight": (width,), "bias": ()}.items():
            if key == "weight" or bias:
                parts = (Part(f"{theirs}{x}.{key}", (rows[x], *columns), steps=steps[x]) for x in which)
                table[f"{ours}.{key}"] = stacked(*parts)
        return table

    def _feed_forward(self, ours: str, theirs: str) -> WeightTable:
        config, width = self.config, self.config.d_model
        inner = {f"{theirs}ffn_gate": config.d_ff} if config.is_gated else {}
        inner[f"{theirs}ffn_up"] = config.d_ff
        if self.found.fuses_gate:
            inner = {f"{theirs}ffn_up": 2 * config.d_ff}
        name = "gate_up" if config.is_gated else "up"
        table = linear(f"{ours}feed_forward.{name}", list(inner.items()), width, config.bias)
        return table | linear(f"{ours}feed_forward.down", [(f"{theirs}ffn_down", width)], config.d_ff, config.bias)
