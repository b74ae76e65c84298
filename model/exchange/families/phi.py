"""Phi (1 to 2): parallel blocks with one norm, a part of each head rotated, biases everywhere, the head's too."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic, rope
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import WeightTable, ends, norm
from model.exchange.families.places import among, only

NAMES = classic.Names(
    "input_layernorm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.dense",
    None,
    "mlp.fc1",
    "mlp.fc2",
)


class Phi(Family):
    """Phi."""

    architecture = Architecture("PhiForCausalLM", "phi")
    places = {
        **among(classic.PLACES, ("num_kv_heads", "head_dim", "rope_theta", "rope_fraction", "rope_scaling")),
        "parallel_block": only("parallel_block", True),
        "head_bias": only("head_bias", True),
    }
    heeds = rope.KEYS | {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "layer_norm_eps",
        "qk_layernorm",
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the share of a head that turns stands there in any case, for left out it is a half."""
        positions = rope.rope_keys(config)
        positions["rope_parameters"]["partial_rotary_factor"] = config.rope_fraction
        return {
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_size,
            "hidden_act": classic.OLD_NAMES[config.activation],
            "max_position_embeddings": max_positions,
            "layer_norm_eps": config.norm_eps,
            **positions,
            "partial_rotary_factor": config.rope_fraction,
            "qk_layernorm": False,
            "attention_dropout": 0.0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(theirs, qk_layernorm=False)
        return {
            "num_layers": theirs.num_hidden_layers,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "num_kv_heads": theirs.num_key_value_heads,
            "head_dim": getattr(theirs, "head_dim", None),
            "d_ff": theirs.intermediate_size,
            "activation": named("hidden_act", theirs.hidden_act, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_eps": theirs.layer_norm_eps,
            "bias": True,
            "head_bias": True,
            "parallel_block": True,
            **rope.rope_of(theirs.rope_parameters, partial=True),
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.initializer_range,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "model.embed_tokens.weight", "lm_head.weight"
        table, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"model.layers.{index}.", NAMES)
        table |= norm("norm", "model.final_layernorm", config.d_model, bias=True)
        return table | head | classic.head_bias(config, vocab_size, "lm_head.bias")
