"""A model that is asked in text, and how likely it finds documents: packed without padding, for every shape alike.

examples (reading/ranking.py) -> layout of the shape -> packs -> logits where labels are -> Scored, a document each
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from common.mistakes import Mistake
from data_pipeline.reading.examples import Examples
from data_pipeline.reading.packing import IGNORED, LAYOUTS, Layout, PackedBatch, Row, pack_layout
from data_pipeline.reading.ranking import Encode, Manner
from model.config import ModelConfig
from model.kernels.attention import resolve_backend
from model.network.transformer import Transformer
from training.step import Patterns, model_inputs

HALF_PRECISION_BACKENDS = ("flash", "varlen")
ROW_TOKENS = 2048
"""Tokens read together at most, unless one document alone has more: their logits are in memory at once."""

Progress = Callable[[int, int], None]
"""Told (tokens done, tokens in all)."""


@dataclasses.dataclass(frozen=True)
class TextModel:
    """Weights in memory with their tokenizer, and the form in which they were trained to be asked."""

    network: Transformer
    encode: Encode
    """Gives the ids of a text, none of them special."""
    decode: Callable[[Sequence[int]], str]
    """Gives the text of ids, special ones left out."""
    manner: Manner
    length: int
    """Tokens of a document that it reads at once."""
    start_id: int
    """What a decoder beside an encoder begins with."""
    eos_id: int
    """What ends a text."""
    pad_id: int

    @property
    def shape(self) -> str:
        """Of the network."""
        return self.network.config.shape


class Scored(NamedTuple):
    """What a model makes of the labels of a document."""

    log_likelihood: float
    """In nats."""
    is_greedy: bool
    """Whether each of them is the likeliest token where it stands."""
    last: int
    """The likeliest token in place of the last label."""


def execution(config: ModelConfig, device: torch.device) -> tuple[ModelConfig, torch.dtype]:
    """How a trained model is asked on a device: its config with what runs there, and the dtype of its weights.

    A backend that takes half precision only and runs here is kept, in bf16 as in training; in all other cases weights
    are fp32 and such a backend gives way to `auto`.
    """
    config = config.run_plainly()
    if config.attention_backend not in HALF_PRECISION_BACKENDS:
        return config, torch.float32
    try:
        facts = config.head_size, config.positions, config.attention_softcap
        resolve_backend(config.attention_backend, device, torch.bfloat16, *facts)
    except Mistake:
        return config.model_copy(update={"attention_backend": "auto"}), torch.float32
    return config, torch.bfloat16


def score(
    model: TextModel, examples: Examples, name: Callable[[int], str], progress: Progress | None = None
) -> Iterator[Scored]:
    """What the model makes of each example in turn; each has a label.

    Raises ValueError when one is longer than the model's learned positions, calling it `name` of its number.
    """
    layout = LAYOUTS[model.shape](examples, model.start_id)
    _check_positions(layout, name, model.network.config.max_positions)
    done = 0
    for batch in _batches(layout, min(model.length, ROW_TOKENS), model.pad_id):
        yield from _scored(model.network, batch)
        done += len(batch.tokens)
        if progress:
            progress(done, len(layout.tokens))


def _check_positions(layout: Layout, name: Callable[[int], str], max_positions: int | None) -> None:
    lengths = layout.lengths if layout.encoder is None else np.maximum(layout.lengths, layout.encoder.lengths)
    longest = int(np.argmax(lengths))
    if max_positions is not None and lengths[longest] > max_positions:
        raise Mistake(
            f"{name(longest)}: it takes {lengths[longest]} tokens, and this model has "
            f"{max_positions} learned positions; shorten it or leave it out"
        )


def _batches(layout: Layout, row_length: int, pad_id: int) -> Iterator[PackedBatch]:
    """All documents of a layout in order, as many in a row as fit."""
    streams = [layout.lengths] if layout.encoder is None else [layout.lengths, layout.encoder.lengths]
    sizes, used = [0], np.zeros(len(streams), np.int64)
    for lengths in zip(*(stream.tolist() for stream in streams), strict=True):
        if sizes[-1] and (used + lengths).max() > row_length:
            sizes.append(0)
            used[:] = 0
        sizes[-1] += 1
        used += lengths
    for part in layout.split(np.array(sizes)):
        row = Row.empty(len(part.tokens), None if part.encoder is None else len(part.encoder.tokens))
        yield pack_layout(part, np.zeros(len(part.lengths), bool), pad_id, row)


def _scored(network: Transformer, batch: PackedBatch) -> list[Scored]:
    """Of each document of a pack; each has a label."""
    device = next(network.parameters()).device
    patterns = Patterns.of(batch)
    tokens, positions, pattern, encoder = model_inputs(batch.to(device), patterns.to(device))
    with torch.no_grad():
        logits = network(tokens, positions, pattern, encoder=encoder)
    has_label = batch.labels != IGNORED
    labels, logits = batch.labels[has_label], logits[has_label.to(device)].float()
    chosen = logits.log_softmax(-1).gather(1, labels.to(device)[:, None])[:, 0].double().cpu()
    likeliest = logits.argmax(-1).cpu()
    document = torch.repeat_interleave(torch.arange(len(batch.cu_seqlens) - 1), batch.cu_seqlens.diff().long())
    document, num = document[has_label], len(batch.cu_seqlens) - 1
    sums = torch.zeros(num, dtype=torch.float64).index_add_(0, document, chosen)
    misses = torch.zeros(num, dtype=torch.int64).index_add_(0, document, (likeliest != labels).long())
    last = torch.bincount(document, minlength=num).cumsum(0) - 1
    return list(map(Scored, sums.tolist(), (misses == 0).tolist(), likeliest[last].tolist()))
