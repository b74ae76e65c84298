"""The architectures of GGUF that models of ours are written as, and what each has a place for.

shape    positions   architecture   what llama.cpp makes of it
causal   rope        llama          the same block; biases and llama3's scaling have a place
         rope        qwen3          for qk_norm
prefix   rope        llama          `attention.causal` is false: a prompt that goes in at once is read both ways, and
                                    tokens that come one at a time see all before them
encoder  rope        llada          llama's block without a causal mask and a cache; the name of a causal model would be
                                    one for other readers
encdec   t5_bias     t5             relu exactly, geglu by a table of 16-bit values; silu not at all

A key of `ModelConfig` that an architecture does not list has to be as it is where nobody sets it, so that a switch that
comes new is refused by its name until it has a place here.
"""

from typing import Any, NamedTuple

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families.places import as_yaml

SIZES = {"shape", "vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "norm_eps"}
"""Keys that every architecture has a place for."""
TRAINING_ONLY = {
    "init_std",
    "attention_backend",
    "activation_checkpointing",
    "activation_checkpointing_interval",
    "compile",
    "multi_token_depths",
}
"""Keys that say nothing about what a trained model computes for the next token."""
ROPE = {"positions", "rope_theta", "rope_scaling", "t5_num_buckets", "t5_max_distance"}
T5_BIAS = {"positions", "t5_num_buckets", "num_encoder_layers", "activation", "rope_theta"}
ANYWHERE = SIZES | TRAINING_ONLY | {"tie_embeddings"}


class GgufArchitecture(NamedTuple):
    """What `general.architecture` names."""

    name: str
    has: frozenset[str]
    """Keys of `ModelConfig` that have a place in it."""
    pairs_neighbours: bool = False
    """Whether its rotation takes rows 0 and 1, 2 and 3 ... of a head for pairs, where ours takes halves of it."""
    positions: str = "rope"
    activations: tuple[str, ...] = ("swiglu",)
    scalings: tuple[str, ...] = ("linear",)
    """Kinds of `rope_scaling`."""


LLAMA = GgufArchitecture(
    "llama", frozenset(ANYWHERE | ROPE | {"bias", "qkv_bias"}), pairs_neighbours=True, scalings=("linear", "llama3")
)
QWEN3 = GgufArchitecture("qwen3", frozenset(ANYWHERE | ROPE | {"qk_norm"}))
LLADA = GgufArchitecture("llada", frozenset(ANYWHERE | ROPE), pairs_neighbours=True)
T5 = GgufArchitecture(
    "t5", frozenset(ANYWHERE | T5_BIAS), positions="t5_bias", activations=("relu", "geglu"), scalings=()
)


def gguf_architecture(config: ModelConfig) -> GgufArchitecture:
    """The architecture that computes what this model computes. ValueError naming the key that it has no place for."""
    found = _candidate(config)
    _refuse(config, found, "positions", (found.positions,))
    _refuse(config, found, "activation", found.activations)
    if config.rope_scaling is not None and config.rope_scaling.kind not in found.scalings:
        raise _no_place(config, found, "rope_scaling.kind", config.rope_scaling.kind, found.scalings)
    for key, field in type(config).model_fields.items():
        if key not in found.has:
            _refuse(config, found, key, (field.get_default(call_default_factory=True),))
    return found


def _candidate(config: ModelConfig) -> GgufArchitecture:
    if config.shape == "encdec":
        return T5
    if config.shape == "encoder":
        return LLADA
    return QWEN3 if config.qk_norm and config.shape == "causal" else LLAMA


def _refuse(config: ModelConfig, found: GgufArchitecture, key: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(config, key)
    if value not in allowed:
        raise _no_place(config, found, key, value, allowed)


def _no_place(config: ModelConfig, found: GgufArchitecture, key: str, value: Any, allowed: tuple[Any, ...]) -> Mistake:
    choice = " or ".join(as_yaml(one) for one in allowed)
    return Mistake(
        f"model.{key}: {as_yaml(value)} has no place in GGUF's architecture {found.name}, which shape {config.shape} "
        f"is written as; it has {choice}"
    )
