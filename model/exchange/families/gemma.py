"""Gemma 1, 2 and 3: embeddings times sqrt(d_model), weights of norms kept less 1.

From 2 on norms stand on both sides of a part, layers may slide, logits are capped and scores scaled by a number of
their own. Gemma 2 caps scores too; Gemma 3 has norms of queries and keys instead, and in layers that slide a rotary
base of its own.
"""

from typing import Any

from model.config import FULL, SLIDING, ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import rope
from model.exchange.families.classic import must_be
from model.exchange.families.family import GATES, activation_names, named
from model.exchange.families.layers import kinds_of_layers, window_of
from model.exchange.families.llama import HEEDS, PLACES, WINDOWS, Llama, llama_sizes
from model.exchange.families.places import SCALED_BY_WIDTH, Place, among, only

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


class Gemma2(Gemma):
    """Gemma 2."""

    architecture = Architecture("Gemma2ForCausalLM", "gemma2")
    places = {
        **among(Gemma.places, ("sliding_window", "layer_types", "logit_softcap", "attention_softcap")),
        "attention_scale": Place(lambda config: _scalar(config) is not None, lambda config: "it has n**-0.5, n whole"),
        "norm_placement": only("norm_placement", "sandwich"),
    }
    heeds = (HEEDS | WINDOWS | Gemma.heeds) - {"use_sliding_window", "max_window_layers"} | {
        "query_pre_attn_scalar",
        "final_logit_softcapping",
        "attn_logit_softcapping",
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; where scores are capped, of a kernel that caps them: transformers 4 takes one that does not."""
        keys = super().keys(config, max_positions)
        keys["hidden_activation"] = keys.pop("hidden_act")
        if config.attention_softcap is not None:
            keys["_attn_implementation"] = "eager"
        return keys | {
            "query_pre_attn_scalar": _scalar(config),
            "sliding_window": config.sliding_window or max_positions,  # it asks for one where no layer slides too
            "layer_types": kinds_of_layers(config),
            "final_logit_softcapping": config.logit_softcap,
            "attn_logit_softcapping": config.attention_softcap,
            "use_bidirectional_attention": False,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        scalar = theirs.query_pre_attn_scalar
        return {
            **llama_sizes(theirs),
            **self._biases(theirs),
            "activation": named("hidden_activation", theirs.hidden_activation, activation_names(TANH)),
            "norm": "rmsnorm_1p",
            "norm_placement": "sandwich",
            "embedding_scale": theirs.hidden_size**0.5,
            "attention_scale": None if scalar == theirs.head_dim else scalar**-0.5,
            "attention_softcap": theirs.attn_logit_softcapping,
            "logit_softcap": theirs.final_logit_softcapping,
            **window_of(theirs),
            **self._rope(theirs),
        }

    def _rope(self, theirs: Any) -> dict[str, Any]:
        return rope.rope_of(theirs.rope_parameters)


class Gemma3(Gemma2):
    """Gemma 3, its text model. Its class reads a soft cap of scores from the config and never applies it."""

    architecture = Architecture("Gemma3ForCausalLM", "gemma3_text", config="Gemma3TextConfig")
    places = {
        **among(Gemma2.places, ("sliding_rope_theta",)),
        "attention_softcap": only("attention_softcap", None),
        "qk_norm": only("qk_norm", True),
    }
    heeds = Gemma2.heeds | {"rope_local_base_freq", "sliding_window_pattern"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the base of layers that slide under its old name too."""
        keys = super().keys(config, max_positions)
        full, own = keys["rope_parameters"], config.sliding_rope_theta
        sliding = full if own is None else {"rope_type": "default", "rope_theta": own}
        parameters = {FULL: full, SLIDING: sliding}
        return keys | {"rope_parameters": parameters, "rope_local_base_freq": sliding["rope_theta"]}

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        must_be(theirs, attn_logit_softcapping=None)
        return super().ours(theirs) | {"qk_norm": True}

    def _rope(self, theirs: Any) -> dict[str, Any]:
        return rope.bases_of(theirs)


def _scalar(config: ModelConfig) -> int | None:
    """The whole number n of which scores are scaled by n**-0.5; None where there is no such."""
    if config.attention_scale is None:
        return config.head_size
    n = round(config.attention_scale**-2)
    return n if n > 0 and n**-0.5 == config.attention_scale else None
