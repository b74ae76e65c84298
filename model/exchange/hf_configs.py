"""Which class of Hugging Face's a model of ours is, what its config.json says, and the way back.

    shape    positions   class                         model_type
    causal   rope        LlamaForCausalLM              llama
             rope        Qwen3ForCausalLM              qwen3, for qk_norm
             rope        SeedOssForCausalLM            seed_oss, for qkv_bias unlike bias, odd numbers of heads
             rope        Qwen2ForCausalLM              qwen2, read but not written: transformers gives that type
                                                       its own tokenizer, whatever the folder says
    prefix   rope        PrefixLlamaForCausalLM        prefix_llama, hf/prefix_llama.py is put into the folder
    encoder  rope        EuroBertForMaskedLM           eurobert
    encdec   t5_bias     T5ForConditionalGeneration    t5
    encdec   rope        EncDecRopeForConditionalGeneration    encdec_rope, hf/encdec_rope.py likewise

What a class has no place for is refused by the name of its key.
"""

from typing import Any, NamedTuple

import torch

from common.mistakes import Mistake
from model.config import ModelConfig, RopeScaling

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


class Architecture(NamedTuple):
    """A class of transformers."""

    name: str
    """Its name."""
    model_type: str
    """What config.json calls it."""
    auto: str
    """The Auto class that loads it."""
    shipped: str | None = None
    """File of model/hf/ that defines it, where transformers does not."""


LLAMA = Architecture("LlamaForCausalLM", "llama", "AutoModelForCausalLM")
QWEN2 = Architecture("Qwen2ForCausalLM", "qwen2", "AutoModelForCausalLM")
SEED_OSS = Architecture("SeedOssForCausalLM", "seed_oss", "AutoModelForCausalLM")
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "AutoModelForCausalLM")
PREFIX = Architecture("PrefixLlamaForCausalLM", "prefix_llama", "AutoModelForCausalLM", "prefix_llama.py")
EUROBERT = Architecture("EuroBertForMaskedLM", "eurobert", "AutoModelForMaskedLM")
T5 = Architecture("T5ForConditionalGeneration", "t5", "AutoModelForSeq2SeqLM")
ENCDEC = Architecture("EncDecRopeForConditionalGeneration", "encdec_rope", "AutoModelForSeq2SeqLM", "encdec_rope.py")
BY_TYPE = {found.model_type: found for found in (LLAMA, QWEN2, QWEN3, SEED_OSS, PREFIX, EUROBERT, T5, ENCDEC)}


def architecture(config: ModelConfig) -> Architecture:
    """The class that computes what this model computes. ValueError naming the key that none has a place for."""
    found = _candidate(config)
    _refuse_others(config, found, "positions", "t5_bias" if found is T5 else "rope")
    _refuse_others(config, found, "norm", "rmsnorm")
    for key in ("embedding_norm", "parallel_block"):
        _refuse_others(config, found, key, False)
    _refuse_others(config, found, "rope_fraction", 1.0)
    _refuse_others(config, found, "activation", *GATES, *([] if found not in (T5, ENCDEC) else PLAIN))
    if found not in (QWEN3, ENCDEC):
        _refuse_others(config, found, "qk_norm", False)
    if found not in (LLAMA, SEED_OSS, PREFIX, ENCDEC):
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
    return LLAMA if config.has_qkv_bias == config.bias and config.d_model % config.num_heads == 0 else SEED_OSS


def _refuse_others(config: ModelConfig, found: Architecture, key: str, *allowed: Any) -> None:
    value = getattr(config, key)
    if value not in allowed:
        choice = " or ".join(_shown(one) for one in allowed)
        raise Mistake(
            f"model.{key}: {_shown(value)} has no place in Hugging Face's {found.name}, which shape {config.shape} "
            f"is written as; it has {choice}"
        )


def _refuse_qkv_bias(config: ModelConfig, found: Architecture) -> None:
    if config.has_qkv_bias != config.bias:
        raise Mistake(
            f"model.qkv_bias: {_shown(config.has_qkv_bias)} has no place in Hugging Face's {found.name} when bias is "
            f"{_shown(config.bias)}; its queries, keys and values have biases where its other maps have them"
        )


def _shown(value: Any) -> str:
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
        common["auto_map"] = _auto_map(found)
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
    if found is QWEN3:
        keys |= {"use_sliding_window": False, "sliding_window": None}
    if found is SEED_OSS:
        keys |= {"attention_bias": config.has_qkv_bias, "attention_out_bias": config.bias, "residual_dropout": 0.0}
    return keys


def _auto_map(found: Architecture) -> dict[str, str]:
    assert found.shipped
    module = found.shipped.removesuffix(".py")
    prefix = found.name.split("For")[0]
    classes = {"AutoConfig": f"{prefix}Config", "AutoModel": f"{prefix}Model", found.auto: found.name}
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


class ImportedConfig(NamedTuple):
    """What a config.json says in our words."""

    config: ModelConfig
    vocab_size: int
    max_positions: int | None
    """Longest text it was made for, None where it does not say."""
    architecture: Architecture
    scales_head: bool = False
    """Whether the head is the embedding divided by sqrt(d_model), as in the first T5."""


def from_hf_config(facts: dict[str, Any]) -> ImportedConfig:
    """The model of ours that a config.json describes. ValueError naming what ours has no place for."""
    kind = facts.get("model_type")
    found = BY_TYPE.get(str(kind))
    if found is None:
        raise Mistake(f"config.json: model_type {kind} is none that can be imported; allowed are {', '.join(BY_TYPE)}")
    if facts.get("quantization_config"):
        raise Mistake("config.json: the weights are quantized; import the model they were made from")
    theirs = _config_object(found, facts)
    return _from_t5(theirs) if found is T5 else _from_llama(theirs, found)


def _config_object(found: Architecture, facts: dict[str, Any]) -> Any:
    """Their config with all defaults filled in."""
    keys = {key: value for key, value in facts.items() if key not in ("model_type", "auto_map")}
    if found is ENCDEC:
        from model.exchange.hf.encdec_rope import EncDecRopeConfig

        return EncDecRopeConfig(**keys)
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING["llama" if found is PREFIX else found.model_type](**keys)


def _from_llama(theirs: Any, found: Architecture) -> ImportedConfig:
    if getattr(theirs, "use_sliding_window", False):
        raise Mistake("config.json: use_sliding_window true has no place here; only full attention has")
    is_encdec = found is ENCDEC
    bias = _one_bias(theirs, found) if found not in (QWEN2, QWEN3) else False
    if bias and found is EUROBERT:
        raise Mistake("config.json: mlp_bias true gives the head a bias, which has no place here")
    if found is QWEN3 and theirs.attention_bias:
        raise Mistake("config.json: attention_bias true has no place beside Qwen3's norms of queries and keys here")
    shapes = {PREFIX: "prefix", EUROBERT: "encoder", ENCDEC: "encdec"}
    gates = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
    names = gates if not is_encdec or theirs.gated else {name: ours for ours, name in PLAIN.items()}
    qkv_bias = {
        QWEN2: True,
        SEED_OSS: getattr(theirs, "attention_bias", False),
        ENCDEC: getattr(theirs, "qkv_bias", False),
    }
    config = ModelConfig(
        shape=shapes.get(found, "causal"),  # type: ignore[arg-type]
        num_layers=theirs.num_hidden_layers,
        num_encoder_layers=theirs.num_encoder_layers if is_encdec else None,
        d_model=theirs.hidden_size,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        head_dim=getattr(theirs, "head_dim", None),
        d_ff=theirs.intermediate_size,
        activation=_named("hidden_act", theirs.hidden_act, names),  # type: ignore[arg-type]
        norm_eps=theirs.rms_norm_eps,
        qk_norm=found is QWEN3 or (is_encdec and theirs.qk_norm),
        bias=bias,
        qkv_bias=qkv_bias.get(found),
        rope_theta=theirs.rope_parameters["rope_theta"],
        rope_scaling=_rope_scaling(theirs.rope_parameters),
        tie_embeddings=theirs.tie_word_embeddings,
        init_std=theirs.initializer_range,
    )
    return ImportedConfig(config, theirs.vocab_size, theirs.max_position_embeddings, found)


def _one_bias(theirs: Any, found: Architecture) -> bool:
    key = "attention_out_bias" if found is SEED_OSS else "attention_bias"
    if getattr(theirs, key) != theirs.mlp_bias:
        raise Mistake(
            f"config.json: {key} {_shown(getattr(theirs, key))} with mlp_bias {_shown(theirs.mlp_bias)} has "
            "no place here; all maps of a model have biases or none has"
        )
    return theirs.mlp_bias


def _rope_scaling(parameters: dict[str, Any]) -> RopeScaling | None:
    kind = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise Mistake("config.json: partial_rotary_factor other than 1 has no place here for this class")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise Mistake(f"config.json: rope_type {kind} has no place here; allowed are default, linear and llama3")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=parameters["factor"])
    return RopeScaling(
        kind="llama3",
        factor=parameters["factor"],
        low_freq_factor=parameters["low_freq_factor"],
        high_freq_factor=parameters["high_freq_factor"],
        original_max_positions=parameters["original_max_position_embeddings"],
    )


def _from_t5(theirs: Any) -> ImportedConfig:
    names = {name: ours for ours, name in T5_ACTIVATIONS.items()} | {
        "gelu_new": "gelu_tanh",
        "gated-gelu_new": "geglu",
        "gated-gelu_pytorch_tanh": "geglu",
    }
    config = ModelConfig(
        shape="encdec",
        positions="t5_bias",
        num_layers=theirs.num_decoder_layers,
        num_encoder_layers=theirs.num_layers,
        d_model=theirs.d_model,
        num_heads=theirs.num_heads,
        head_dim=theirs.d_kv,
        d_ff=theirs.d_ff,
        activation=_named("feed_forward_proj", theirs.feed_forward_proj, names),  # type: ignore[arg-type]
        norm_eps=theirs.layer_norm_epsilon,
        t5_num_buckets=theirs.relative_attention_num_buckets,
        t5_max_distance=theirs.relative_attention_max_distance,
    )
    return ImportedConfig(config, theirs.vocab_size, None, T5, scales_head=theirs.scale_decoder_outputs)


def _named(key: str, value: str, names: dict[str, str]) -> str:
    if value not in names:
        raise Mistake(f"config.json: {key} {value} has no place here; allowed are {', '.join(names)}")
    return names[value]
