"""What an architecture of GGUF is to us: which models it has a place for, and in what its files differ from others.

Places that several of them have are here; architectures themselves are in rms_kinds.py and layer_norm_kinds.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from model.config import ModelConfig
from model.exchange.families.places import Place, Places

NORMS = {
    "attention_norm": "attn_norm",
    "attention_output_norm": "post_attention_norm",
    "feed_forward_norm": "ffn_norm",
    "feed_forward_output_norm": "post_ffw_norm",
}
"""Norms of a block and their names, as nearly all architectures have them."""


def _no_keys(writer: Any, config: ModelConfig) -> None:
    """Nothing beside what all models have."""


@dataclasses.dataclass(frozen=True)
class GgufArchitecture:
    """What `general.architecture` names."""

    name: str
    places: Places
    """Which values of our keys it has a place for."""
    shapes: tuple[str, ...] = ("causal", "prefix")
    """A prefix is read both ways where `attention.causal` is false, which every architecture with a cache heeds."""
    pairs_neighbours: bool = False
    """Whether its rotation takes rows 0 and 1, 2 and 3 ... of a head for pairs, where ours takes halves of it."""
    fuses: bool = False
    """Whether queries, keys and values are one tensor, as in ours."""
    fuses_gate: bool = False
    """Whether gate and up are, as in ours."""
    wants_head: bool = False
    """Whether it has an output matrix in any case: a tied one is written twice."""
    has_head: bool = True
    """Whether llama.cpp computes logits; if not, it gives the final states, and the head stays behind."""
    wants_both_norms: bool = False
    """Whether a norm that attention and feed-forward share is written twice."""
    has_sinks: bool = False
    """Whether each head has a score that belongs to no token; ours have none."""
    is_young: bool = False
    """Whether it came to llama.cpp after the gguf package that we use, so that many versions do not know it."""
    norms: Mapping[str, str] = dataclasses.field(default_factory=lambda: NORMS)
    add_keys: Callable[[Any, ModelConfig], None] = _no_keys
    """Adds keys that only this architecture has; the first argument is the gguf package's writer."""


LINEAR = Place(
    lambda config: config.rope_scaling is None or config.rope_scaling.kind == "linear",
    lambda config: "it has linear or null",
)
WINDOW = Place(
    lambda config: config.sliding_window is None or config.shape == "causal",
    lambda config: "it has one in causal models alone: of what is read both ways it hides only what lies behind",
)


def below(key: str, number: int, why: str) -> Place:
    """Less than a number."""
    return Place(lambda config: getattr(config, key) < number, lambda config: f"it has fewer than {number}: {why}")


def anything_but(key: str, number: int, why: str) -> Place:
    """Any number but one."""
    return Place(lambda config: getattr(config, key) != number, lambda config: f"it has any but {number}: {why}")


def add_window(writer: Any, config: ModelConfig) -> None:
    """Which layers slide and how far; a token counts itself, there as here."""
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([config.slides(index) for index in range(config.num_layers)])
