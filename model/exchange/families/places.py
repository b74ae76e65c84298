"""Which values of the keys of a model config a class of Hugging Face's, or an architecture of GGUF, has a place for.

It says so of the keys that it knows (`Places`). Every other key must stand at its default, so that a key that is added
later is refused by all of them until one says otherwise.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from model.config import ModelConfig, RopeScaling


class Place(NamedTuple):
    """Which values of a key there is a place for."""

    fits: Callable[[ModelConfig], bool]
    """Whether the value of a config is one of them."""
    instead: Callable[[ModelConfig], str]
    """The end of a sentence that refuses another: what the class has."""


Places = Mapping[str, Place]
"""By our key."""


def only(key: str, *values: Any) -> Place:
    """One of these values."""
    allowed = " or ".join(map(as_yaml, values))
    return Place(lambda config: getattr(config, key) in values, lambda config: f"it has {allowed}")


ANY = Place(lambda config: True, lambda config: "")
ALL_SLIDE = Place(
    lambda config: config.num_sliding(config.num_layers) == config.num_layers,
    lambda config: "it has one in all layers",
)
ALL_OR_NONE_SLIDE = Place(
    lambda config: config.num_sliding(config.num_layers) in (0, config.num_layers),
    lambda config: "it has one in all layers or in none",
)
SCALED_BY_WIDTH = Place(
    lambda config: config.embedding_scale == config.d_model**0.5,
    lambda config: f"it has sqrt(d_model), {config.d_model**0.5}",
)
AS_BIAS = Place(
    lambda config: config.has_qkv_bias == config.bias,
    lambda config: (
        f"its queries, keys and values have biases where its other maps have them, and bias is {as_yaml(config.bias)}"
    ),
)
OUTPUT_AS_BIAS = Place(
    lambda config: config.has_attention_output_bias == config.bias,
    lambda config: (
        f"its attention's output has a bias where its other maps have one, and bias is {as_yaml(config.bias)}"
    ),
)
ATTENTION_ALIKE = Place(
    lambda config: config.has_attention_output_bias == config.has_qkv_bias,
    lambda config: (
        "its attention's output has a bias where queries, keys and values have them, and qkv_bias is "
        f"{as_yaml(config.has_qkv_bias)}"
    ),
)
DIVISOR = Place(
    lambda config: config.d_model % config.num_heads == 0,
    lambda config: f"it asks for a divisor of d_model {config.d_model} whatever head_dim is",
)
OF_WIDTH = Place(
    lambda config: config.head_size * config.num_heads == config.d_model,
    lambda config: f"its heads are d_model {config.d_model} / num_heads {config.num_heads} wide",
)
AS_HEADS = Place(
    lambda config: config.kv_heads == config.num_heads,
    lambda config: f"it has as many as num_heads, {config.num_heads}",
)
FOUR_TIMES = Place(
    lambda config: config.d_ff == 4 * config.d_model,
    lambda config: f"it has four times d_model, {4 * config.d_model}",
)

SIZES = ("vocab_size", "num_layers", "num_encoder_layers", "d_model", "num_heads", "d_ff", "norm_eps")
STARTS = ("tie_embeddings", "init_std", "multi_token_depths")
RUNS = ("attention_backend", "activation_checkpointing", "activation_checkpointing_interval", "compile")
"""Keys that say how a model runs, and nothing of what it computes."""
USUAL: Places = dict.fromkeys((*SIZES, *STARTS, *RUNS), ANY) | {
    "num_kv_heads": AS_HEADS,
    "head_dim": OF_WIDTH,
    "qkv_bias": AS_BIAS,
    "attention_output_bias": OUTPUT_AS_BIAS,
}
"""Where a class says nothing: sizes are free; what is left out by default follows from another key."""
IDLE = {"rope_theta": "rope", "t5_num_buckets": "t5_bias", "t5_max_distance": "t5_bias"}
"""Keys that mean nothing unless `positions` is this."""
MEANT = {
    "num_kv_heads": "kv_heads",
    "head_dim": "head_size",
    "qkv_bias": "has_qkv_bias",
    "attention_output_bias": "has_attention_output_bias",
}
"""Keys that may be empty, and the property with the value that is meant."""


def misfits(config: ModelConfig, places: Places) -> list[str]:
    """Keys of a config whose values have no place there, in the order of `places`, then of the config."""
    keys = [key for key in type(config).model_fields if key not in places and key != "shape"]
    return [key for key in (*places, *keys) if _counts(config, key) and not _place(config, places, key).fits(config)]


def refusal(config: ModelConfig, places: Places, key: str, name: str) -> str:
    """The sentence that says that a key has no place in what is called so."""
    value = as_yaml(getattr(config, MEANT.get(key, key)))
    return (
        f"model.{key}: {value} has no place in {name}, which shape {config.shape} is written as; "
        f"{_place(config, places, key).instead(config)}"
    )


def _counts(config: ModelConfig, key: str) -> bool:
    return config.positions == IDLE.get(key, config.positions)


def _place(config: ModelConfig, places: Places, key: str) -> Place:
    default = type(config).model_fields[key].default
    return places.get(key) or USUAL.get(key) or only(key, default)


def among(places: Places, keys: Collection[str]) -> Places:
    """Any value of these keys beside what there is."""
    return {**places, **dict.fromkeys(keys, ANY)}


def as_yaml(value: Any) -> str:
    """A value as a config file has it."""
    if value is None:
        return "null"
    if isinstance(value, RopeScaling):
        return value.kind
    return str(value).lower() if isinstance(value, bool) else f"{value}"
