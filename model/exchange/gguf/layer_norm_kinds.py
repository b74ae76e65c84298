"""Architectures of GGUF with LayerNorm: GPT-2's kin and Cohere's, and BERT among encoders.

gpt2       learned positions           gptneox    rotary positions, parts one after the other or side by side
bloom      ALiBi, a norm behind the embedding     phi2       side by side with one norm, a bias of the head
mpt        learned positions, ALiBi or none, with or without biases
command-r  no biases, gated, side by side; cohere2 has windows and rotates in layers that slide alone
bert       norms after each sum; llama.cpp computes states and nothing that fills masks

GELU without a gate is `gelu_tanh` in all of them, by a table of 16-bit numbers.
"""

from typing import Any

from model.config import ModelConfig
from model.exchange.families.places import ANY, OF_WIDTH, Place, Places, among, only
from model.exchange.gguf.architecture import LINEAR, NORMS, WINDOW, GgufArchitecture, add_window, below

BASE: Places = {"norm": only("norm", "layernorm"), "num_kv_heads": ANY, "head_dim": OF_WIDTH}
CLASSIC: Places = {**BASE, "activation": only("activation", "gelu_tanh"), "bias": only("bias", True)}
LEARNED: Places = {"positions": only("positions", "learned"), "max_positions": ANY, "position_offset": ANY}
ROPE: Places = {"rope_theta": ANY, "rope_scaling": LINEAR}
ALIBI_SLOPES = 8.0
"""The slopes' exponents end with minus this, in BLOOM, MPT and ours."""


def _add_mpt_keys(writer: Any, config: ModelConfig) -> None:
    if config.positions == "alibi":
        writer.add_max_alibi_bias(ALIBI_SLOPES)


def _add_gptneox_keys(writer: Any, config: ModelConfig) -> None:
    writer.add_parallel_residual(config.parallel_block)


def _add_cohere_keys(writer: Any, config: ModelConfig) -> None:
    writer.add_logit_scale(config.logit_scale)
    add_window(writer, config)


def _add_bert_keys(writer: Any, config: ModelConfig) -> None:
    writer.add_token_type_count(config.segment_embeddings or 1)


GPT2 = GgufArchitecture("gpt2", {**CLASSIC, **LEARNED}, fuses=True)
MPT = GgufArchitecture(
    "mpt",
    {
        **among(CLASSIC, ("bias", "qkv_bias", "max_positions", "position_offset")),
        "positions": only("positions", "learned", "alibi", "none"),
    },
    fuses=True,
    add_keys=_add_mpt_keys,
)
BLOOM = GgufArchitecture(
    "bloom",
    {**CLASSIC, "positions": only("positions", "alibi"), "embedding_norm": only("embedding_norm", True)},
    fuses=True,
)
GPTNEOX = GgufArchitecture(
    "gptneox",
    among({**CLASSIC, **ROPE}, ("rope_fraction", "parallel_block", "parallel_norms")),
    fuses=True,
    wants_head=True,
    wants_both_norms=True,
    add_keys=_add_gptneox_keys,
)
PHI2 = GgufArchitecture(
    "phi2",
    {
        **CLASSIC,
        **ROPE,
        "rope_fraction": ANY,
        "parallel_block": only("parallel_block", True),
        "head_bias": only("head_bias", True),
    },
    fuses=True,
    wants_head=True,
)
_COHERE: Places = {
    **BASE,
    **ROPE,
    "parallel_block": only("parallel_block", True),
    "logit_scale": ANY,
    "tie_embeddings": only("tie_embeddings", True),
}
COMMAND_R = GgufArchitecture(
    "command-r",
    {**_COHERE, "num_layers": below("num_layers", 64, "from there on llama.cpp wants norms of queries and keys")},
    pairs_neighbours=True,
    add_keys=_add_cohere_keys,
)
_ROTATES_WHERE_IT_SLIDES = Place(
    lambda config: all(config.slides(index) == config.rotates(index) for index in range(config.num_layers)),
    lambda config: "its layers have positions where they slide, and no others have",
)
COHERE2 = GgufArchitecture(
    "cohere2",
    {
        **_COHERE,
        "sliding_window": Place(
            lambda config: config.sliding_window is not None and WINDOW.fits(config), WINDOW.instead
        ),
        "layer_types": ANY,
        "no_rope_layer_interval": _ROTATES_WHERE_IT_SLIDES,
    },
    pairs_neighbours=True,
    add_keys=_add_cohere_keys,
)
BERT = GgufArchitecture(
    "bert",
    {
        **among({**CLASSIC, **LEARNED}, ("segment_embeddings", "head_transform", "head_bias")),
        "tie_embeddings": ANY,
        "norm_placement": only("norm_placement", "post"),
        "embedding_norm": only("embedding_norm", True),
    },
    shapes=("encoder",),
    has_head=False,
    norms=NORMS | {"attention_norm": "attn_output_norm", "feed_forward_norm": "layer_output_norm"},
    add_keys=_add_bert_keys,
)
