"""A small model of ours for every class that it can be written as."""

from typing import Any

from model.config import ModelConfig

VOCAB = 600
SIZE: dict[str, Any] = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 48, "init_std": 0.15}
GROUPED = SIZE | {"num_kv_heads": 2}
TIED = {"tie_embeddings": True}
CLASSIC = SIZE | {"norm": "layernorm", "bias": True, "activation": "gelu_tanh"}
LEARNED = {"positions": "learned", "max_positions": 128}
POST = CLASSIC | LEARNED | {"norm_placement": "post", "embedding_norm": True, "activation": "gelu"}
MASKED = {"shape": "encoder", "head_transform": True, "head_bias": True}
GEMMA = (
    GROUPED
    | TIED
    | {"init_std": 0.05, "norm": "rmsnorm_1p", "activation": "geglu", "embedding_scale": 32**0.5, "head_dim": 12}
)
UNBIASED = {"qkv_bias": False, "attention_output_bias": False}
GPTJ = CLASSIC | UNBIASED | {"parallel_block": True, "head_bias": True}
MODERN = (
    SIZE
    | {"shape": "encoder", "norm": "layernorm", "activation": "geglu_exact", "embedding_norm": True, "num_layers": 4}
    | {"first_attention_norm": False, "head_transform": True, "sliding_window": 9, "sliding_rope_theta": 500.0}
    | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "rope_theta": 2e5}
)
T5 = SIZE | {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1, "head_dim": 16}
UMT5 = T5 | {"t5_bias_per_layer": True, "logit_scale": 32**-0.5}
BART = POST | {"shape": "encdec", "position_offset": 2, "num_encoder_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": GROUPED,
    "LlamaForCausalLM, tied": GROUPED | TIED | {"activation": "geglu_exact", "head_dim": 12, "bias": True},
    "Qwen3ForCausalLM": GROUPED | {"qk_norm": True},
    "MistralForCausalLM": GROUPED | {"sliding_window": 8},
    "SmolLM3ForCausalLM": GROUPED | {"no_rope_layer_interval": 2},
    "LlamaForCausalLM, attention's biases": GROUPED | {"qkv_bias": True, "attention_output_bias": True},
    "SeedOssForCausalLM": GROUPED | {"qkv_bias": True},
    "SeedOssForCausalLM, attention's output": GROUPED | {"attention_output_bias": True},
    "ArceeForCausalLM": GROUPED | {"activation": "gelu_tanh", "bias": True},
    "ArceeForCausalLM, tied": GROUPED | TIED | {"activation": "relu", "head_dim": 12},
    "Phi3ForCausalLM": GROUPED | {"rope_fraction": 0.5},
    "Phi3ForCausalLM, tied": GROUPED | TIED | {"rope_fraction": 0.75, "head_dim": 16, "sliding_window": 8},
    "Olmo2ForCausalLM": GROUPED | {"norm_placement": "output", "qk_norm": "all_heads"},
    "Olmo2ForCausalLM, tied": GROUPED
    | TIED
    | {"norm_placement": "output", "qk_norm": "all_heads", "head_dim": 12}
    | {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "GemmaForCausalLM": GEMMA,
    "GemmaForCausalLM, untied": GEMMA | {"tie_embeddings": False, "num_kv_heads": 1},
    "Gemma2ForCausalLM": GEMMA
    | {"norm_placement": "sandwich", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    | {"attention_softcap": 0.5, "logit_softcap": 5.0, "init_std": 0.15},
    "Gemma2ForCausalLM, untied": GEMMA
    | {"norm_placement": "sandwich", "tie_embeddings": False, "num_kv_heads": 1, "attention_scale": 17**-0.5}
    | {"attention_softcap": 0.5, "rope_scaling": {"kind": "linear", "factor": 4.0}},
    "Gemma3ForCausalLM": GEMMA
    | {"norm_placement": "sandwich", "qk_norm": True, "sliding_window": 8, "sliding_rope_theta": 500.0}
    | {"layer_types": ["sliding_attention", "full_attention"], "rope_scaling": {"kind": "linear", "factor": 4.0}},
    "Gemma3ForCausalLM, capped": GEMMA
    | {"norm_placement": "sandwich", "qk_norm": True, "logit_softcap": 5.0, "attention_scale": 20**-0.5},
    "GPT2LMHeadModel": CLASSIC | LEARNED,
    "GPT2LMHeadModel, tied": CLASSIC | LEARNED | TIED,
    "OPTForCausalLM": CLASSIC | LEARNED | {"activation": "relu", "position_offset": 2},
    "OPTForCausalLM, tied": CLASSIC | LEARNED | TIED | {"activation": "relu", "position_offset": 2},
    "BloomForCausalLM": CLASSIC | {"positions": "alibi", "embedding_norm": True, "d_ff": 128},
    "BloomForCausalLM, six heads": CLASSIC
    | TIED
    | {"positions": "alibi", "embedding_norm": True, "d_model": 24, "num_heads": 6, "d_ff": 96},
    "GPTNeoXForCausalLM": CLASSIC | {"parallel_block": True, "parallel_norms": 2, "rope_fraction": 0.25},
    "GPTNeoXForCausalLM, in turn": CLASSIC | TIED | {"activation": "gelu"},
    "PhiForCausalLM": CLASSIC | {"parallel_block": True, "head_bias": True, "rope_fraction": 0.5, "num_kv_heads": 2},
    "PhiForCausalLM, tied": CLASSIC | TIED | {"parallel_block": True, "head_bias": True, "head_dim": 12},
    "GPTJForCausalLM": GPTJ | {"rope_fraction": 0.5},
    "GPTJForCausalLM, tied": GPTJ | TIED | {"d_model": 40, "rope_fraction": 0.2, "d_ff": 160, "activation": "gelu"},
    "CohereForCausalLM": GROUPED | {"norm": "layernorm", "parallel_block": True, "head_dim": 12},
    "CohereForCausalLM, one key head": GROUPED
    | TIED
    | {"norm": "layernorm", "parallel_block": True, "num_kv_heads": 1, "logit_scale": 32**-0.5},
    "PrefixLlamaForCausalLM": GROUPED | {"shape": "prefix"},
    "PrefixDecoderForCausalLM": CLASSIC | TIED | {"shape": "prefix", "activation": "geglu", "rope_fraction": 0.5},
    "PrefixDecoderForCausalLM, post-norm": POST | TIED | MASKED | {"shape": "prefix", "segment_embeddings": 2},
    "PrefixDecoderForCausalLM, parallel": GROUPED
    | {"shape": "prefix", "norm": "layernorm", "parallel_block": True, "num_kv_heads": 1, "logit_scale": 32**-0.5},
    "PrefixDecoderForCausalLM, ALiBi": CLASSIC | {"shape": "prefix", "positions": "alibi", "embedding_norm": True},
    "PrefixDecoderForCausalLM, RMSNorm": GROUPED
    | {"shape": "prefix", "activation": "relu", "qk_norm": True, "qkv_bias": True, "head_dim": 10},
    "PrefixDecoderForCausalLM, as GPT-J": GPTJ | {"shape": "prefix", "rope_fraction": 0.5},
    "EuroBertForMaskedLM": GROUPED | TIED | {"shape": "encoder"},
    "BertForMaskedLM": POST | MASKED | TIED | {"segment_embeddings": 2},
    "BertForMaskedLM, untied": POST | MASKED | {"segment_embeddings": 2, "norm_eps": 1e-12},
    "RobertaForMaskedLM": POST | MASKED | TIED | {"segment_embeddings": 1, "position_offset": 4},
    "RobertaForMaskedLM, untied": POST | MASKED | {"segment_embeddings": 1, "position_offset": 4},
    "ModernBertForMaskedLM": MODERN | TIED | {"head_bias": True},
    "ModernBertForMaskedLM, biases in attention alone": MODERN
    | {"qkv_bias": True, "attention_output_bias": True, "activation": "geglu", "sliding_window": 8}
    | {"layer_types": ["sliding_attention", "full_attention"], "rope_scaling": {"kind": "linear", "factor": 4.0}},
    "ModernBertForMaskedLM, biases elsewhere": MODERN
    | UNBIASED
    | {"bias": True, "head_bias": True, "activation": "swiglu", "sliding_rope_theta": None, "layer_types": None},
    "ModernBertForMaskedLM, none slides": MODERN
    | TIED
    | {"sliding_window": None, "sliding_rope_theta": None, "layer_types": None},
    "T5ForConditionalGeneration": T5,
    "T5ForConditionalGeneration, tied": T5 | TIED | {"activation": "relu"},
    "UMT5ForConditionalGeneration": UMT5,
    "UMT5ForConditionalGeneration, tied": UMT5 | TIED | {"activation": "geglu"},
    "BartForConditionalGeneration": BART | TIED,
    "BartForConditionalGeneration, untied": BART | {"embedding_scale": 32**0.5, "num_layers": 1},
    "EncDecRopeForConditionalGeneration": GROUPED | {"shape": "encdec", "num_encoder_layers": 1},
    "EncDecRopeForConditionalGeneration, attention's output": GROUPED
    | {"shape": "encdec", "num_encoder_layers": 1, "attention_output_bias": True},
}
"""By the class, and how it differs from others of the class."""


def config_of(case: str) -> ModelConfig:
    """The config of a case."""
    return ModelConfig(**CASES[case])
