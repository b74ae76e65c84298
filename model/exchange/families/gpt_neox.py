"""GPT-NeoX and Pythia: rotary positions, blocks one after the other or side by side, each part with a norm of its own.

A block with one norm for both parts (GPT-J's) is written with the norm twice, and comes back with two.
"""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic, rope
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import Part, WeightTable, by_head, ends, norm
from model.exchange.families.places import DIVISOR, among

NORMS = "input_layernorm", "post_attention_layernorm"
NAMES = classic.Names(
    NORMS[0], ("attention.query_key_value",), "attention.dense", NORMS[1], "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
)


class GptNeoX(Family):
    """GPT-NeoX."""

    architecture = Architecture("GPTNeoXForCausalLM", "gpt_neox")
    places = {
        **among(classic.PLACES, ("parallel_block", "parallel_norms", "rope_theta", "rope_fraction", "rope_scaling")),
        "num_heads": DIVISOR,
    }
    heeds = rope.KEYS | {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "layer_norm_eps",
        "attention_bias",
        "use_parallel_residual",
        "rotary_pct",
        "rotary_emb_base",
    }
    base = "gpt_neox."
    stored_as = {"lm_head.weight": "embed_out.weight"}
    computed = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the share of a head that turns stands there in any case, for left out it is a quarter."""
        positions = rope.rope_keys(config)
        positions["rope_parameters"]["partial_rotary_factor"] = config.rope_fraction
        return {
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "hidden_act": PLAIN[config.activation],
            "max_position_embeddings": max_positions,
            "layer_norm_eps": config.norm_eps,
            **positions,
            "rotary_pct": config.rope_fraction,
            "rotary_emb_base": config.rope_theta,
            "attention_bias": True,
            "use_parallel_residual": config.parallel_block,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(theirs, attention_bias=True)
        return {
            "num_layers": theirs.num_hidden_layers,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "d_ff": theirs.intermediate_size,
            "activation": named("hidden_act", theirs.hidden_act, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_eps": theirs.layer_norm_eps,
            "bias": True,
            "parallel_block": theirs.use_parallel_residual,
            "parallel_norms": 2 if theirs.use_parallel_residual else 1,
            **rope.rope_of(theirs.rope_parameters, partial=True),
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.initializer_range,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "gpt_neox.embed_in.weight", "embed_out.weight"
        embedding, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        table, order = embedding, by_head(config.num_heads, config.head_size)
        for index in range(config.num_layers):
            table |= _block(config, f"blocks.{index}.", f"gpt_neox.layers.{index}.", order)
        return table | norm("norm", "gpt_neox.final_layer_norm", config.d_model, bias=True) | head


def _block(config: ModelConfig, ours: str, theirs: str, order: Any) -> WeightTable:
    if not config.parallel_block or config.parallel_norms == 2:
        return classic.block(config, ours, theirs, NAMES, order)
    table = classic.block(config, ours, theirs, NAMES._replace(feed_forward_norm=None), order)
    for key in ("weight", "bias"):
        table[f"{ours}attention_norm.{key}"] = [Part(f"{theirs}{name}.{key}", (config.d_model,)) for name in NORMS]
    return table
