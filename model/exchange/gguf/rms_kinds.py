"""Architectures of GGUF with RMSNorm and rotary positions: Llama's kin, OLMo 2, EXAONE 4, Gemma 1 to 3.

llama        biases; llama3's scaling           phi3      a part of each head rotated
qwen3        norms of queries and keys          smollm3   every fourth layer without positions
granite_swa  Llama with windows, or other layers without positions; scores that belong to no token ("sinks") are given
             so low that they take no weight
olmo2        norms of what is added, windows    exaone4   the same with norms of queries and keys head by head
gemma        embeddings times sqrt(d_model)     gemma3    with norms on both sides, windows, a base of their own there
gemma2       norms on both sides, soft caps of scores and logits, every other layer slides
llada        Llama's block without a causal mask and a cache, for encoders: the name of a causal model would be one for
             other readers
"""

from typing import Any

from model.config import ModelConfig
from model.exchange.families.places import ANY, OF_WIDTH, SCALED_BY_WIDTH, Place, Places, among, only
from model.exchange.gguf.architecture import LINEAR, WINDOW, GgufArchitecture, add_window, anything_but

PLACES: Places = {"num_kv_heads": ANY, "head_dim": ANY, "rope_theta": ANY, "rope_scaling": LINEAR}
WINDOWS: Places = {"sliding_window": WINDOW, "layer_types": ANY}

FURTHEST = 2**30
"""A window beyond any text: llama.cpp aborts where no layer of `granite_swa` slides; so all do, and see everything.
Half of `gemma2`'s slide always."""

LLAMA = GgufArchitecture("llama", among(PLACES, ("bias", "qkv_bias", "rope_scaling")), pairs_neighbours=True)
QWEN3 = GgufArchitecture("qwen3", {**PLACES, "qk_norm": only("qk_norm", True)})
PHI3 = GgufArchitecture("phi3", {**PLACES, "head_dim": OF_WIDTH, "rope_fraction": ANY}, fuses=True, fuses_gate=True)
SMOLLM3 = GgufArchitecture(
    "smollm3", {**PLACES, "no_rope_layer_interval": only("no_rope_layer_interval", 4)}, pairs_neighbours=True
)
LLADA = GgufArchitecture("llada", PLACES, shapes=("encoder",), pairs_neighbours=True)


def _add_granite_swa_keys(writer: Any, config: ModelConfig) -> None:
    layers, full = range(config.num_layers), config.sliding_window is None
    writer.add_logit_scale(1.0)
    writer.add_sliding_window(config.sliding_window or FURTHEST)
    writer.add_sliding_window_pattern([full or config.slides(index) for index in layers])
    writer.add_array(f"{GRANITE_SWA.name}.attention.rope_pattern", [config.rotates(index) for index in layers])


GRANITE_SWA = GgufArchitecture(
    "granite_swa",
    {**LLAMA.places, **WINDOWS, "no_rope_layer_interval": ANY},
    pairs_neighbours=True,
    has_sinks=True,
    is_young=True,
    add_keys=_add_granite_swa_keys,
)
_SAME_BASE = Place(
    lambda config: config.sliding_rope_theta in (None, config.rope_theta),
    lambda config: f"it has rope_theta, {config.rope_theta}, in all layers",
)
_UNSTRETCHED_IF_SLIDING = Place(
    lambda config: (
        config.rope_scaling is None
        or (config.rope_scaling.kind == "linear" and (config.sliding_window is None or bool(config.sliding_rope_theta)))
    ),
    lambda config: "it has linear or null, and never stretches layers that slide: give those a sliding_rope_theta",
)
OLMO2 = GgufArchitecture(
    "olmo2",
    {
        **PLACES,
        **WINDOWS,
        "head_dim": OF_WIDTH,
        "norm_placement": only("norm_placement", "output"),
        "qk_norm": only("qk_norm", "all_heads"),
        "sliding_rope_theta": _SAME_BASE,
        "rope_scaling": _UNSTRETCHED_IF_SLIDING,
    },
    wants_head=True,
    add_keys=add_window,
)
EXAONE4 = GgufArchitecture(
    "exaone4",
    {
        **PLACES,
        "head_dim": OF_WIDTH,
        "norm_placement": only("norm_placement", "output"),
        "qk_norm": only("qk_norm", True),
        "num_layers": anything_but("num_layers", 64, "by that llama.cpp knows the one that slides"),
    },
)
_GEMMA: Places = {
    **PLACES,
    "activation": only("activation", "geglu"),
    "norm": only("norm", "rmsnorm_1p"),
    "embedding_scale": SCALED_BY_WIDTH,
}
GEMMA = GgufArchitecture("gemma", {**_GEMMA, "tie_embeddings": only("tie_embeddings", True)})


def _gemma2_scale(config: ModelConfig) -> float:
    """What llama.cpp scales scores by, which no key can change: it knows the largest by its depth."""
    return (config.d_model // config.num_heads if config.num_layers == 46 else config.head_size) ** -0.5


def _add_gemma2_keys(writer: Any, config: ModelConfig) -> None:
    writer.add_sliding_window(config.sliding_window or FURTHEST)
    writer.add_attn_logit_softcapping(config.attention_softcap)
    writer.add_final_logit_softcapping(config.logit_softcap)


_CAPPED = "it has one in any case"
GEMMA2 = GgufArchitecture(
    "gemma2",
    {
        **GEMMA.places,
        "rope_scaling": only("rope_scaling", None),
        "norm_placement": only("norm_placement", "sandwich"),
        "sliding_window": WINDOW,
        "layer_types": Place(
            lambda config: (
                config.sliding_window is None
                or all(config.slides(index) != bool(index % 2) for index in range(config.num_layers))
            ),
            lambda config: "every other layer slides, from its first",
        ),
        "attention_softcap": Place(lambda config: config.attention_softcap is not None, lambda config: _CAPPED),
        "logit_softcap": Place(lambda config: config.logit_softcap is not None, lambda config: _CAPPED),
        "attention_scale": Place(
            lambda config: (config.attention_scale or config.head_size**-0.5) == _gemma2_scale(config),
            lambda config: f"it has {_gemma2_scale(config)}",
        ),
    },
    add_keys=_add_gemma2_keys,
)


def _add_gemma3_keys(writer: Any, config: ModelConfig) -> None:
    add_window(writer, config)
    if config.sliding_window is not None:
        writer.add_rope_freq_base_swa(config.sliding_rope_theta or config.rope_theta)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)


GEMMA3 = GgufArchitecture(
    "gemma3",
    {
        **among(_GEMMA, ("sliding_rope_theta", "logit_softcap")),
        **WINDOWS,
        "norm_placement": only("norm_placement", "sandwich"),
        "qk_norm": only("qk_norm", True),
        "rope_scaling": _UNSTRETCHED_IF_SLIDING,
        "num_layers": anything_but("num_layers", 62, "by that llama.cpp knows the one that scales scores otherwise"),
    },
    add_keys=_add_gemma3_keys,
)
