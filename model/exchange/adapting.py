"""A causal model's weights in the places of another shape, for a run to go on from.

    prefix, encoder   the same weights, read under another pattern
    encdec            decoder          the same
                      encoder          the decoder's embedding, blocks and norm once more
                      cross-attention  the self-attention of its block: queries, keys, values, output, norm

That is how T5Gemma made encoder-decoders of Gemma, and T5Gemma 2 too (arXiv 2512.14856), which shares one embedding
as ours does. Until it is trained the result is no model of its shape: what it reads both ways it has never seen so.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError

from common.mistakes import Mistake, cut
from model.config import ModelConfig
from model.network.transformer import Transformer

Shape = Literal["prefix", "encoder", "encdec"]
SHAPES: tuple[Shape, ...] = ("prefix", "encoder", "encdec")
ADAPTABLE: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("multi_token_depths", (0,), "what predicts further tokens belongs to the pattern it was trained in"),
    ("positions", ("rope", "learned", "alibi", "none"), "its distances are those of a text that is read one way"),
    ("attention_gate", (False,), "cross-attention would need a gate of its own"),
)
"""Keys of a causal model that decide whether it can be adapted, the values with which it can, and why no others."""


class Source(NamedTuple):
    """Rows of a causal model's weight."""

    name: str
    start: int = 0
    stop: int | None = None
    """One behind the last row; None takes all."""

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """Those rows."""
        return weight[self.start : self.stop]


class Adaptation(NamedTuple):
    """A model of another shape, and which weight of a causal one is which of its."""

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    """Of its weights by name; a tied head has no entry of its own."""
    sources: dict[str, Source]
    """Where each of them comes from."""

    def places(self, name: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that one weight of the causal model becomes."""
        for place, source in self.sources.items():
            if source.name == name:
                yield place, source.of(weight)

    @property
    def copied(self) -> dict[str, str]:
        """What was copied where, all layers in one line: names of places, and of what lies there now."""
        lines = {}
        for place, source in self.sources.items():
            rows = "" if source.stop is None else f" rows {source.start}:{source.stop}"
            if place != source.name:
                lines[_any_layer(place)] = _any_layer(source.name) + rows
        return lines


def shape_named(name: str) -> Shape:
    """One of the shapes. ValueError when it is none."""
    found = next((shape for shape in SHAPES if shape == name), None)
    if found is None:
        raise Mistake(f"--as {cut(name)}: not a shape that a causal model is made into; allowed: {', '.join(SHAPES)}")
    return found


def adapt(causal: ModelConfig, vocab_size: int, shape: Shape) -> Adaptation:
    """Which weights of a causal model make one of another shape. ValueError where it has no such form."""
    if causal.shape != "causal":
        raise Mistake(f"--as {shape}: only a causal model can be adapted, and this is one of shape {causal.shape}")
    for key, adaptable, why in ADAPTABLE:
        if (value := getattr(causal, key)) not in adaptable:
            raise Mistake(f"--as {shape}: model.{key} {value} cannot be adapted, for {why}; import it as it is")
    try:
        config = ModelConfig(**{**causal.model_dump(), "shape": shape})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Mistake(f"--as {shape}: this model has no such form ({reason})") from None
    there, wanted = _shapes(causal, vocab_size), _shapes(config, vocab_size)
    sources = {name: _source(name, config) for name in wanted}
    for name, source in sources.items():
        if source.name not in there:
            raise Mistake(
                f"--as {shape}: {name} has no counterpart in a causal model of these blocks; import it as it is"
            )
        rows, *columns = there[source.name]
        assert (len(range(rows)[source.start : source.stop]), *columns) == wanted[name], (
            f"{name} is no copy of {source}"
        )
    return Adaptation(config, wanted, sources)


def _source(name: str, config: ModelConfig) -> Source:
    """What a weight is a copy of: `attention.qkv` has the rows of `cross_attention.q` above those of its `kv`."""
    own = name.removeprefix("encoder.").replace("cross_attention", "attention")
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    if ".cross_attention.q." in name:
        return Source(own.replace(".attention.q.", ".attention.qkv."), 0, queries)
    if ".cross_attention.kv." in name:
        return Source(own.replace(".attention.kv.", ".attention.qkv."), queries, queries + 2 * keys)
    return Source(own)


def _shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights, a tied head's left out."""
    with torch.device("meta"):
        model = Transformer(config.run_plainly(), vocab_size)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _any_layer(name: str) -> str:
    return re.sub(r"\bblocks\.\d+\.", "blocks.*.", name)
