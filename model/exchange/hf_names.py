"""Which weights of ours are which weights of Hugging Face's classes, in both directions.

A weight of ours is one weight of theirs, or several stacked by rows (q, k, v; gate and up). Values stay as they
are but in T5, which does not scale its scores (its queries are multiplied instead) and has as many key heads as
query heads (ours are repeated).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from common.mistakes import Mistake
from model.config import ModelConfig


class Part(NamedTuple):
    """A weight of theirs, made of rows of one of ours."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    start: int = 0
    """First row in ours."""
    scale: float = 1.0
    """What ours is multiplied by."""
    repeat: int = 1
    """How often each head's rows stand in theirs, one after the other."""
    head_dim: int = 1
    """Rows of a head."""

    @property
    def rows(self) -> int:
        """Number of rows in ours."""
        return self.shape[0] // self.repeat


WeightTable = dict[str, list[Part]]
"""Our name -> the weights of theirs that hold it."""


def weight_table(config: ModelConfig, vocab_size: int) -> WeightTable:
    """All weights of a model that `hf_configs.architecture` lets pass; a tied head has no entry of its own."""
    if config.shape != "encdec":
        return _LlamaNames(config).decoder(vocab_size)
    return _T5Names(config).table(vocab_size) if config.positions == "t5_bias" else _LlamaNames(config).both(vocab_size)


def part_shapes(table: WeightTable) -> dict[str, tuple[int, ...]]:
    """Their names and shapes."""
    return {part.name: part.shape for parts in table.values() for part in parts}


def to_hf(name: str, tensor: torch.Tensor, table: WeightTable) -> list[tuple[str, torch.Tensor]]:
    """One weight of ours as theirs, views of its rows where values are the same.

    Raises ValueError when it is not the model's.
    """
    parts = table.get(name)
    if parts is None:
        raise Mistake(f"{name}: the model has no such weight; was it trained with another model config?")
    expected = our_shape(parts)
    if tuple(tensor.shape) != expected:
        raise Mistake(f"{name}: the weight is {list(tensor.shape)}, the model config makes it {list(expected)}")
    return [(part.name, _theirs(tensor, part)) for part in parts]


def from_hf(read: Callable[[str], torch.Tensor], table: WeightTable) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights of ours in turn, from a function that gives theirs by name. Raises ValueError on a wrong shape."""
    for name in table:
        yield name, one_from_hf(read, table, name)


def one_from_hf(read: Callable[[str], torch.Tensor], table: WeightTable, name: str) -> torch.Tensor:
    """One weight of ours. Raises ValueError on a wrong shape, or when what is one of ours differs in theirs."""
    parts = table[name]
    expected = our_shape(parts)
    ours: torch.Tensor | None = None
    for part in parts:
        piece = read(part.name)
        if tuple(piece.shape) != part.shape:
            raise Mistake(f"{part.name}: the weight is {list(piece.shape)}, the config makes it {list(part.shape)}")
        piece = _ours(piece, part)
        if piece.shape == expected and ours is None:
            ours = piece
            continue
        if ours is None:
            ours = piece.new_empty(expected)
        rows = ours[part.start : part.start + part.rows]
        if len(parts) > 1 and rows.shape == expected and not torch.equal(rows, piece):
            raise Mistake(f"{part.name}: it differs from {parts[0].name}, but the config ties the two")
        rows.copy_(piece)
    assert ours is not None, f"{name} is made of nothing"
    return ours


def our_shape(parts: list[Part]) -> tuple[int, ...]:
    """Shape of the weight of ours that these make up."""
    return (max(part.start + part.rows for part in parts), *parts[0].shape[1:])


def _theirs(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    piece = tensor[part.start : part.start + part.rows]
    if part.scale != 1:
        piece = piece.float() * part.scale
    if part.repeat != 1:
        piece = piece.unflatten(0, (-1, part.head_dim)).repeat_interleave(part.repeat, 0).flatten(0, 1)
    return piece


def _ours(piece: torch.Tensor, part: Part) -> torch.Tensor:
    if part.repeat != 1:
        heads = piece.unflatten(0, (-1, part.repeat, part.head_dim))
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise Mistake(f"{part.name}: its heads differ where the config has {part.repeat} of them share keys")
        piece = heads[:, 0].flatten(0, 1)
    return piece if part.scale == 1 else piece.float() / part.scale


def _stacked(*parts: Part) -> list[Part]:
    """Parts one below the other."""
    start, result = 0, []
    for part in parts:
        result.append(part._replace(start=start))
        start += part.rows
    return result


class _LlamaNames:
    """Names of Llama and its kin: Qwen2, Qwen3, EuroBERT, and our two modeling files."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.query = config.num_heads * config.head_size
        self.key = config.kv_heads * config.head_size

    def decoder(self, vocab_size: int) -> WeightTable:
        """The one stack of a causal, prefix or encoder model."""
        stack = self._stack("", "model.", self.config.num_layers, cross=False)
        return self._with_ends(stack, "model.embed_tokens.weight", vocab_size)

    def both(self, vocab_size: int) -> WeightTable:
        """Decoder and encoder of our encoder-decoder."""
        decoder = self._stack("", "model.decoder.", self.config.num_layers, cross=True)
        encoder = self._stack("encoder.", "model.encoder.", self.config.encoder_layers, cross=False)
        return self._with_ends(decoder | encoder, "model.shared.weight", vocab_size)

    def _with_ends(self, stacks: WeightTable, embedding: str, vocab_size: int) -> WeightTable:
        shape = (vocab_size, self.config.d_model)
        table: WeightTable = {"embedding.weight": [Part(embedding, shape)], **stacks}
        if not self.config.tie_embeddings:
            table["head.weight"] = [Part("lm_head.weight", shape)]
        return table

    def _stack(self, ours: str, theirs: str, num_layers: int, cross: bool) -> WeightTable:
        table: WeightTable = {}
        for i in range(num_layers):
            table |= self._block(f"{ours}blocks.{i}.", f"{theirs}layers.{i}.", cross)
        table[f"{ours}norm.weight"] = [Part(f"{theirs}norm.weight", (self.config.d_model,))]
        return table

    def _block(self, ours: str, theirs: str, cross: bool) -> WeightTable:
        config, width, qkv_bias = self.config, self.config.d_model, self.config.has_qkv_bias
        own, other = f"{theirs}self_attn.", f"{theirs}cross_attn."
        q, k, v = ("q_proj", self.query), ("k_proj", self.key), ("v_proj", self.key)
        table: WeightTable = {f"{ours}attention_norm.weight": [Part(f"{theirs}input_layernorm.weight", (width,))]}
        table |= _linear(f"{ours}attention.qkv", own, [q, k, v], width, qkv_bias)
        table |= _linear(f"{ours}attention.output", own, [("o_proj", width)], self.query, config.bias)
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                table[f"{ours}attention.{norm}.weight"] = [Part(f"{own}{norm}.weight", (config.head_size,))]
        if cross:
            table[f"{ours}cross_attention_norm.weight"] = [Part(f"{theirs}cross_attn_layernorm.weight", (width,))]
            table |= _linear(f"{ours}cross_attention.q", other, [q], width, qkv_bias)
            table |= _linear(f"{ours}cross_attention.kv", other, [k, v], width, qkv_bias)
            table |= _linear(f"{ours}cross_attention.output", other, [("o_proj", width)], self.query, config.bias)
        table[f"{ours}feed_forward_norm.weight"] = [Part(f"{theirs}post_attention_layernorm.weight", (width,))]
        return table | self._feed_forward(f"{ours}feed_forward.", f"{theirs}mlp.")

    def _feed_forward(self, ours: str, theirs: str) -> WeightTable:
        config = self.config
        inner = [("gate_proj", config.d_ff)] if config.is_gated else []
        name = "gate_up" if config.is_gated else "up"
        table = _linear(f"{ours}{name}", theirs, [*inner, ("up_proj", config.d_ff)], config.d_model, config.bias)
        return table | _linear(f"{ours}down", theirs, [("down_proj", config.d_model)], config.d_ff, config.bias)


def _linear(ours: str, theirs: str, parts: list[tuple[str, int]], width: int, bias: bool) -> WeightTable:
    """A map of ours as one or several of theirs, (name, rows) each, from `width` inputs."""
    table = {f"{ours}.weight": _stacked(*(Part(f"{theirs}{name}.weight", (rows, width)) for name, rows in parts))}
    if bias:
        table[f"{ours}.bias"] = _stacked(*(Part(f"{theirs}{name}.bias", (rows,)) for name, rows in parts))
    return table


class _T5Names:
    """Names of T5 (v1.1 and Flan-T5 alike)."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.inner = config.num_heads * config.head_size

    def table(self, vocab_size: int) -> WeightTable:
        """T5's head is written even where it is the embedding: T5 scales what a tied one reads."""
        shape = (vocab_size, self.config.d_model)
        table: WeightTable = {"embedding.weight": [Part("shared.weight", shape)]}
        if self.config.tie_embeddings:
            table["embedding.weight"].append(Part("lm_head.weight", shape))
        table |= self._stack("", "decoder.", self.config.num_layers, cross=True)
        table |= self._stack("encoder.", "encoder.", self.config.encoder_layers, cross=False)
        if not self.config.tie_embeddings:
            table["head.weight"] = [Part("lm_head.weight", shape)]
        return table

    def _stack(self, ours: str, theirs: str, num_layers: int, cross: bool) -> WeightTable:
        config = self.config
        bias = Part(
            f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (config.t5_num_buckets, config.num_heads),
        )
        table: WeightTable = {f"{ours}attention_bias.weight": [bias]}
        for i in range(num_layers):
            block, layer = f"{ours}blocks.{i}.", f"{theirs}block.{i}.layer."
            q, k, v = self._queries_keys_values(f"{layer}0.SelfAttention.")
            table |= self._norm(f"{block}attention_norm", f"{layer}0.")
            table[f"{block}attention.qkv.weight"] = _stacked(q, k, v)
            table[f"{block}attention.output.weight"] = [self._output(f"{layer}0.SelfAttention.")]
            if cross:
                q, k, v = self._queries_keys_values(f"{layer}1.EncDecAttention.")
                table |= self._norm(f"{block}cross_attention_norm", f"{layer}1.")
                table[f"{block}cross_attention.q.weight"] = [q]
                table[f"{block}cross_attention.kv.weight"] = _stacked(k, v)
                table[f"{block}cross_attention.output.weight"] = [self._output(f"{layer}1.EncDecAttention.")]
            last = f"{layer}{2 if cross else 1}."
            table |= self._norm(f"{block}feed_forward_norm", last)
            table |= self._feed_forward(f"{block}feed_forward.", f"{last}DenseReluDense.")
        return table | {f"{ours}norm.weight": [Part(f"{theirs}final_layer_norm.weight", (config.d_model,))]}

    def _queries_keys_values(self, theirs: str) -> tuple[Part, Part, Part]:
        config, shape = self.config, (self.inner, self.config.d_model)
        q = Part(f"{theirs}q.weight", shape, scale=config.head_size**-0.5)
        repeat, head_dim = config.num_heads // config.kv_heads, config.head_size
        k, v = (Part(f"{theirs}{name}.weight", shape, repeat=repeat, head_dim=head_dim) for name in "kv")
        return q, k, v

    def _output(self, theirs: str) -> Part:
        return Part(f"{theirs}o.weight", (self.config.d_model, self.inner))

    def _norm(self, ours: str, theirs: str) -> WeightTable:
        return {f"{ours}.weight": [Part(f"{theirs}layer_norm.weight", (self.config.d_model,))]}

    def _feed_forward(self, ours: str, theirs: str) -> WeightTable:
        width, d_ff = self.config.d_model, self.config.d_ff
        down = {f"{ours}down.weight": [Part(f"{theirs}wo.weight", (width, d_ff))]}
        if not self.config.is_gated:
            return {f"{ours}up.weight": [Part(f"{theirs}wi.weight", (d_ff, width))]} | down
        gate, up = (Part(f"{theirs}{name}.weight", (d_ff, width)) for name in ("wi_0", "wi_1"))
        return {f"{ours}gate_up.weight": _stacked(gate, up)} | down
