"""Cohere (Command R): parallel blocks of one LayerNorm without biases, grouped heads, rotary pairs of neighbours.

PaLM's blocks are these, its one key head and its scaled logits too.
"""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import rope
from model.exchange.families.classic import must_be
from model.exchange.families.family import GATES, Family, activation_names, named
from model.exchange.families.layout import Part, WeightTable, ends, interleaved, linear, norm, stacked
from model.exchange.families.llama import feed_forward
from model.exchange.families.places import among, only
from model.exchange.families.sizes import HEEDS, size_keys, sizes_of


class Cohere(Family):
    """Cohere."""

    architecture = Architecture("CohereForCausalLM", "cohere")
    places = {
        **among({}, ("num_kv_heads", "head_dim", "rope_theta", "rope_scaling", "logit_scale")),
        "parallel_block": only("parallel_block", True),
        "norm": only("norm", "layernorm"),
        "activation": only("activation", *GATES),
    }
    heeds = HEEDS | {
        "layer_norm_eps",
        "attention_bias",
        "use_qk_norm",
        "logit_scale",
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            **size_keys(config),
            "hidden_act": GATES[config.activation],
            "max_position_embeddings": max_positions,
            "layer_norm_eps": config.norm_eps,
            **rope.rope_keys(config),
            "logit_scale": config.logit_scale,
            "attention_bias": False,
            "use_qk_norm": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        must_be(theirs, attention_bias=False, use_qk_norm=False)
        return {
            **sizes_of(theirs),
            "activation": named("hidden_act", theirs.hidden_act, activation_names(GATES)),
            "norm": "layernorm",
            "norm_eps": theirs.layer_norm_eps,
            "parallel_block": True,
            **rope.rope_of(theirs.rope_parameters),
            "logit_scale": theirs.logit_scale,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "model.embed_tokens.weight", "lm_head.weight"
        table, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        turned = [
            interleaved(count, config.head_size, config.head_size) for count in (config.num_heads, config.kv_heads)
        ]
        for index in range(config.num_layers):
            ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
            table |= norm(f"{ours}attention_norm", f"{theirs}input_layernorm", config.d_model)
            table |= _attention(config, f"{ours}attention.", f"{theirs}self_attn.", *((each,) for each in turned))
            table |= feed_forward(config, f"{ours}feed_forward.", f"{theirs}mlp.")
        return table | norm("norm", "model.norm", config.d_model) | head


def _attention(config: ModelConfig, ours: str, theirs: str, of_q: tuple, of_k: tuple) -> WeightTable:
    width, query, key = config.d_model, config.num_heads * config.head_size, config.kv_heads * config.head_size
    q = Part(f"{theirs}q_proj.weight", (query, width), steps=of_q)
    k = Part(f"{theirs}k_proj.weight", (key, width), steps=of_k)
    v = Part(f"{theirs}v_proj.weight", (key, width))
    return {f"{ours}qkv.weight": stacked(q, k, v)} | linear(f"{ours}output", [(f"{theirs}o_proj", width)], query, False)
