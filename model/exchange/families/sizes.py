"""Sizes and ends of a model by the names that most decoders with rotary positions have for them."""

from typing import Any

from model.config import ModelConfig
from model.exchange.families import rope

HEEDS = rope.KEYS | {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
}


def size_keys(config: ModelConfig) -> dict[str, Any]:
    """Their keys."""
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
    }


def sizes_of(theirs: Any) -> dict[str, Any]:
    """Our keys."""
    return {
        "num_layers": theirs.num_hidden_layers,
        "d_model": theirs.hidden_size,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None),
        "d_ff": theirs.intermediate_size,
        "tie_embeddings": theirs.tie_word_embeddings,
        "init_std": theirs.initializer_range,
    }
