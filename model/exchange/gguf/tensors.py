"""Which weights of ours are which tensors of a GGUF file, laid out as families/layout.py says.

Values stay as they are but where llama.cpp's T5 wants them otherwise: it does not scale its scores (queries are
multiplied instead) and has as many key heads as query heads (ours are repeated). Rows of queries and keys change places
where an architecture rotates neighbours instead of halves.
"""

import torch

from model.config import ModelConfig
from model.exchange.families.layout import (
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
from model.exchange.gguf.architectures import GgufArchitecture, gguf_architecture
from model.network.positions import rope_frequencies

ROPE_FREQS = "rope_freqs.weight"
"""Tensor of what each rotary frequency is divided by, where llama3's scaling stretches them."""


def tensor_table(config: ModelConfig, vocab_size: int) -> WeightTable:
    """All weights of a model that `gguf_architecture` lets pass; a tied head has no entry, and theirs is tied."""
    names = _Names(config, gguf_architecture(config))
    table, head = ends("token_embd.weight", "output.weight", vocab_size, config.d_model, config.tie_embeddings)
    if config.shape == "encdec":
        table |= names.stack("encoder.", "enc.", config.encoder_layers) | names.stack("", "dec.", config.num_layers)
    else:
        table |= names.stack("", "", config.num_layers)
    return table | head


def derived_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Tensors that follow from the config alone, float32."""
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return {}
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}), "cpu")
    return {ROPE_FREQS: (plain / rope_frequencies(config, "cpu")).float()}


class _Names:
    """Names of the stacks of an architecture."""

    def __init__(self, config: ModelConfig, found: GgufArchitecture):
        self.config, self.is_t5 = config, found.positions == "t5_bias"
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

    def stack(self, ours: str, theirs: str, num_layers: int) -> WeightTable:
        """Blocks and last norm of the stack that our names begin with `ours` for, and theirs with `theirs`."""
        config = self.config
        table: WeightTable = {}
        for i in range(num_layers):
            table |= self._block(f"{ours}blocks.{i}.", f"{theirs}blk.{i}.", crosses=theirs == "dec.")
        if self.is_t5:
            shape = (config.t5_num_buckets, config.num_heads)
            table[f"{ours}attention_bias.weight"] = [Part(f"{theirs}blk.0.attn_rel_b.weight", shape)]
        return table | norm(f"{ours}norm", f"{theirs}output_norm", config.d_model)

    def _block(self, ours: str, theirs: str, crosses: bool) -> WeightTable:
        config, width = self.config, self.config.d_model
        table = norm(f"{ours}attention_norm", f"{theirs}attn_norm", width)
        table |= self._attention(f"{ours}attention.qkv", f"{theirs}attn_", "qkv")
        table |= linear(f"{ours}attention.output", [(f"{theirs}{self.output}", width)], self.inner, config.bias)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            table |= norm(f"{ours}attention.{name}", f"{theirs}attn_{name}", config.head_size)
        if crosses:
            table |= norm(f"{ours}cross_attention_norm", f"{theirs}cross_attn_norm", width)
            table |= self._attention(f"{ours}cross_attention.q", f"{theirs}cross_attn_", "q")
            table |= self._attention(f"{ours}cross_attention.kv", f"{theirs}cross_attn_", "kv")
            output = [(f"{theirs}cross_attn_o", width)]
            table |= linear(f"{ours}cross_attention.output", output, self.inner, config.bias)
        return table | self._feed_forward(ours, theirs)

    def _attention(self, ours: str, theirs: str, which: str) -> WeightTable:
        """The maps to those of queries, keys and values that `which` names."""
        rows, steps = {"q": self.inner, "k": self.keys, "v": self.keys}, dict(zip("qkv", self.steps, strict=True))
        table: WeightTable = {}
        for key, columns in {"weight": (self.config.d_model,), "bias": ()}.items():
            if key == "weight" or self.config.has_qkv_bias:
                parts = (Part(f"{theirs}{x}.{key}", (rows[x], *columns), steps=steps[x]) for x in which)
                table[f"{ours}.{key}"] = stacked(*parts)
        return table

    def _feed_forward(self, ours: str, theirs: str) -> WeightTable:
        config, width = self.config, self.config.d_model
        inner = ["ffn_gate", "ffn_up"] if config.is_gated else ["ffn_up"]
        name = "gate_up" if config.is_gated else "up"
        table = norm(f"{ours}feed_forward_norm", f"{theirs}ffn_norm", width)
        maps = [(f"{theirs}{each}", config.d_ff) for each in inner]
        table |= linear(f"{ours}feed_forward.{name}", maps, width, config.bias)
        return table | linear(f"{ours}feed_forward.down", [(f"{theirs}ffn_down", width)], config.d_ff, config.bias)
