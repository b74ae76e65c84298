"""Which weights of ours are which tensors of a GGUF file, in both directions.

A weight of ours is one tensor, or several stacked by rows (q, k, v; gate and up). Values stay as they are but where
llama.cpp's T5 wants them otherwise: it does not scale its scores (queries are multiplied instead) and has as many key
heads as query heads (ours are repeated). Rows of queries and keys change places where an architecture rotates
neighbours instead of halves.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.gguf.architectures import GgufArchitecture, gguf_architecture
from model.network.positions import rope_frequencies


class Part(NamedTuple):
    """A tensor of theirs, made of rows of one of ours."""

    name: str
    shape: tuple[int, ...]
    start: int = 0
    """First row in ours."""
    scale: float = 1.0
    """What ours is multiplied by."""
    repeat: int = 1
    """How often each head's rows stand in theirs, one after the other."""
    num_heads: int = 1
    """Heads that its rows in ours are made of."""
    pairs_neighbours: bool = False
    """Whether the two halves of each head are interleaved."""

    @property
    def rows(self) -> int:
        """Number of rows in ours."""
        return self.shape[0] // self.repeat


TensorTable = dict[str, list[Part]]
"""Our name -> the tensors that hold it."""

ROPE_FREQS = "rope_freqs.weight"
"""Tensor of what each rotary frequency is divided by, where llama3's scaling stretches them."""


def tensor_table(config: ModelConfig, vocab_size: int) -> TensorTable:
    """All weights of a model that `gguf_architecture` lets pass; a tied head has no entry, and theirs is tied."""
    names = _Names(config, gguf_architecture(config))
    shape = (vocab_size, config.d_model)
    table: TensorTable = {"embedding.weight": [Part("token_embd.weight", shape)]}
    if config.shape == "encdec":
        table |= names.stack("encoder.", "enc.", config.encoder_layers) | names.stack("", "dec.", config.num_layers)
    else:
        table |= names.stack("", "", config.num_layers)
    if not config.tie_embeddings:
        table["head.weight"] = [Part("output.weight", shape)]
    return table


def tensor_shapes(table: TensorTable) -> dict[str, tuple[int, ...]]:
    """Their names and shapes, as rows and columns."""
    return {part.name: part.shape for parts in table.values() for part in parts}


def derived_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Tensors that follow from the config alone, float32."""
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return {}
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}), "cpu")
    return {ROPE_FREQS: (plain / rope_frequencies(config, "cpu")).float()}


def to_gguf(name: str, tensor: torch.Tensor, table: TensorTable) -> Iterator[tuple[str, torch.Tensor]]:
    """One weight of ours as theirs, one after the other. Raises ValueError when it is not the model's."""
    parts = table.get(name)
    if parts is None:
        raise Mistake(f"{name}: the model has no such weight; was it trained with another model config?")
    if tuple(tensor.shape) != (expected := _our_shape(parts)):
        raise Mistake(f"{name}: the weight is {list(tensor.shape)}, the model config makes it {list(expected)}")
    for part in parts:
        yield part.name, _theirs(tensor, part)


def one_from_gguf(read: Callable[[str], torch.Tensor], table: TensorTable, name: str) -> torch.Tensor:
    """One weight of ours, float32, from a function that gives theirs by name."""
    return torch.cat([_ours(read(part.name), part) for part in table[name]])


def _our_shape(parts: list[Part]) -> tuple[int, ...]:
    return (sum(part.rows for part in parts), *parts[0].shape[1:])


def _theirs(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    piece = tensor[part.start : part.start + part.rows]
    if part.scale != 1:
        piece = piece.float() * part.scale
    if part.pairs_neighbours:
        piece = piece.unflatten(0, (part.num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if part.repeat != 1:
        piece = piece.unflatten(0, (part.num_heads, -1)).repeat_interleave(part.repeat, 0).flatten(0, 1)
    return piece


def _ours(piece: torch.Tensor, part: Part) -> torch.Tensor:
    if part.repeat != 1:
        piece = piece.unflatten(0, (part.num_heads, part.repeat, -1))[:, 0].flatten(0, 1)
    if part.pairs_neighbours:
        piece = piece.unflatten(0, (part.num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return piece if part.scale == 1 else piece / part.scale


def _stacked(parts: list[Part]) -> list[Part]:
    """Parts one below the other."""
    starts = itertools.accumulate((part.rows for part in parts), initial=0)
    return [part._replace(start=start) for part, start in zip(parts, starts, strict=False)]


class _Names:
    """Names of the stacks of an architecture."""

    def __init__(self, config: ModelConfig, found: GgufArchitecture):
        self.config = config
        self.is_t5 = found.positions == "t5_bias"
        self.pairs_neighbours = found.pairs_neighbours
        self.inner = config.num_heads * config.head_size
        self.output = "attn_o" if self.is_t5 else "attn_output"

    def stack(self, ours: str, theirs: str, num_layers: int) -> TensorTable:
        """Blocks and last norm of the stack that our names begin with `ours` for, and theirs with `theirs`."""
        config = self.config
        table: TensorTable = {}
        for i in range(num_layers):
            table |= self._block(f"{ours}blocks.{i}.", f"{theirs}blk.{i}.", crosses=theirs == "dec.")
        if self.is_t5:
            shape = (config.t5_num_buckets, config.num_heads)
            table[f"{ours}attention_bias.weight"] = [Part(f"{theirs}blk.0.attn_rel_b.weight", shape)]
        return table | self._norm(f"{ours}norm", f"{theirs}output_norm")

    def _block(self, ours: str, theirs: str, crosses: bool) -> TensorTable:
        config = self.config
        q, k, v = self._queries_keys_values(f"{theirs}attn_")
        table = self._norm(f"{ours}attention_norm", f"{theirs}attn_norm")
        table |= self._linear(f"{ours}attention.qkv", [q, k, v], config.has_qkv_bias)
        table |= self._linear(f"{ours}attention.output", [self._output(f"{theirs}{self.output}")], config.bias)
        if config.qk_norm:
            table |= self._norm(f"{ours}attention.q_norm", f"{theirs}attn_q_norm", config.head_size)
            table |= self._norm(f"{ours}attention.k_norm", f"{theirs}attn_k_norm", config.head_size)
        if crosses:
            q, k, v = self._queries_keys_values(f"{theirs}cross_attn_")
            table |= self._norm(f"{ours}cross_attention_norm", f"{theirs}cross_attn_norm")
            table |= self._linear(f"{ours}cross_attention.q", [q], config.has_qkv_bias)
            table |= self._linear(f"{ours}cross_attention.kv", [k, v], config.has_qkv_bias)
            output = self._output(f"{theirs}cross_attn_o")
            table |= self._linear(f"{ours}cross_attention.output", [output], config.bias)
        return table | self._feed_forward(ours, theirs)

    def _queries_keys_values(self, theirs: str) -> list[Part]:
        config, width = self.config, self.config.d_model
        repeat = config.num_heads // config.kv_heads if self.is_t5 else 1
        rows = config.kv_heads * config.head_size * repeat
        key = Part(f"{theirs}k", (rows, width), repeat=repeat, num_heads=config.kv_heads)
        query = Part(f"{theirs}q", (self.inner, width), num_heads=config.num_heads)
        query = query._replace(scale=config.head_size**-0.5 if self.is_t5 else 1.0)
        rotated = [part._replace(pairs_neighbours=self.pairs_neighbours) for part in (query, key)]
        return [*rotated, key._replace(name=f"{theirs}v")]

    def _output(self, theirs: str) -> Part:
        return Part(theirs, (self.config.d_model, self.inner))

    def _feed_forward(self, ours: str, theirs: str) -> TensorTable:
        config, shape = self.config, (self.config.d_ff, self.config.d_model)
        inner = ["ffn_gate", "ffn_up"] if config.is_gated else ["ffn_up"]
        name = "gate_up" if config.is_gated else "up"
        table = self._norm(f"{ours}feed_forward_norm", f"{theirs}ffn_norm")
        table |= self._linear(f"{ours}feed_forward.{name}", [Part(f"{theirs}{x}", shape) for x in inner], config.bias)
        return table | self._linear(f"{ours}feed_forward.down", [Part(f"{theirs}ffn_down", shape[::-1])], config.bias)

    def _norm(self, ours: str, theirs: str, width: int | None = None) -> TensorTable:
        return {f"{ours}.weight": [Part(f"{theirs}.weight", (width or self.config.d_model,))]}

    @staticmethod
    def _linear(ours: str, parts: list[Part], bias: bool) -> TensorTable:
        stacked = _stacked(parts)
        table = {f"{ours}.weight": [part._replace(name=f"{part.name}.weight") for part in stacked]}
        if bias:
            shortened = [part._replace(name=f"{part.name}.bias", shape=part.shape[:1]) for part in stacked]
            table[f"{ours}.bias"] = shortened
        return table
