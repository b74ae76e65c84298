"""Presets against the config.json of the model they are of: our keys from it, and its class on the meta device."""

from typing import Any

import pytest
import torch
import transformers

from launcher import models
from model.config import ModelConfig
from model.exchange.families import BY_TYPE, FAMILIES, family_of
from model.exchange.their_configs import TheirConfig, from_hf_config


def llama_like(model_type: str, layers: int, width: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    """What configs of Llama's kin have in common."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    return sizes | {"model_type": model_type, "num_attention_heads": heads, "num_key_value_heads": kv_heads}


QWEN3 = {"vocab_size": 151936, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000000}
GEMMA = {"vocab_size": 256000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
GEMMA2 = GEMMA | {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
NEOX = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5}
NEOX |= {"use_parallel_residual": True, "tie_word_embeddings": False}
PUBLISHED: dict[str, dict[str, Any]] = {
    "mistral-7b": llama_like("mistral", 32, 4096, 32, 8, 14336)
    | {"vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096},
    "qwen3-0.6b": llama_like("qwen3", 28, 1024, 16, 8, 3072) | QWEN3 | {"tie_word_embeddings": True},
    "qwen3-8b": llama_like("qwen3", 36, 4096, 32, 8, 12288) | QWEN3 | {"tie_word_embeddings": False},
    "smollm2-135m": llama_like("llama", 30, 576, 9, 3, 1536)
    | {"vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True},
    "smollm3-3b": llama_like("smollm3", 36, 2048, 16, 4, 11008)
    | {"vocab_size": 128256, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0, "no_rope_layers": [1, 1, 1, 0] * 9},
    "olmo2-7b": llama_like("olmo2", 32, 4096, 32, 32, 11008)
    | {"vocab_size": 100352, "rms_norm_eps": 1e-6, "rope_theta": 500000},
    "phi-2": llama_like("phi", 32, 2560, 32, 32, 10240)
    | {"vocab_size": 51200, "partial_rotary_factor": 0.4, "hidden_act": "gelu_new", "rope_theta": 10000.0},
    "phi-3-mini": llama_like("phi3", 32, 3072, 32, 32, 8192)
    | {"vocab_size": 32064, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 2047},
    "phi-4-mini": llama_like("phi3", 32, 3072, 24, 8, 8192)
    | {"vocab_size": 200064, "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "pad_token_id": 199999},
    "gemma-2b": llama_like("gemma", 18, 2048, 8, 1, 16384) | GEMMA | {"head_dim": 256},
    "gemma2-2b": llama_like("gemma2", 26, 2304, 8, 4, 9216) | GEMMA2 | {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma2-27b": llama_like("gemma2", 46, 4608, 32, 16, 36864)
    | GEMMA2
    | {"head_dim": 128, "query_pre_attn_scalar": 144},
    "gemma3-1b": llama_like("gemma3_text", 26, 1152, 4, 1, 6912)
    | {"vocab_size": 262144, "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6}
    | {"rope_theta": 1000000, "rope_local_base_freq": 10000, "sliding_window": 512, "sliding_window_pattern": 6},
    "gpt-neox-20b": NEOX
    | {"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64}
    | {"intermediate_size": 24576, "hidden_act": "gelu_fast"},
    "pythia-1b": NEOX
    | {"vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8}
    | {"intermediate_size": 8192, "hidden_act": "gelu"},
    "command-r-35b": llama_like("cohere", 40, 8192, 64, 64, 22528)
    | {"vocab_size": 256000, "layer_norm_eps": 1e-5, "rope_theta": 8000000.0, "logit_scale": 0.0625},
    "eurobert-210m": llama_like("eurobert", 12, 768, 12, 12, 3072)
    | {"vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 250000},
    "umt5-small": {"model_type": "umt5", "vocab_size": 256384, "d_model": 512, "d_kv": 64, "d_ff": 1024}
    | {"num_layers": 8, "num_decoder_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    | {"tie_word_embeddings": False},
    "seed-oss-36b": llama_like("seed_oss", 64, 5120, 80, 8, 27648)
    | {"vocab_size": 155136, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000000.0}
    | {"attention_bias": True, "attention_out_bias": False},
}
"""What the config.json of the published model says of its sizes and blocks, by preset."""


def described(config: ModelConfig) -> dict[str, Any]:
    """What a config says of the network, whichever way."""
    told = config.model_dump(exclude={"vocab_size", "init_std", "tie_embeddings", "num_encoder_layers"})
    meant = {"head_dim": config.head_size, "num_kv_heads": config.kv_heads, "qkv_bias": config.has_qkv_bias}
    return told | meant | {"attention_output_bias": config.has_attention_output_bias, "encoder": config.encoder_layers}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_the_published_config_describes(name):
    preset, read = models.load(name).model, from_hf_config(TheirConfig.of(PUBLISHED[name]))
    assert described(read.config) == described(preset)
    assert read.vocab_size == preset.vocab_size


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_class_of_a_published_config_has_as_many_parameters(name):
    facts, preset = dict(PUBLISHED[name]), models.load(name).model
    found = BY_TYPE[facts.pop("model_type")].architecture
    with torch.device("meta"):
        theirs = getattr(transformers, found.name)(found.config_class()(**facts))
    is_tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert is_tied == preset.tie_embeddings or name == "umt5-small"  # transformers 5 ties the head of every UMT5
    untied = facts["vocab_size"] * preset.d_model * (is_tied - preset.tie_embeddings)
    assert theirs.num_parameters() + untied == models.count_parameters(preset)


def test_every_class_of_transformers_own_is_that_of_a_preset():
    written = {family.architecture.name for family in FAMILIES if family.is_written and not family.architecture.shipped}
    assert written <= {family_of(models.load(name).model).architecture.name for name in models.names()}
