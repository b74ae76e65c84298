"""Layers that differ from each other: which of them slide, which of them rotate, in configs of transformers."""

from typing import Any

from common.mistakes import Mistake
from model.config import FULL, SLIDING, LayerKind, ModelConfig
from model.exchange.families.places import as_yaml


def kinds_of_layers(config: ModelConfig) -> list[LayerKind]:
    """Their layer_types."""
    return [SLIDING if config.slides(index) else FULL for index in range(config.num_layers)]


def window_and_kinds(theirs: Any) -> dict[str, Any]:
    """Our sliding_window and layer_types. Mistake where layers slide without a window."""
    if SLIDING in theirs.layer_types and not theirs.use_sliding_window:
        window = as_yaml(theirs.sliding_window)
        raise Mistake(
            f"config.json: layer_types has {SLIDING}, but use_sliding_window is false and sliding_window {window}; set "
            "both or leave layer_types out"
        )
    return window_of(theirs)


def window_of(theirs: Any) -> dict[str, Any]:
    """The same where a window is used by all layers that slide."""
    kinds = list(theirs.layer_types)
    if len(kinds) not in (0, theirs.num_hidden_layers):
        raise Mistake(
            f"config.json: layer_types names {len(kinds)} layers and num_hidden_layers is {theirs.num_hidden_layers}"
        )
    if SLIDING not in kinds:
        return {}
    if theirs.sliding_window is None:
        raise Mistake(f"config.json: layer_types has {SLIDING}, but sliding_window is null; set it or drop layer_types")
    period = kinds[: _period(kinds)] if FULL in kinds else None
    return {"sliding_window": theirs.sliding_window, "layer_types": period}


def rope_interval(theirs: Any) -> dict[str, Any]:
    """Our no_rope_layer_interval. Mistake when the layers without positions are not the n-th, 2n-th ..."""
    rotates = theirs.no_rope_layers[: theirs.num_hidden_layers]
    if len(rotates) < theirs.num_hidden_layers:
        raise Mistake(
            f"config.json: no_rope_layers has {len(rotates)} layers and num_hidden_layers is {theirs.num_hidden_layers}"
        )
    if all(rotates):
        return {}
    interval = rotates.index(0) + 1
    if interval == 1 or any(bool(each) != ((index + 1) % interval != 0) for index, each in enumerate(rotates)):
        raise Mistake(
            "config.json: no_rope_layers has no place here unless it is every second, third ... layer of a model"
        )
    return {"no_rope_layer_interval": interval}


def _period(kinds: list[Any]) -> int:
    """After how many layers their kinds begin again."""
    return next(n for n in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
