"""A packed batch is exactly its documents, one after the other, with every label under the token that predicts it."""

import dataclasses
import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.objectives import NO_EXAMPLES, Examples, Ragged
from data_pipeline.reading.packing import IGNORED, LAYOUTS, PAD_LENGTH, Buffers, PackedBatch, Row, pack, pack_layout

PAD = 9999
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 99), max_size=6), st.lists(st.integers(0, 99), max_size=9)), max_size=12
)


def ragged(rows, dtype=np.uint16):
    return Ragged(
        np.concatenate([np.zeros(0, dtype), *(np.array(row, dtype=dtype) for row in rows)]),
        np.array([len(row) for row in rows], dtype=np.int64),
    )


def examples_of(pairs):
    return Examples(ragged([inputs for inputs, _ in pairs]), ragged([targets for _, targets in pairs]))


def read_slowly(pairs):
    """Tokens and labels of each document that is laid out causally, by the definition."""
    documents = []
    for inputs, targets in pairs:
        row = [*inputs, *targets]
        labels = [token if place >= len(inputs) else IGNORED for place, token in enumerate(row)]
        if len(row) > 1:
            documents.append((row[:-1], labels[1:]))
    return documents


def documents_in(batch):
    """Tokens and labels of each document of a batch, padding left out."""
    starts = batch.cu_seqlens.tolist()
    bounds = list(pairwise(starts))[: batch.num_documents]
    return [(batch.tokens[a:b].tolist(), batch.labels[a:b].tolist()) for a, b in bounds]


@given(ROWS, st.integers(0, 5))
def test_packing_is_the_definition_of_the_causal_layout(pairs, slack):
    documents = read_slowly(pairs)
    used = sum(len(tokens) for tokens, _ in documents)
    total = max(used + slack, 1)
    batch = pack(examples_of(pairs), "causal", total, PAD)
    assert documents_in(batch) == documents
    assert batch.num_padding == total - used
    assert batch.tokens[used:].tolist() == [PAD] * batch.num_padding
    assert batch.labels[used:].tolist() == [IGNORED] * batch.num_padding
    assert batch.num_targets == (batch.labels != IGNORED).sum() == sum(len(t) - t.count(IGNORED) for _, t in documents)
    assert batch.num_vanished == len(pairs) - len(documents)


# ---- the other shapes

START = 77
SCORED_ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 99), max_size=6),
        st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=9),
    ),
    max_size=12,
)


def scored_examples(triples):
    """Examples of (inputs, [(target, whether it is scored)])."""
    examples = examples_of([(inputs, [token for token, _ in targets]) for inputs, targets in triples])
    flags = np.array([flag for _, targets in triples for _, flag in targets], bool)
    return dataclasses.replace(examples, scored=flags)


@given(SCORED_ROWS, st.sampled_from(["causal", "prefix"]))
def test_a_decoder_reads_inputs_then_targets_and_predicts_those_that_are_scored(triples, shape):
    expected, prefixes = [], []
    for inputs, targets in triples:
        row = [*inputs, *(token for token, _ in targets)]
        labels = [IGNORED] * len(inputs) + [token if flag else IGNORED for token, flag in targets]
        if len(row) > 1:
            expected.append((row[:-1], labels[1:]))
            prefixes.append(min(len(inputs), len(row) - 1) if shape == "prefix" else 0)
    batch = pack(scored_examples(triples), shape, 200, PAD)
    assert documents_in(batch) == expected
    assert batch.prefix_lengths[: len(prefixes)].tolist() == prefixes
    assert batch.num_targets == sum(label != IGNORED for _, labels in expected for label in labels)
    assert batch.encoder is None
    assert not batch.prefix_lengths[len(prefixes) :].any(), "padding has no prefix"


@given(st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.booleans()), max_size=9), max_size=12))
def test_an_encoder_predicts_in_place_and_sees_all_of_a_document(rows):
    examples = Examples(
        ragged([[given for given, _, _ in row] for row in rows]),
        ragged([[target for _, target, _ in row] for row in rows]),
        np.array([flag for row in rows for _, _, flag in row], bool),
    )
    batch = pack(examples, "encoder", 120, PAD)
    assert documents_in(batch) == [
        ([given for given, _, _ in row], [target if flag else IGNORED for _, target, flag in row])
        for row in rows
        if row
    ]
    # padding too, so that one attention call does for all of it
    assert torch.equal(batch.prefix_lengths, batch.cu_seqlens.diff())
    assert batch.num_targets == int(examples.scored.sum())


@given(SCORED_ROWS, st.integers(0, 5), st.integers(0, 5))
def test_an_encoder_decoder_has_two_rows_with_the_same_documents(triples, slack, encoder_slack):
    kept = [(inputs, targets) for inputs, targets in triples if targets]
    used, read = sum(len(targets) for _, targets in kept), sum(len(inputs) for inputs, _ in kept)
    sizes = max(used + slack, 1), max(read + encoder_slack, 1)
    batch = pack(scored_examples(triples), "encdec", sizes[0], PAD, start_id=START, num_encoder_tokens=sizes[1])
    has_padding = bool(batch.num_padding or batch.encoder.num_padding)
    assert batch.num_documents == len(kept)
    num_documents = len(kept) + has_padding
    assert len(batch.prefix_lengths) == num_documents and not batch.prefix_lengths.any()
    assert len(batch.cu_seqlens) == len(batch.encoder.cu_seqlens) == num_documents + 1
    assert (batch.num_padding, batch.encoder.num_padding) == (sizes[0] - used, sizes[1] - read)
    assert batch.num_vanished == len(triples) - len(kept)
    for number, (inputs, targets) in enumerate(kept):
        a, b = batch.cu_seqlens[number : number + 2].tolist()
        tokens = [token for token, _ in targets]
        assert batch.tokens[a:b].tolist() == [START, *tokens[:-1]]
        assert batch.labels[a:b].tolist() == [token if flag else IGNORED for token, flag in targets]
        assert batch.positions[a:b].tolist() == list(range(b - a))
        a, b = batch.encoder.cu_seqlens[number : number + 2].tolist()
        assert batch.encoder.tokens[a:b].tolist() == inputs
        assert batch.encoder.positions[a:b].tolist() == list(range(b - a))
    assert batch.encoder.cu_seqlens[-1] == sizes[1] and batch.cu_seqlens[-1] == sizes[0]
    assert batch.encoder.tokens.dtype == batch.encoder.positions.dtype == torch.int64
    assert batch.encoder.cu_seqlens.dtype == torch.int32


def test_a_full_row_beside_one_with_padding_has_an_empty_pad_document():
    examples = examples_of([([5, 6], [7, 8, 9])])
    batch = pack(examples, "encdec", 3, PAD, start_id=START, num_encoder_tokens=4)
    assert batch.cu_seqlens.tolist() == [0, 3, 3] and batch.encoder.cu_seqlens.tolist() == [0, 2, 4]
    batch = pack(examples, "encdec", 5, PAD, start_id=START, num_encoder_tokens=2)
    assert batch.cu_seqlens.tolist() == [0, 3, 5] and batch.encoder.cu_seqlens.tolist() == [0, 2, 2]
    batch = pack(examples, "encdec", 3, PAD, start_id=START, num_encoder_tokens=2)
    assert batch.cu_seqlens.tolist() == [0, 3] and batch.encoder.cu_seqlens.tolist() == [0, 2]


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_batch_of_nothing_is_all_padding_for_every_shape(shape):
    batch = pack(NO_EXAMPLES, shape, 4, PAD, num_encoder_tokens=6 if shape == "encdec" else None)
    assert (batch.num_targets, batch.num_padding, len(batch.prefix_lengths)) == (0, 4, 1)
    assert shape != "encdec" or batch.encoder.num_padding == 6


@pytest.mark.parametrize("shape", LAYOUTS)
@given(num_tokens=st.integers(3, 90), num_encoder_tokens=st.integers(3, 90))
def test_padding_is_cut_into_short_documents_as_many_in_both_rows(shape, num_tokens, num_encoder_tokens):
    examples = examples_of([([1, 2, 3], [4, 5, 6])])
    if shape in ("causal", "prefix"):
        num_tokens += 2
    encoder = num_encoder_tokens if shape == "encdec" else None
    batch = pack(examples, shape, num_tokens, PAD, start_id=START, num_encoder_tokens=encoder)
    pads = batch.cu_seqlens.diff()[batch.num_documents :]
    assert pads.sum() == batch.num_padding and (pads <= PAD_LENGTH).all()
    longest = max(batch.num_padding, batch.encoder.num_padding if batch.encoder else 0)
    assert len(pads) == -(-longest // PAD_LENGTH)
    if shape == "encdec":
        encoder_pads = batch.encoder.cu_seqlens.diff()[batch.num_documents :]
        assert encoder_pads.sum() == batch.encoder.num_padding and (encoder_pads <= PAD_LENGTH).all()
        assert len(encoder_pads) == len(pads)


def test_moving_a_batch_takes_the_encoders_row_along():
    batch = pack(examples_of([([1, 2], [5, 6])]), "encdec", 5, PAD, start_id=START, num_encoder_tokens=4)
    assert batch.to("meta").encoder.tokens.device.type == "meta"
    assert batch.to("meta").encoder.num_padding == 2


@given(ROWS)
def test_its_parts_are_packed_as_if_alone_with_an_encoder_too(pairs):
    half = len(pairs) // 2
    layout = LAYOUTS["encdec"](examples_of(pairs), START)
    parts = layout.split(np.array([half, len(pairs) - half]))
    for part, alone in zip(parts, (pairs[:half], pairs[half:]), strict=True):
        nothing = np.zeros(len(alone), bool)
        batch = pack_layout(part, nothing, PAD, Row.empty(200, 200))
        other = pack(examples_of(alone), "encdec", 200, PAD, start_id=START, num_encoder_tokens=200)
        assert torch.equal(batch.tokens, other.tokens) and torch.equal(batch.encoder.tokens, other.encoder.tokens)
        assert torch.equal(batch.encoder.cu_seqlens, other.encoder.cu_seqlens)


@given(ROWS, st.integers(0, 5))
def test_its_tensors_have_the_shapes_and_types_that_were_agreed(pairs, slack):
    used = sum(len(tokens) for tokens, _ in read_slowly(pairs))
    total = max(used + slack, 1)
    batch = pack(examples_of(pairs), "causal", total, PAD)
    num_documents = len(batch.prefix_lengths)
    assert batch.tokens.shape == batch.labels.shape == batch.positions.shape == (total,)
    assert batch.tokens.dtype == batch.labels.dtype == batch.positions.dtype == torch.int64
    assert batch.cu_seqlens.dtype == batch.prefix_lengths.dtype == torch.int32
    assert batch.cu_seqlens.shape == (num_documents + 1,)
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == total
    lengths = batch.cu_seqlens.diff()
    assert (lengths > 0).all()
    assert batch.positions.tolist() == [place for length in lengths.tolist() for place in range(length)]
    assert not batch.prefix_lengths.any()


def test_a_row_without_slack_has_no_pad_document():
    batch = pack(examples_of([([], [5, 6, 7]), ([], [8, 9])]), "causal", 3, PAD)
    assert batch.cu_seqlens.tolist() == [0, 2, 3]
    assert (batch.num_padding, batch.num_targets) == (0, 3)


def test_a_batch_of_nothing_is_all_padding():
    batch = pack(NO_EXAMPLES, "causal", 4, PAD)
    assert batch.tokens.tolist() == [PAD] * 4
    assert batch.cu_seqlens.tolist() == [0, 4]
    assert (batch.num_targets, batch.num_padding, batch.num_cut) == (0, 4, 0)


def test_only_cut_documents_that_are_packed_are_counted():
    examples = examples_of([([], [5, 6, 7]), ([], [8]), ([], [9, 9]), ([], [])])
    batch = pack(examples, "causal", 4, PAD, is_cut=np.array([True, True, False, True]))
    assert (batch.num_cut, batch.num_vanished) == (1, 2)


def test_more_than_fits_is_a_bug_and_says_so():
    with pytest.raises(AssertionError, match="2 tokens do not fit a row of 1"):
        pack(examples_of([([], [5, 6, 7])]), "causal", 1, PAD)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_ids_of_any_width_keep_their_value(dtype):
    top = 60_000 if dtype == np.uint16 else 2**31 - 1
    batch = pack(Examples(ragged([[]]), ragged([[top, 1, top]], dtype)), "causal", 2, PAD)
    assert (batch.tokens.tolist(), batch.labels.tolist()) == ([top, 1], [1, top])


@given(ROWS, st.lists(st.integers(0, 4), max_size=6))
def test_a_layout_falls_into_parts_that_are_packed_as_if_alone(pairs, sizes):
    sizes = [*sizes, max(len(pairs) - sum(sizes), 0)]
    parts, start = [], 0
    for size in sizes:
        parts.append(pairs[start : start + size])
        start += size
    sizes = np.array([len(part) for part in parts])
    layouts = LAYOUTS["causal"](examples_of(pairs)).split(sizes)
    for part, layout in zip(parts, layouts, strict=True):
        batch = pack_layout(layout, np.zeros(len(part), bool), PAD, Row.empty(1000))
        same(batch, pack(examples_of(part), "causal", 1000, PAD))


def same(first: PackedBatch, second: PackedBatch):
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_moving_a_batch_keeps_all_of_it():
    batch = pack(examples_of([([1], [5, 6, 7]), ([], [8, 9])]), "causal", 9, PAD)
    same(batch.to("cpu", non_blocking=True), batch)
    assert batch.to("meta").tokens.device.type == "meta"
    assert batch.to("meta").num_targets == batch.num_targets


def test_memory_comes_back_only_when_the_last_tensor_is_gone():
    buffers = Buffers(4)
    address = (memory := buffers.take()).ctypes.data
    tensors = list(torch.from_numpy(memory).unbind())
    del memory
    view = tensors[1][1:3]
    tensors.clear()
    assert (other := buffers.take()).ctypes.data != address
    del view
    gc.collect()
    assert (again := buffers.take()).ctypes.data == address
    assert again.ctypes.data != other.ctypes.data
