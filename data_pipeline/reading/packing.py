"""Lays examples out as a model of some shape reads them, and packs them into one row of fixed length.

    Examples -> layout of the shape -> Layout (only real tokens) -> pack -> PackedBatch (T tokens, pad at the end)
                                                                              with S more for an encoder beside

A layout is a pure function registered in `LAYOUTS`; it decides the order of inputs and targets, what is a label
and how long a prefix each document has. Packing knows nothing of shapes.
"""

import dataclasses
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from data_pipeline.reading.draws import before, places, row_sums
from data_pipeline.reading.examples import Examples, Ragged

IGNORED = -100
"""Label of a token that is no target."""
PAD_LENGTH = 16
"""Tokens of a pad document at most: padding attends within it, so a long one would cost more than the documents."""


@dataclasses.dataclass(frozen=True)
class EncoderStream:
    """What the encoder of an encoder-decoder reads: document j of it is what document j of the decoder looks at."""

    tokens: torch.Tensor
    """int64 [S]."""
    positions: torch.Tensor
    """int64 [S], counted from 0 in each document."""
    cu_seqlens: torch.Tensor
    """Where each document starts, and S at the end: int32 [N + 1]; the last may be padding, and empty."""
    num_padding: int
    """Tokens of pad documents."""


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Documents packed into one row of T tokens; a tail that they do not fill becomes short, ignored pad documents."""

    tokens: torch.Tensor
    """int64 [T]."""
    positions: torch.Tensor
    """int64 [T], counted from 0 in each document."""
    cu_seqlens: torch.Tensor
    """Where each document starts, and T at the end: int32 [N + 1], pad documents included."""
    prefix_lengths: torch.Tensor
    """Tokens of each document that see each other both ways: int32 [N].

    All of a document's for an encoder, the pad document's too; 0 for that of other shapes.
    """
    labels: torch.Tensor
    """Token to be predicted at each place: int64 [T], -100 where there is none."""
    num_targets: int
    """Labels that are not -100."""
    num_documents: int
    """Documents before the pad documents."""
    num_padding: int
    """Tokens of pad documents."""
    num_cut: int
    """Documents of which only a part is here."""
    num_vanished: int
    """Pieces too short to hold a target (a single token, or of denoising a single one of text), not packed."""
    num_left_out: int = 0
    """Tokens of the samples that found no room, left out before anything was made of them."""
    encoder: EncoderStream | None = None
    """The encoder's own stream in an encoder-decoder, with as many documents; None for every other shape."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> "PackedBatch":
        """The same batch in page-locked memory, from which a GPU copies in the background."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PackedBatch":
        return _changed(self, change)


def _changed(record, change: Callable[[torch.Tensor], torch.Tensor]):
    """A batch or stream with `change` made to every tensor in it."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    tensors = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
    streams = {name: _changed(value, change) for name, value in values.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(record, **tensors, **streams)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Documents as the model reads them, without padding; row j comes from example j and may be empty."""

    tokens: np.ndarray
    """Integers [sum of lengths]."""
    labels: np.ndarray
    """Integers [sum of lengths], -100 where there is no target."""
    lengths: np.ndarray
    """int64 [N]."""
    prefix_lengths: np.ndarray
    """int64 [N]."""
    num_targets: np.ndarray
    """Labels of each document that are not -100, int64 [N]."""
    encoder: Ragged | None = None
    """What the encoder reads, row for row, where there is one beside the decoder."""
    pads_both_ways: bool = False
    """Whether pad documents are prefixes as a whole, so that all documents of an encoder are alike."""

    def split(self, sizes: np.ndarray) -> list["Layout"]:
        """The layouts of the first `sizes[0]` documents, of the next `sizes[1]`, and so on; views, not copies."""
        rows = np.concatenate(([0], np.cumsum(sizes)))
        tokens = np.concatenate(([0], np.cumsum(self.lengths)))[rows]
        streams = [None] * len(sizes) if self.encoder is None else _split(self.encoder, rows)
        parts = zip(pairwise(tokens.tolist()), pairwise(rows.tolist()), streams, strict=True)
        return [
            Layout(
                self.tokens[a:b],
                self.labels[a:b],
                self.lengths[i:j],
                self.prefix_lengths[i:j],
                self.num_targets[i:j],
                stream,
                self.pads_both_ways,
            )
            for (a, b), (i, j), stream in parts
        ]


def _split(ragged: Ragged, rows: np.ndarray) -> list[Ragged]:
    tokens = np.concatenate(([0], np.cumsum(ragged.lengths)))[rows]
    parts = zip(pairwise(tokens.tolist()), pairwise(rows.tolist()), strict=True)
    return [Ragged(ragged.tokens[a:b], ragged.lengths[i:j]) for (a, b), (i, j) in parts]


# ---- layouts of the four shapes


def causal_layout(examples: Examples, start_id: int = 0) -> Layout:
    """Each document is s = [inputs ; targets], read as s[:-1] with labels s[1:] where these are scored targets."""
    row = _joined(examples.inputs, examples.targets)
    lengths = np.maximum(row.lengths - 1, 0)
    filled = row.lengths > 0
    last = np.cumsum(row.lengths)[filled] - 1
    kept = np.ones(len(row.tokens), bool)
    kept[last] = False
    tokens = row.tokens[kept]
    # the token after each one, which only at the end of a document is not the next one kept
    labels = np.empty_like(tokens)
    labels[:-1] = tokens[1:]
    real = lengths[filled] > 0
    labels[np.cumsum(lengths[filled])[real] - 1] = row.tokens[last[real]]
    num_given = np.minimum(np.maximum(examples.inputs.lengths - 1, 0), lengths)
    num_targets = lengths - num_given
    is_target = None
    if num_given.any():
        is_target = places(lengths) >= np.repeat(num_given, lengths)
    if examples.scored is not None:
        if is_target is None:
            is_target = np.ones(len(labels), bool)
        # without inputs the first target is only read
        first = before(examples.targets.lengths)[(examples.inputs.lengths == 0) & (examples.targets.lengths > 0)]
        predicted = np.ones(len(examples.scored), bool)
        predicted[first] = False
        is_target[is_target] = examples.scored[predicted]
        num_targets = row_sums(is_target, lengths)
    if is_target is not None:
        labels = np.where(is_target, labels.astype(np.int64), IGNORED)
    return Layout(tokens, labels, lengths, np.zeros_like(lengths), num_targets)


def prefix_layout(examples: Examples, start_id: int = 0) -> Layout:
    """The same, where the inputs see each other both ways."""
    layout = causal_layout(examples)
    prefix_lengths = np.minimum(examples.inputs.lengths, layout.lengths)
    return dataclasses.replace(layout, prefix_lengths=prefix_lengths)


def encoder_layout(examples: Examples, start_id: int = 0) -> Layout:
    """Inputs alone, all of them seeing each other, with the targets as labels of the same places."""
    lengths = examples.inputs.lengths
    assert np.array_equal(lengths, examples.targets.lengths), "targets do not stand where the inputs are"
    labels, num_targets = _scored_labels(examples)
    return Layout(examples.inputs.tokens, labels, lengths, lengths, num_targets, pads_both_ways=True)


def encdec_layout(examples: Examples, start_id: int = 0) -> Layout:
    """The decoder reads [start ; targets[:-1]] and predicts targets; the encoder reads the inputs of the same row."""
    lengths = examples.targets.lengths
    tokens = np.empty_like(examples.targets.tokens)
    tokens[1:] = examples.targets.tokens[:-1]
    tokens[before(lengths)[lengths > 0]] = start_id
    labels, num_targets = _scored_labels(examples)
    inputs = examples.inputs
    if not (there := lengths > 0).all():
        inputs = Ragged(inputs.tokens[np.repeat(there, inputs.lengths)], np.where(there, inputs.lengths, 0))
    return Layout(tokens, labels, lengths, np.zeros_like(lengths), num_targets, inputs)


LAYOUTS: dict[str, Callable[[Examples, int], Layout]] = {
    "causal": causal_layout,
    "prefix": prefix_layout,
    "encoder": encoder_layout,
    "encdec": encdec_layout,
}
"""Layout of each shape: (examples, id that a decoder beside an encoder starts with) -> Layout."""


def _scored_labels(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The targets with -100 where they are not scored, and how many of each row are."""
    targets = examples.targets
    if examples.scored is None:
        return targets.tokens, targets.lengths
    labels = np.where(examples.scored, targets.tokens.astype(np.int64), IGNORED)
    return labels, row_sums(examples.scored, targets.lengths)


def _joined(first: Ragged, second: Ragged) -> Ragged:
    """Row j of `first` followed by row j of `second`."""
    if not len(first.tokens):
        return second
    if not len(second.tokens):
        return first
    lengths = first.lengths + second.lengths
    tokens = np.empty(len(first.tokens) + len(second.tokens), np.result_type(first.tokens, second.tokens))
    is_first = places(lengths) < np.repeat(first.lengths, lengths)
    tokens[is_first] = first.tokens
    tokens[~is_first] = second.tokens
    return Ragged(tokens, lengths)


# ---- packing, which knows nothing of shapes


@dataclasses.dataclass(frozen=True)
class Row:
    """Where a batch is packed to: lengths are those of the memory, which becomes that of the large tensors."""

    decoder: np.ndarray
    """int64 [3, T]: tokens, labels, positions."""
    encoder: np.ndarray | None = None
    """int64 [2, S]: tokens, positions; None where there is no encoder beside the decoder."""

    @classmethod
    def empty(cls, num_tokens: int, num_encoder_tokens: int | None = None) -> "Row":
        """Fresh memory for T tokens and, with an encoder beside them, S."""
        encoder = None if num_encoder_tokens is None else np.empty((2, num_encoder_tokens), np.int64)
        return cls(np.empty((3, num_tokens), np.int64), encoder)


def pack(
    examples: Examples,
    shape: str,
    num_tokens: int,
    pad_id: int,
    is_cut: np.ndarray | None = None,
    *,
    start_id: int = 0,
    num_encoder_tokens: int | None = None,
) -> PackedBatch:
    """Packs N examples into a row of T = `num_tokens`, laid out for models of `shape`.

    encdec needs `start_id`, which the decoder begins with, and S = `num_encoder_tokens` for the inputs. `is_cut`,
    bool [N], says which come from a part of a document; none do if it is left out.
    """
    layout = LAYOUTS[shape](examples, start_id)
    if is_cut is None:
        is_cut = np.zeros(len(layout.lengths), bool)
    return pack_layout(layout, is_cut, pad_id, Row.empty(num_tokens, num_encoder_tokens))


def pack_layout(layout: Layout, is_cut: np.ndarray, pad_id: int, row: Row, num_left_out: int = 0) -> PackedBatch:
    """Packs documents that are laid out already; `num_left_out` tokens were left out before that."""
    assert (layout.encoder is None) == (row.encoder is None), "an encoder's row goes with an encoder's inputs"
    packed = layout.lengths > 0
    num_packed = int(np.count_nonzero(packed))
    num_tokens, used = row.decoder.shape[1], len(layout.tokens)
    assert used <= num_tokens, f"{used} tokens do not fit a row of {num_tokens}"
    num_pads = _num_pads(num_tokens - used)
    if layout.encoder is not None and row.encoder is not None:
        num_pads = max(num_pads, _num_pads(row.encoder.shape[1] - len(layout.encoder.tokens)))
    cu_seqlens = _borders(layout.lengths[packed], num_tokens, num_pads)
    prefix_lengths = np.zeros(num_packed + num_pads, np.int32)
    prefix_lengths[:num_packed] = layout.prefix_lengths[packed]
    if layout.pads_both_ways:
        prefix_lengths[num_packed:] = np.diff(cu_seqlens[num_packed:])
    out = row.decoder
    out[0, :used], out[0, used:] = layout.tokens, pad_id
    out[1, :used], out[1, used:] = layout.labels, IGNORED
    _count_positions(cu_seqlens, out[2])
    tokens, labels, positions = torch.from_numpy(out).unbind()
    return PackedBatch(
        tokens=tokens,
        positions=positions,
        cu_seqlens=torch.from_numpy(cu_seqlens),
        prefix_lengths=torch.from_numpy(prefix_lengths),
        labels=labels,
        num_targets=int(layout.num_targets.sum()),
        num_documents=num_packed,
        num_padding=num_tokens - used,
        num_cut=int(np.count_nonzero(is_cut & packed)),
        num_vanished=len(packed) - num_packed,
        num_left_out=num_left_out,
        encoder=_encoder_stream(layout.encoder, packed, num_pads, pad_id, row.encoder),
    )


def _encoder_stream(
    inputs: Ragged | None, packed: np.ndarray, num_pads: int, pad_id: int, out: np.ndarray | None
) -> EncoderStream | None:
    """The inputs of the packed rows, and as many pad documents as the decoder has."""
    if inputs is None or out is None:
        return None
    num_tokens, used = out.shape[1], len(inputs.tokens)
    assert used <= num_tokens, f"{used} tokens do not fit an encoder's row of {num_tokens}"
    cu_seqlens = _borders(inputs.lengths[packed], num_tokens, num_pads)
    out[0, :used], out[0, used:] = inputs.tokens, pad_id
    _count_positions(cu_seqlens, out[1])
    tokens, positions = torch.from_numpy(out).unbind()
    return EncoderStream(tokens, positions, torch.from_numpy(cu_seqlens), num_tokens - used)


def _num_pads(num_padding: int) -> int:
    return -(-num_padding // PAD_LENGTH)


def _borders(lengths: np.ndarray, num_tokens: int, num_pads: int) -> np.ndarray:
    """Where n documents and the pad documents behind them start, and the end of the row: int32 [n + num_pads + 1]."""
    borders = np.empty(len(lengths) + num_pads + 1, np.int32)
    borders[0] = 0
    np.cumsum(lengths, out=borders[1 : len(lengths) + 1])
    pads = borders[len(lengths)] + PAD_LENGTH * np.arange(1, num_pads + 1)
    borders[len(lengths) + 1 :] = np.minimum(pads, num_tokens)
    return borders


def _count_positions(cu_seqlens: np.ndarray, out: np.ndarray) -> None:
    """Writes the place of each token in its document to `out`, int64 [T]."""
    np.subtract(_numbers(len(out)), np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens)), out=out)


@cache
def _numbers(count: int) -> np.ndarray:
    """0, 1, ... as int32 [count], shared and read-only."""
    numbers = np.arange(count, dtype=np.int32)
    numbers.flags.writeable = False
    return numbers


class _Loan(weakref.ref):
    """Knows whose memory is to be had back when a borrowed array is gone."""

    __slots__ = ("owner",)
    owner: np.ndarray


class Buffers:
    """Memory of batches, int64 [rows, T], used again once nothing of a batch is alive.

    Fresh memory costs a page fault every 4 KiB, more than all the rest of packing.
    """

    def __init__(self, num_tokens: int, num_rows: int = 3, keep: int = 64):
        self._shape = (num_rows, num_tokens)
        self._free: deque[np.ndarray] = deque(maxlen=keep)
        self._loans: dict[int, _Loan] = {}

    def take(self) -> np.ndarray:
        """Memory for one batch; it comes back when this array and all tensors made from it are gone."""
        try:
            owner = self._free.pop()
        except IndexError:
            owner = np.empty(self._shape, np.int64)
        lent = owner[:]
        loan = _Loan(lent, self._take_back)
        loan.owner = owner
        self._loans[id(loan)] = loan
        return lent

    def _take_back(self, loan: _Loan) -> None:
        del self._loans[id(loan)]
        self._free.append(loan.owner)
