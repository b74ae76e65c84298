"""What families with LayerNorm, biases and a feed-forward layer without a gate share: GPT-2's block and on.

Names of one block of theirs are given once (`Names`); the table of all weights follows from them.
"""

from typing import Any, NamedTuple

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families.family import PLAIN
from model.exchange.families.layout import Part, Step, Transposed, WeightTable, linear, norm
from model.exchange.families.places import Places, as_yaml, only
from model.exchange.json_objects import quoted

PLACES: Places = {
    "norm": only("norm", "layernorm"),
    "bias": only("bias", True),
    "activation": only("activation", *PLAIN),
}
OLD_NAMES = PLAIN | {"gelu_tanh": "gelu_new"}
"""Our activations by the names that these classes have always had."""


class Names(NamedTuple):
    """What the weights of a block are called, without `.weight` and `.bias`."""

    attention_norm: str
    qkv: tuple[str, ...]
    """One name for all of them, or three."""
    output: str
    feed_forward_norm: str | None
    up: str
    down: str
    cross_norm: str | None = None
    cross: tuple[str, ...] = ()
    """Maps to queries, keys, values and output of cross-attention."""


def block(config: ModelConfig, ours: str, theirs: str, names: Names, *steps: Step) -> WeightTable:
    """One block; `steps` are what is done to queries, keys and values."""
    width, inner, bias = config.d_model, config.d_ff, config.bias
    qkv_bias, output_bias = config.has_qkv_bias, config.has_attention_output_bias
    query, key = config.num_heads * config.head_size, config.kv_heads * config.head_size
    transposed = tuple(step for step in steps if isinstance(step, Transposed))
    rows = (query + 2 * key,) if len(names.qkv) == 1 else (query, key, key)
    table = norm(f"{ours}attention_norm", f"{theirs}{names.attention_norm}", width, bias)
    maps = [(f"{theirs}{name}", count) for name, count in zip(names.qkv, rows, strict=True)]
    table |= linear(f"{ours}attention.qkv", maps, width, qkv_bias, *steps)
    table |= linear(f"{ours}attention.output", [(f"{theirs}{names.output}", width)], query, output_bias, *transposed)
    if names.cross_norm is not None:
        q, k, v, out = (f"{theirs}{name}" for name in names.cross)
        table |= norm(f"{ours}cross_attention_norm", f"{theirs}{names.cross_norm}", width, bias)
        table |= linear(f"{ours}cross_attention.q", [(q, query)], width, qkv_bias)
        table |= linear(f"{ours}cross_attention.kv", [(k, key), (v, key)], width, qkv_bias)
        table |= linear(f"{ours}cross_attention.output", [(out, width)], query, output_bias)
    if names.feed_forward_norm is not None:
        table |= norm(f"{ours}feed_forward_norm", f"{theirs}{names.feed_forward_norm}", width, bias)
    table |= linear(f"{ours}feed_forward.up", [(f"{theirs}{names.up}", inner)], width, bias, *transposed)
    return table | linear(f"{ours}feed_forward.down", [(f"{theirs}{names.down}", width)], inner, bias, *transposed)


def head_bias(config: ModelConfig, vocab_size: int, *theirs: str) -> WeightTable:
    """The bias of the output projection, where there is one."""
    return {"head.bias": [Part(name, (vocab_size,)) for name in theirs]} if config.head_bias else {}


def position_table(config: ModelConfig, ours: str, theirs: str, unread: bool = True) -> WeightTable:
    """The table of learned positions, with or without its first rows that are never read."""
    assert config.max_positions is not None
    first = 0 if unread else config.position_offset
    rows = config.max_positions + config.position_offset - first
    return {ours: [Part(theirs, (rows, config.d_model), first)]}


def must_be(theirs: Any, **allowed: Any) -> None:
    """Mistake when a key of a config has another value than the one that has a place in ours."""
    for key, value in allowed.items():
        if (found := getattr(theirs, key)) != value:
            shown = as_yaml(found) if isinstance(found, bool) else quoted(found)
            raise Mistake(f"config.json: {key} {shown} has no place here; only {as_yaml(value)} has")
