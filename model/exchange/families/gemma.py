"""Gemma 1 and 3: embeddings times sqrt(d_model), weights of norms kept less 1; in 3, norms on both sides of a part.

In Gemma 3 layers may slide and have a rotary base of their own then; its scores are scaled as ours where its
query_pre_attn_scalar is head_dim.
"""

from typing import Any

from model.config import FULL, SLIDING, ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import rope
from model.exchange.families.classic import must_be
from model.exchange.families.family import GATES, activation_names, named
from model.exchange.families.layers import kinds_of_layers, window_of
from model.exchange.families.llama import HEEDS, PLACES, WINDOWS, Llama, llama_sizes
from model.exchange.families.places import SCALED_BY_WIDTH, among, only

TANH = {"geglu": GATES["geglu"]}
"""The only gate that all versions of transformers read alike."""


class Gemma(Llama):
    """Gemma 1."""

    architecture = Architecture("GemmaForCausalLM", "gemma")
    places = {
        **PLACES,
        "activation": only("activation", *TANH),
        "norm": only("norm", "rmsnorm_1p"),
        "embedding_scale": SCALED_BY_WIDTH,
    }
    heeds = HEEDS | {"use_bidirectional_attention", "hidden_activation"}
    activations = TANH

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        own = {"norm": "rmsnorm_1p", "embedding_scale": theirs.hidden_size**0.5}
        return super().ours(theirs) | own

    def _biases(self, theirs: Any) -> dict[str, Any]:
        must_be(theirs, attention_bias=False)
        if theirs.use_bidirectional_attention:
            must_be(theirs, use_bidirectional_attention=False)
        return {}


class Gemma3(Gemma):
    """Gemma 3, its text model."""

    architecture = Architecture("Gemma3ForCausalLM", "gemma3_text", config="Gemma3TextConfig")
    places = {
        **among(Gemma.places, ("sliding_window", "layer_types", "sliding_rope_theta", "logit_softcap")),
        "norm_placement": only("norm_placement", "sandwich"),
        "qk_norm": only("qk_norm", True),
    }
    heeds = (HEEDS | WINDOWS | Gemma.heeds) - {"use_sliding_window", "max_window_layers"} | {
        "hidden_activation",
        "query_pre_attn_scalar",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "rope_local_base_freq",
        "sliding_window_pattern",
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the base of layers that slide under its old name too."""
        keys = super().keys(config, max_positions)
        keys["hidden_activation"] = keys.pop("hidden_act")
        full, own = keys["rope_parameters"], config.sliding_rope_theta
        sliding = full if own is None else {"rope_type": "default", "rope_theta": own}
        return keys | {
            "rope_parameters": {FULL: full, SLIDING: sliding},
            "rope_local_base_freq": sliding["rope_theta"],
            "query_pre_attn_scalar": config.head_size,
            "sliding_window": config.sliding_window or max_positions,  # it asks for one where no layer slides too
            "layer_types": kinds_of_layers(config),
            "final_logit_softcapping": config.logit_softcap,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        must_be(theirs, query_pre_attn_scalar=theirs.head_dim, attn_logit_softcapping=None, attention_bias=False)
        must_be(theirs, use_bidirectional_attention=False)
        return {
            **llama_sizes(theirs),
            "activation": named("hidden_activation", theirs.hidden_activation, activation_names(TANH)),
            "norm": "rmsnorm_1p",
            "norm_placement": "sandwich",
            "qk_norm": True,
            "embedding_scale": theirs.hidden_size**0.5,
            "logit_softcap": theirs.final_logit_softcapping,
            **window_of(theirs),
            **rope.bases_of(theirs),
        }
