"""BLOOM: ALiBi, a norm behind the embedding, queries, keys and values of each head together."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic
from model.exchange.families.family import Family
from model.exchange.families.layout import WeightTable, by_head, ends, norm
from model.exchange.families.places import FOUR_TIMES, only

NAMES = classic.Names(
    "input_layernorm",
    ("self_attention.query_key_value",),
    "self_attention.dense",
    "post_attention_layernorm",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


class Bloom(Family):
    """BLOOM."""

    architecture = Architecture("BloomForCausalLM", "bloom")
    places = {
        **classic.PLACES,
        "positions": only("positions", "alibi"),
        "embedding_norm": only("embedding_norm", True),
        "activation": only("activation", "gelu_tanh"),
        "d_ff": FOUR_TIMES,
    }
    heeds = frozenset(
        {
            "hidden_size",
            "n_embed",
            "n_layer",
            "n_head",
            "num_hidden_layers",
            "num_attention_heads",
            "layer_norm_epsilon",
            "apply_residual_connection_post_layernorm",
        }
    )
    base = "transformer."

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            "hidden_size": config.d_model,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "layer_norm_epsilon": config.norm_eps,
            "seq_length": max_positions,
            "apply_residual_connection_post_layernorm": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(theirs, apply_residual_connection_post_layernorm=False)
        return {
            "num_layers": theirs.n_layer,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.n_head,
            "d_ff": 4 * theirs.hidden_size,
            "activation": "gelu_tanh",
            "norm": "layernorm",
            "norm_eps": theirs.layer_norm_epsilon,
            "embedding_norm": True,
            "bias": True,
            "positions": "alibi",
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.initializer_range,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        width, names = config.d_model, ("transformer.word_embeddings.weight", "lm_head.weight")
        embedding, head = ends(*names, vocab_size, width, config.tie_embeddings)
        table = embedding | norm("embedding_norm", "transformer.word_embeddings_layernorm", width, bias=True)
        order = by_head(config.num_heads, config.head_size)
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"transformer.h.{index}.", NAMES, order)
        return table | norm("norm", "transformer.ln_f", width, bias=True) | head
