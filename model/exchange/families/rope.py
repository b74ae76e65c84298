"""Rotary positions in config.json: their base and how they are stretched."""

from typing import Any

from common.mistakes import Mistake
from model.config import FULL, SLIDING, ModelConfig, RopeScaling
from model.exchange.json_objects import quoted

KEYS = frozenset({"rope_theta", "partial_rotary_factor", "rope_parameters", "rope_scaling"})
"""Keys of config.json that say it, old and new."""


def rope_keys(config: ModelConfig) -> dict[str, Any]:
    """Base and scaling under their old and new names, for old and new readers."""
    keys = {"rope_theta": config.rope_theta, "rope_parameters": _parameters(config)}
    return keys if config.rope_scaling is None else keys | {"rope_scaling": keys["rope_parameters"]}


def _parameters(config: ModelConfig) -> dict[str, Any]:
    scaling, base = config.rope_scaling, {"rope_theta": config.rope_theta}
    if config.rope_fraction != 1:
        base["partial_rotary_factor"] = config.rope_fraction
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


def rope_of(parameters: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """Our keys from rope_parameters; `partial` is whether the class may rotate a part of each head."""
    if "rope_theta" not in parameters:
        raise Mistake(
            "config.json: rope_parameters gives no rope_theta, which is needed; kinds of layers have none here"
        )
    share = parameters.get("partial_rotary_factor", 1.0)
    if share != 1.0 and not partial:
        raise Mistake("config.json: partial_rotary_factor other than 1 has no place here for this class")
    keys = {"rope_theta": parameters["rope_theta"], "rope_scaling": _scaling(parameters)}
    return keys if share == 1.0 else keys | {"rope_fraction": share}


def bases_of(theirs: Any) -> dict[str, Any]:
    """Our keys where layers that slide have parameters of their own."""
    full, sliding = theirs.rope_parameters[FULL], theirs.rope_parameters[SLIDING]
    keys = rope_of(full)
    if SLIDING not in theirs.layer_types or rope_of(sliding) == keys:
        return keys
    own = rope_of(sliding)
    if own["rope_scaling"] is not None:
        raise Mistake("config.json: rope_parameters stretches layers that slide otherwise than others: no place here")
    return keys | {"sliding_rope_theta": own["rope_theta"]}


def _scaling(parameters: dict[str, Any]) -> RopeScaling | None:
    kind = parameters.get("rope_type", "default")
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
