"""What config.json says of a model of ours, and which class it is for (architectures.py).

What a class has no place for is refused by the name of its key.
"""

from typing import Any

import torch

from common.mistakes import Mistake
from model.config import FULL, SLIDING, ModelConfig
from model.exchange.architectures import (
    ENCDEC,
    EUROBERT,
    LLAMA,
    MISTRAL,
    PREFIX,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
    T5,
    Architecture,
)

GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
"""Our gated activations by the name of the function that their gate goes through."""
PLAIN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
"""Our activations without a gate."""
T5_ACTIVATIONS = {
    "swiglu": "gated-silu",
    "geglu": "gated-gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}

WITHOUT: dict[str, Any] = {
    "norm_placement": "pre",
    "sliding_rope_theta": None,
    "segment_embeddings": None,
    "embedding_scale": 1.0,
    "head_transform": False,
    "head_bias": False,
    "logit_scale": 1.0,
    "logit_softcap": None,
}
"""Keys that none of these classes has a place for, by the value that asks for none."""


def architecture(config: ModelConfig) -> Architecture:
    """The class that computes what this model computes. ValueError naming the key that none has a place for."""
    found = _candidate(config)
    _refuse_others(config, found, "positions", "t5_bias" if found is T5 else "rope")
    _refuse_others(config, found, "norm", "rmsnorm")
    for key in ("embedding_norm", "parallel_block", "attention_gate"):
        _refuse_others(config, found, key, False)
    for key, neutral in WITHOUT.items():
        _refuse_others(config, found, key, neutral)
    _refuse_others(config, found, "rope_fraction", 1.0)
    _refuse_others(config, found, "activation", *GATES, *([] if found not in (T5, ENCDEC) else PLAIN))
    if found not in (QWEN3, MISTRAL, SMOLLM3):
        _refuse_others(config, found, "sliding_window", None)
    if found is not SMOLLM3:
        _refuse_others(config, found, "no_rope_layer_interval", None)
    _refuse_others(config, found, "qk_norm", False, *([True] if found in (QWEN3, ENCDEC) else []))
    if found not in (LLAMA, SEED_OSS, SMOLLM3, PREFIX, ENCDEC):
        _refuse_others(config, found, "bias", False)
    if found not in (SEED_OSS, ENCDEC):
        _refuse_qkv_bias(config, found)
    if found in (LLAMA, PREFIX, EUROBERT) and config.d_model % config.num_heads:
        raise Mistake(
            f"model.num_heads: {config.num_heads} does not divide d_model {config.d_model}, which {found.name} of "
            "transformers asks for whatever head_dim is; this model has no place there"
        )
    return found


def _candidate(config: ModelConfig) -> Architecture:
    if config.shape == "encdec":
        return T5 if config.positions == "t5_bias" else ENCDEC
    if config.shape != "causal":
        return PREFIX if config.shape == "prefix" else EUROBERT
    if config.qk_norm:
        return QWEN3
    if config.no_rope_layer_interval is not None:
        return SMOLLM3
    if config.sliding_window is not None:
        has_biases = config.bias or config.has_qkv_bias
        return SMOLLM3 if has_biases or config.num_sliding(config.num_layers) < config.num_layers else MISTRAL
    return LLAMA if config.has_qkv_bias == config.bias and config.d_model % config.num_heads == 0 else SEED_OSS


def _refuse_others(config: ModelConfig, found: Architecture, key: str, *allowed: Any) -> None:
    value = getattr(config, key)
    if value not in allowed:
        choice = " or ".join(as_yaml(one) for one in allowed)
        raise Mistake(
            f"model.{key}: {as_yaml(value)} has no place in Hugging Face's {found.name}, which shape {config.shape} "
            f"is written as; it has {choice}"
        )


def _refuse_qkv_bias(config: ModelConfig, found: Architecture) -> None:
    if config.has_qkv_bias != config.bias:
        raise Mistake(
            f"model.qkv_bias: {as_yaml(config.has_qkv_bias)} has no place in Hugging Face's {found.name} when bias is "
            f"{as_yaml(config.bias)}; its queries, keys and values have biases where its other maps have them"
        )


def as_yaml(value: Any) -> str:
    """A value as a config file has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def hf_config(config: ModelConfig, vocab_size: int, max_positions: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of the same model, but for the ids of special tokens. ValueError as of `architecture`.

    The rotary base and the dtype stand there under their old and new names, for old and new readers.
    """
    found = architecture(config)
    dtype_name = str(dtype).removeprefix("torch.")
    common = {
        "architectures": [found.name],
        "model_type": found.model_type,
        "vocab_size": vocab_size,
        "initializer_range": config.init_std,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,
    }
    if found.shipped:
        common["auto_map"] = auto_map(found)
    if found is T5:
        return common | _t5_keys(config, max_positions)
    keys = common | _llama_keys(config, max_positions)
    if found is ENCDEC:
        keys |= {
            "is_encoder_decoder": True,
            "num_encoder_layers": config.encoder_layers,
            "gated": config.is_gated,
            "hidden_act": (GATES | PLAIN)[config.activation],
            "qkv_bias": config.has_qkv_bias,
            "qk_norm": config.qk_norm,
        }
    if found is SMOLLM3:
        keys |= {"no_rope_layers": [int(config.rotates(index)) for index in range(config.num_layers)]}
    if found in (QWEN3, SMOLLM3):
        keys |= {"use_sliding_window": config.sliding_window is not None}
    if found in (QWEN3, SMOLLM3, MISTRAL):
        keys |= {"sliding_window": config.sliding_window}
    if found is not MISTRAL and config.sliding_window is not None:
        keys |= {"layer_types": [SLIDING if config.slides(i) else FULL for i in range(config.num_layers)]}
    if found is SEED_OSS:
        keys |= {"attention_bias": config.has_qkv_bias, "attention_out_bias": config.bias, "residual_dropout": 0.0}
    return keys


def auto_map(found: Architecture) -> dict[str, str]:
    """What transformers takes from a class's modeling file for each of its Auto classes."""
    assert found.shipped
    module = found.shipped.removesuffix(".py")
    model = found.config_name.removesuffix("Config") + "Model"
    classes = {"AutoConfig": found.config_name, "AutoModel": model, found.auto: found.name}
    return {auto: f"{module}.{name}" for auto, name in classes.items()}


def _llama_keys(config: ModelConfig, max_positions: int) -> dict[str, Any]:
    keys = {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": GATES.get(config.activation, "silu"),
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": _rope_parameters(config),
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
    if config.rope_scaling is not None:
        keys["rope_scaling"] = keys["rope_parameters"]
    return keys


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    scaling, base = config.rope_scaling, {"rope_theta": config.rope_theta}
    if scaling is None:
        return {"rope_type": "default"} | base
    keys = {"rope_type": scaling.kind, "factor": scaling.factor} | base
    if scaling.kind == "llama3":
        keys |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return keys


def _t5_keys(config: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The head is always written as one of its own: T5 scales what a tied one reads."""
    return {
        "is_encoder_decoder": True,
        "d_model": config.d_model,
        "d_kv": config.head_size,
        "d_ff": config.d_ff,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.num_layers,
        "decoder_layers": config.num_layers,  # by which generate() sizes its cache, or it takes the encoder's depth
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.t5_num_buckets,
        "relative_attention_max_distance": config.t5_max_distance,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": T5_ACTIVATIONS[config.activation],
        "n_positions": max_positions,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
