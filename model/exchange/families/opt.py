"""OPT: GPT-2's blocks with two rows of positions that are never read."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import WeightTable, ends, norm
from model.exchange.families.places import ANY, only

OFFSET, EPS = 2, 1e-5
"""Both are fixed in its class."""
NAMES = classic.Names(
    "self_attn_layer_norm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    "final_layer_norm",
    "fc1",
    "fc2",
)


class Opt(Family):
    """OPT."""

    architecture = Architecture("OPTForCausalLM", "opt")
    places = {
        **classic.PLACES,
        "positions": only("positions", "learned"),
        "max_positions": ANY,
        "position_offset": only("position_offset", OFFSET),
        "norm_eps": only("norm_eps", EPS),
    }
    heeds = frozenset(
        {
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "ffn_dim",
            "max_position_embeddings",
            "activation_function",
            "do_layer_norm_before",
            "word_embed_proj_dim",
            "enable_bias",
            "layer_norm_elementwise_affine",
            "_remove_final_layer_norm",
            "init_std",
        }
    )
    base = "model."

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "ffn_dim": config.d_ff,
            "max_position_embeddings": config.max_positions,
            "activation_function": classic.OLD_NAMES[config.activation],
            "do_layer_norm_before": True,
            "word_embed_proj_dim": config.d_model,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "init_std": config.init_std,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(
            theirs,
            do_layer_norm_before=True,
            word_embed_proj_dim=theirs.hidden_size,
            enable_bias=True,
            layer_norm_elementwise_affine=True,
            _remove_final_layer_norm=False,
        )
        return {
            "num_layers": theirs.num_hidden_layers,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "d_ff": theirs.ffn_dim,
            "activation": named("activation_function", theirs.activation_function, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_eps": EPS,
            "bias": True,
            "positions": "learned",
            "max_positions": theirs.max_position_embeddings,
            "position_offset": OFFSET,
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.init_std,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names, stack = ("model.decoder.embed_tokens.weight", "lm_head.weight"), "model.decoder."
        embedding, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        table = embedding | classic.position_table(
            config, "position_embedding.weight", f"{stack}embed_positions.weight"
        )
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"{stack}layers.{index}.", NAMES)
        return table | norm("norm", f"{stack}final_layer_norm", config.d_model, bias=True) | head
