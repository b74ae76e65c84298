"""GPT-2, and GPT-3's blocks where all layers attend densely: learned positions, all maps transposed (Conv1D)."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import Transposed, WeightTable, ends, norm
from model.exchange.families.places import ANY, only

NAMES = classic.Names("ln_1", ("attn.c_attn",), "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")

HEEDS = frozenset(
    {
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
        "activation_function",
        "layer_norm_epsilon",
    }
)
"""Keys of sizes that GPT-2 and GPT-J have."""


def size_keys(config: ModelConfig) -> dict[str, Any]:
    """The same but for n_positions, and what stands beside them in each."""
    return {
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": classic.OLD_NAMES[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def sizes_of(theirs: Any) -> dict[str, Any]:
    """Our keys from them."""
    return {
        "num_layers": theirs.n_layer,
        "d_model": theirs.n_embd,
        "num_heads": theirs.n_head,
        "d_ff": theirs.n_inner or 4 * theirs.n_embd,
        "activation": named("activation_function", theirs.activation_function, activation_names(PLAIN)),
        "norm": "layernorm",
        "norm_eps": theirs.layer_norm_epsilon,
        "bias": True,
        "tie_embeddings": theirs.tie_word_embeddings,
        "init_std": theirs.initializer_range,
    }


class Gpt2(Family):
    """GPT-2."""

    architecture = Architecture("GPT2LMHeadModel", "gpt2", config="GPT2Config")
    places = {**classic.PLACES, "positions": only("positions", "learned"), "max_positions": ANY}
    heeds = HEEDS | {
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
    }
    base = "transformer."
    computed = (".attn.bias", ".attn.masked_bias")

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return size_keys(config) | {"n_positions": config.max_positions, "scale_attn_weights": True}

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(
            theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
        )
        return sizes_of(theirs) | {"positions": "learned", "max_positions": theirs.n_positions}

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "transformer.wte.weight", "lm_head.weight"
        embedding, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        table = embedding | classic.position_table(config, "position_embedding.weight", "transformer.wpe.weight")
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"transformer.h.{index}.", NAMES, Transposed())
        return table | norm("norm", "transformer.ln_f", config.d_model, bias=True) | head
