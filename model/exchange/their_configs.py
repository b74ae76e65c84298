"""The model of ours that somebody's config.json describes.

    config.json -> keys that are heeded (config_keys.py) -> transformers' config, defaults filled in -> ModelConfig

What ours has no place for is refused by the name of its key.
"""

from typing import Any, NamedTuple

from pydantic import ValidationError

from common.mistakes import Mistake
from model.config import FULL, SLIDING, LayerKind, ModelConfig, RopeScaling
from model.exchange.architectures import (
    BY_TYPE,
    ENCDEC,
    EUROBERT,
    MISTRAL,
    PREFIX,
    QWEN2,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
    T5,
    Architecture,
)
from model.exchange.config_keys import heeded
from model.exchange.hf_configs import PLAIN, T5_ACTIVATIONS, as_yaml
from model.exchange.json_objects import quoted


class TheirConfig(NamedTuple):
    """A config.json whose values are of their types."""

    where: str
    """Name of the file."""
    architecture: Architecture
    keys: dict[str, Any]
    """Keys that are heeded, as they stand in the file."""
    object: Any
    """Their config as transformers has it, with all defaults filled in."""

    @classmethod
    def of(cls, facts: dict[str, Any], where: str = "config.json") -> "TheirConfig":
        """Checks what a file holds. ValueError when it is of no class that is read, or a value is out of bounds."""
        kind = facts.get("model_type")
        found = BY_TYPE.get(kind) if isinstance(kind, str) else None
        if found is None:
            allowed = ", ".join(BY_TYPE)
            raise Mistake(f"{where}: model_type {quoted(kind)} is none that is read here; allowed are {allowed}")
        if facts.get("quantization_config"):
            raise Mistake(f"{where}: the weights are quantized; take the model they were made from")
        _refuse_uneven_layers(where, facts, found)
        keys = heeded(where, facts)
        for key in () if found in SLIDES_BY_LAYER else ("layer_types", "max_window_layers"):
            keys.pop(key, None)
        if found not in (MISTRAL, *SLIDES_BY_LAYER):
            keys.pop("sliding_window", None)  # transformers' generate would heed it where the class does not
        theirs = _config_object(found, keys, where)
        for key in ("pad_token_id", "decoder_start_token_id"):
            if (getattr(theirs, key, None) or 0) >= theirs.vocab_size:
                index, size = getattr(theirs, key), theirs.vocab_size
                raise Mistake(f"{where}: {key} {index} is no id of a vocabulary of vocab_size {size}")
        return cls(where, found, keys, theirs)


class ImportedConfig(NamedTuple):
    """What a config.json says in our words."""

    config: ModelConfig
    vocab_size: int
    max_positions: int | None
    """Longest text it was made for, None where it does not say."""
    architecture: Architecture
    scales_head: bool = False
    """Whether the head is the embedding divided by sqrt(d_model), as in the first T5."""


def from_hf_config(their: TheirConfig) -> ImportedConfig:
    """The model of ours that a config.json describes. ValueError naming what ours has no place for."""
    try:
        return _from_t5(their.object) if their.architecture is T5 else _from_llama(their.object, their.architecture)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        reason = f"{key}{first['msg'].removeprefix('Value error, ')}"
        raise Mistake(f"{their.where}: it describes a model that has no place here ({reason})") from None


SLIDES_BY_LAYER = (QWEN2, QWEN3, SMOLLM3)
"""Classes some of whose layers may have a window."""


def _refuse_uneven_layers(where: str, facts: dict[str, Any], found: Architecture) -> None:
    """Keys that make layers differ from each other in ways that ours do not."""
    kinds, allowed = facts.get("layer_types"), {FULL, SLIDING} if found in SLIDES_BY_LAYER else {FULL}
    if facts.get("per_layer_config"):
        raise Mistake(f"{where}: per_layer_config makes layers differ, which has no place here")
    if kinds and (not isinstance(kinds, list) or not set(map(str, kinds)) <= allowed):
        words = " and ".join(sorted(allowed))
        raise Mistake(
            f"{where}: layer_types makes layers differ, which has no place here; only {words} has for this class"
        )


def differing_layers(theirs: Any, found: Architecture) -> tuple[int | None, list[LayerKind] | None]:
    """Our sliding_window and layer_types, from a config of transformers'. ValueError where layers slide without any."""
    if found is MISTRAL:
        return theirs.sliding_window, None
    if found not in SLIDES_BY_LAYER:
        if getattr(theirs, "use_sliding_window", False):
            raise Mistake(
                "config.json: use_sliding_window true has no place here for this class; only full attention has"
            )
        return None, None
    kinds = list(theirs.layer_types)
    if len(kinds) not in (0, theirs.num_hidden_layers):
        raise Mistake(
            f"config.json: layer_types names {len(kinds)} layers and num_hidden_layers is {theirs.num_hidden_layers}"
        )
    if SLIDING not in kinds:
        return None, None
    if not theirs.use_sliding_window or theirs.sliding_window is None:
        raise Mistake(
            f"config.json: layer_types has {SLIDING}, but use_sliding_window is {as_yaml(theirs.use_sliding_window)} "
            f"and sliding_window {as_yaml(theirs.sliding_window)}; set both or leave layer_types out"
        )
    return theirs.sliding_window, None if FULL not in kinds else kinds[: _period(kinds)]


def rope_interval(theirs: Any, found: Architecture) -> int | None:
    """Our no_rope_layer_interval. ValueError when the layers without positions are not the n-th, 2n-th ..."""
    if found is not SMOLLM3:
        return None
    rotates = theirs.no_rope_layers[: theirs.num_hidden_layers]
    if len(rotates) < theirs.num_hidden_layers:
        raise Mistake(
            f"config.json: no_rope_layers has {len(rotates)} layers and num_hidden_layers is {theirs.num_hidden_layers}"
        )
    if all(rotates):
        return None
    interval = rotates.index(0) + 1
    if interval == 1 or any(bool(each) != ((index + 1) % interval != 0) for index, each in enumerate(rotates)):
        raise Mistake(
            "config.json: no_rope_layers has no place here unless it is every second, third ... layer of a model"
        )
    return interval


def _period(kinds: list[Any]) -> int:
    """After how many layers their kinds begin again."""
    return next(n for n in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))


def _config_object(found: Architecture, keys: dict[str, Any], where: str) -> Any:
    """Their config with all defaults filled in."""
    try:
        return found.config_class()(**keys)
    except Exception as error:  # transformers and its validators raise what they please
        reason = quoted(str(error).strip().splitlines()[-1] if str(error) else type(error).__name__)
        raise Mistake(f"{where}: {found.config_name} of transformers does not take it ({reason})") from None


def _from_llama(theirs: Any, found: Architecture) -> ImportedConfig:
    is_encdec, (window, kinds) = found is ENCDEC, differing_layers(theirs, found)
    bias = _one_bias(theirs, found) if found not in (QWEN2, QWEN3, MISTRAL) else False
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
        no_rope_layer_interval=rope_interval(theirs, found),
        sliding_window=window,
        layer_types=kinds,
        tie_embeddings=theirs.tie_word_embeddings,
        init_std=theirs.initializer_range,
    )
    return ImportedConfig(config, theirs.vocab_size, theirs.max_position_embeddings, found)


def _one_bias(theirs: Any, found: Architecture) -> bool:
    key = "attention_out_bias" if found is SEED_OSS else "attention_bias"
    if getattr(theirs, key) != theirs.mlp_bias:
        raise Mistake(
            f"config.json: {key} {as_yaml(getattr(theirs, key))} with mlp_bias {as_yaml(theirs.mlp_bias)} has "
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
        raise Mistake(
            f"config.json: rope_type {quoted(kind)} has no place here; allowed are default, linear and llama3"
        )
    keys = {"factor": "factor"}
    if kind == "llama3":
        keys |= {key: key for key in ("low_freq_factor", "high_freq_factor")}
        keys["original_max_positions"] = "original_max_position_embeddings"
    if missing := next((theirs for theirs in keys.values() if theirs not in parameters), None):
        raise Mistake(f"config.json: rope_type {kind} needs {missing}, which is not among its parameters")
    return RopeScaling(kind=kind, **{ours: parameters[theirs] for ours, theirs in keys.items()})


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
        raise Mistake(f"config.json: {key} {quoted(value)} has no place here; allowed are {', '.join(names)}")
    return names[value]
