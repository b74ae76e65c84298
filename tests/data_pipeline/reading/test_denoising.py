"""Hidden spans are asked for, all of them and nothing else, as often and as long as the papers say."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.denoising import BlankInfilling, SpanCorruption, SuffixCorruption, noise_counts, t5_lengths
from data_pipeline.reading.examples import Pieces
from tests.data_pipeline.reading.test_draws import is_even
from tests.data_pipeline.samples import (
    BOS,
    EOS,
    FIRST_TEXT,
    SENTINEL,
    SPECIAL,
    VOCABULARY,
    documents,
    flags,
    is_sentinel,
    keys,
    piece,
    restored,
    rows,
    text,
)

OBJECTIVES = [
    SpanCorruption(VOCABULARY),
    SpanCorruption(VOCABULARY, 0.5, 3.0, "X"),
    SpanCorruption(VOCABULARY, 0.15, 64.0, "R"),
    SpanCorruption(VOCABULARY, 0.9, 1.0),
    SuffixCorruption(VOCABULARY),
    SuffixCorruption(VOCABULARY, 0.5, None),
    BlankInfilling(VOCABULARY),
    BlankInfilling(VOCABULARY, 0.8, 1.0),
]
PIECES = st.lists(st.builds(piece, st.integers(0, 90), st.booleans(), st.booleans()), max_size=12)


@pytest.mark.parametrize(
    ("length", "density", "span", "expected"),
    [(512, 0.15, 3, (568, 114)), (1024, 0.15, 3, (1137, 229)), (512, 0.5, 3, (766, 512))],
)
def test_lengths_are_those_of_t5(length, density, span, expected):
    assert t5_lengths(length, density, span) == expected


@pytest.mark.parametrize("raw", [568, 1137])
def test_a_full_window_becomes_as_many_inputs_and_targets_as_in_t5(raw):
    examples = SpanCorruption(VOCABULARY)(documents([text(raw)]), keys(1))
    assert (examples.inputs.lengths.tolist(), examples.targets.lengths.tolist()) == {
        568: ([512], [114]),
        1137: ([1024], [229]),
    }[raw]


@given(PIECES, st.integers(0, 2**32), st.sampled_from(OBJECTIVES))
def test_inputs_and_targets_together_are_the_text_whole(pieces, seed, objective):
    examples = objective(documents(pieces), keys(len(pieces), seed))
    for tokens, inputs, targets in zip(pieces, rows(examples.inputs), rows(examples.targets), strict=True):
        content = [token for token in tokens if token not in (BOS, EOS)]
        if len(content) < 2:
            assert (inputs, targets) == ([], [])
            continue
        assert restored(inputs, targets) == content
        assert inputs[-1] == EOS == targets[-1] and EOS not in inputs[:-1]
        assert (inputs[0] == BOS) == (tokens[0] == BOS)


def test_sentinels_may_count_down_as_in_t5_s_vocabulary():
    last = VOCABULARY.first_sentinel + VOCABULARY.num_sentinels - 1
    downwards = dataclasses.replace(VOCABULARY, first_sentinel=last, sentinel_step=-1)
    assert downwards.ordinary.tolist() == VOCABULARY.ordinary.tolist()
    up, down = (SpanCorruption(each)(documents([text(80)]), keys(1)) for each in (VOCABULARY, downwards))
    for ours, theirs in ((up.inputs, down.inputs), (up.targets, down.targets)):
        mirrored = [SENTINEL + last - token if SENTINEL <= token <= last else token for token in ours.tokens.tolist()]
        assert theirs.tokens.tolist() == mirrored != ours.tokens.tolist()


@given(PIECES, st.integers(0, 2**32), st.sampled_from(OBJECTIVES))
def test_sizes_are_known_beforehand_and_grow_with_the_text(pieces, seed, objective):
    names, batch = keys(len(pieces), seed), documents(pieces)
    known = Pieces.of(batch, BOS, EOS)
    sizes, examples = objective.sizes(known, names), objective(batch, names)
    assert sizes.inputs.tolist() == examples.inputs.lengths.tolist()
    assert sizes.targets.tolist() == examples.targets.lengths.tolist()
    shorter = objective.sizes(known.shortened(np.maximum(known.lengths - 1, 0)), names)
    assert (shorter.inputs <= sizes.inputs).all() and (shorter.targets <= sizes.targets).all()
    longest = max((sum(map(is_sentinel, row)) for row in rows(examples.inputs)), default=0)
    assert longest <= max(objective.num_sentinels(90), 1)


@given(PIECES, st.integers(0, 2**32), st.sampled_from(OBJECTIVES), st.integers(0, 11))
def test_a_piece_is_treated_alike_in_any_company(pieces, seed, objective, chosen):
    if chosen >= len(pieces):
        return
    names = keys(len(pieces), seed)
    together = objective(documents(pieces), names)
    alone = objective(documents(pieces[chosen : chosen + 1]), names[chosen : chosen + 1])
    assert rows(together.inputs)[chosen] == rows(alone.inputs)[0]
    assert rows(together.targets)[chosen] == rows(alone.targets)[0]
    assert flags(together)[chosen] == flags(alone)[0]


def slow_span_corruption(tokens, is_hidden):
    """Inputs and targets by T5's definition: each run of hidden tokens becomes a sentinel, and the other way round."""

    def with_sentinels(mask):
        result, number = [], 0
        for place, token in enumerate(tokens):
            if not mask[place]:
                result.append(token)
            elif place == 0 or not mask[place - 1]:
                result.append(SENTINEL + number)
                number += 1
        return [*result, EOS]

    return with_sentinels(is_hidden), with_sentinels([not flag for flag in is_hidden])


@given(st.integers(2, 200), st.integers(0, 2**32), st.sampled_from(OBJECTIVES[:4]))
def test_span_corruption_is_t5s_definition_for_some_mask_that_begins_visible_and_ends_hidden(length, seed, objective):
    tokens = text(length)
    examples = objective(documents([tokens]), keys(1, seed))
    ids = [SPECIAL[mode] for mode in [objective.mode] if mode]
    inputs = rows(examples.inputs)[0]
    assert inputs[: len(ids)] == ids
    is_hidden = [token not in inputs for token in tokens]
    assert not is_hidden[0] and is_hidden[-1]
    assert (inputs[len(ids) :], rows(examples.targets)[0]) == slow_span_corruption(tokens, is_hidden)
    noise, spans = noise_counts(np.array([length]), objective.noise_density, objective.mean_span_length)
    assert (sum(is_hidden), sum(map(is_sentinel, inputs))) == (noise[0], spans[0])


def test_all_masks_that_t5_allows_are_equally_likely():
    # 9 tokens, 4 hidden in 2 spans: 3 partitions of the hidden, 4 of the visible
    repeats, tokens = 20_000, text(9)
    examples = SpanCorruption(VOCABULARY, 0.45, 2.0)(documents([tokens] * repeats), keys(repeats))
    masks = [tuple(token in row for token in tokens) for row in rows(examples.inputs)]
    counts = np.unique([hash(mask) for mask in masks], return_counts=True)[1]
    assert len(counts) == 12 and is_even(counts)


@pytest.mark.parametrize(("density", "span"), [(0.15, 3), (0.15, 8), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)])
def test_density_and_mean_length_of_spans_are_those_asked_for(density, span):
    lengths = np.random.default_rng(1).integers(400, 700, 200)
    examples = SpanCorruption(VOCABULARY, density, span)(documents([text(n) for n in lengths]), keys(200))
    hidden, spans = (
        np.array([sum(map(test, row)) for row in rows(examples.targets)]) for test in (is_text, is_sentinel)
    )
    assert hidden.sum() / lengths.sum() == pytest.approx(density, rel=0.01)
    assert hidden.sum() / spans.sum() == pytest.approx(span, rel=0.15 if span == 64 else 0.02)


def is_text(token):
    """Whether a token is a piece of text."""
    return token >= FIRST_TEXT


def test_a_suffix_is_uniform_with_a_mean_of_a_quarter_and_comes_after_its_sentinel():
    repeats, length = 5000, 200
    examples = SuffixCorruption(VOCABULARY)(documents([text(length)] * repeats), keys(repeats))
    hidden = examples.targets.lengths - 2
    assert (hidden.min(), hidden.max()) == (1, 100)
    assert is_even(np.bincount(hidden, minlength=101)[1:])
    for row, count in zip(rows(examples.inputs)[:50], hidden, strict=False):
        assert row == [SPECIAL["S"], *text(length)[: length - count], SENTINEL, EOS]
    assert rows(examples.targets)[0] == [SENTINEL, *text(length)[length - hidden[0] :], EOS]


# ---- blank infilling


def blanks(targets, scored):
    """Sentinel and tokens of each blank, in their order; sees that exactly the sentinels are not scored."""
    found = []
    for token, counts in zip(targets, scored, strict=True):
        assert counts == (not is_sentinel(token))
        if is_sentinel(token):
            found.append((token, []))
        else:
            found[-1][1].append(token)
    assert all(tokens[-1] == EOS and EOS not in tokens[:-1] for _, tokens in found)
    return [(sentinel, tokens[:-1]) for sentinel, tokens in found]


@given(st.integers(2, 200), st.integers(0, 2**32), st.sampled_from(OBJECTIVES[6:]))
def test_blanks_are_numbered_in_text_order_and_apart(length, seed, objective):
    examples = objective(documents([text(length)]), keys(1, seed))
    inputs, found = rows(examples.inputs)[0], blanks(rows(examples.targets)[0], flags(examples)[0])
    sentinels = [token for token in inputs if is_sentinel(token)]
    assert sentinels == [SENTINEL + number for number in range(len(found))] == sorted(token for token, _ in found)
    assert not any(is_sentinel(a) and is_sentinel(b) for a, b in itertools.pairwise(inputs))
    hidden = sum(len(tokens) for _, tokens in found)
    assert hidden == np.clip(round(length * objective.noise_density), 1, length - 1)


def test_lengths_of_blanks_are_poisson_numbers_but_zero():
    # of all but the last span drawn, which is shortened and may be anywhere; the longest text drowns it
    repeats = 300
    examples = BlankInfilling(VOCABULARY)(documents([text(650)] * repeats), keys(repeats))
    lengths = [
        len(tokens)
        for targets, scored in zip(rows(examples.targets), flags(examples), strict=True)
        for sentinel, tokens in blanks(targets, scored)
    ]
    counts = np.bincount(lengths, minlength=15)[:15] / len(lengths)
    poisson = np.array([math.exp(-3) * 3**n / math.factorial(n) for n in range(15)])
    assert counts[0] == 0
    assert np.abs(counts[1:] - poisson[1:] / (1 - poisson[0])).max() < 0.02
    assert np.sum(lengths) / (650 * repeats) == pytest.approx(0.15, rel=0.01)


def test_blanks_come_in_any_order():
    repeats = 4000
    examples = BlankInfilling(VOCABULARY, 0.3, 1.0)(documents([text(10)] * repeats), keys(repeats))
    orders = [tuple(filter(is_sentinel, row)) for row in rows(examples.targets)]
    three = [order for order in orders if len(order) == 3]
    counts = np.unique([hash(order) for order in three], return_counts=True)[1]
    assert len(three) > 800 and len(counts) == 6 and is_even(counts)


def test_there_are_never_more_blanks_than_sentinels():
    few = BlankInfilling(VOCABULARY.__class__(**{**vars_of(VOCABULARY), "num_sentinels": 3}))
    examples = few(documents([text(200)]), keys(1))
    assert max(filter(is_sentinel, rows(examples.inputs)[0])) == SENTINEL + 2
    assert restored(rows(examples.inputs)[0], rows(examples.targets)[0]) == text(200)


def vars_of(vocabulary):
    """Its fields without what it has worked out."""
    return {name: getattr(vocabulary, name) for name in vocabulary.__dataclass_fields__}
