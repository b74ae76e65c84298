"""Phi (1 to 2): parallel blocks with one norm, a part of each head rotated, biases everywhere, the head's too."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic, rope
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import WeightTable, ends, norm
from model.exchange.families.places import among, only
from model.exchange.families.sizes import HEEDS, size_keys, sizes_of

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
    heeds = HEEDS | {
        "layer_norm_eps",
        "qk_layernorm",
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the share of a head that turns stands there in any case, for left out it is a half."""
        positions = rope.rope_keys(config)
        positions["rope_parameters"]["partial_rotary_factor"] = config.rope_fraction
        return {
            **size_keys(config),
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
            **sizes_of(theirs),
            "activation": named("hidden_act", theirs.hidden_act, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_eps": theirs.layer_norm_eps,
            "bias": True,
            "head_bias": True,
            "parallel_block": True,
            **rope.rope_of(theirs.rope_parameters, partial=True),
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "model.embed_tokens.weight", "lm_head.weight"
        table, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"model.layers.{index}.", NAMES)
        table |= norm("norm", "model.final_layernorm", config.d_model, bias=True)
        return table | head | classic.head_bias(config, vocab_size, "lm_head.bias")
