"""What objectives make of a sample always fits its rows, and what found no room is left out before, and counted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.budget import SampleLengths, fitted, sample_lengths
from data_pipeline.reading.grid import OBJECTIVES, SHAPES, check_pair
from data_pipeline.reading.objectives import made_from
from data_pipeline.reading.packing import LAYOUTS
from tests.data_pipeline.samples import BOS, VOCABULARY, documents, keys, piece

DECODER_PARTS = [{"name": "ul2"}, {"name": "prefix_lm", "weight": 2}, {"name": "blank_infilling"}]
ENCODER_PARTS = [{"name": "masked_lm"}, {"name": "sentence_pairs", "whole_words": True, "max_pair_length": 20}]


def config_of(name, shape):
    """A config of an objective, a mixture of all that suits the shape."""
    if name != "mixture":
        return ObjectiveConfig(name=name)
    parts = ENCODER_PARTS if shape == "encoder" else DECODER_PARTS
    return ObjectiveConfig(name=name, parts=[*parts, *([{"name": "next_token"}] if shape == "causal" else [])])


def is_valid(name, shape):
    """Whether a pair means something by itself."""
    try:
        check_pair(config_of(name, shape), shape)
    except ValueError:
        return False
    return True


PAIRS = [(name, shape) for name in OBJECTIVES for shape in SHAPES if is_valid(name, shape)]
TINY = st.builds(piece, st.integers(0, 2), st.booleans(), st.booleans())
ANY = st.builds(piece, st.integers(0, 150), st.booleans(), st.booleans())
SAMPLES = st.lists(
    st.one_of(
        st.lists(TINY, min_size=1, max_size=60),
        st.lists(ANY, min_size=1, max_size=8),
        st.lists(st.one_of(TINY, ANY), min_size=1, max_size=20),
    ).map(lambda pieces: [tokens for tokens in pieces if tokens] or [[BOS]]),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(SAMPLES, st.sampled_from(PAIRS), st.integers(5, 90), st.integers(5, 90), st.integers(0, 2**32))
def test_no_row_ever_overflows_and_nothing_is_left_out_uncounted(samples, pair, row, target_row, seed):
    name, shape = pair
    objective = made_from(config_of(name, shape), VOCABULARY)
    lengths = SampleLengths(0, row, target_row if shape == "encdec" else 0)
    pieces = [tokens for sample in samples for tokens in sample]
    batch = documents(pieces, [len(sample) for sample in samples])
    names = keys(len(pieces), seed)
    kept, kept_names, left_out = fitted(objective, batch, names, shape, lengths, VOCABULARY)
    assert kept.lengths.sum() + left_out.sum() == batch.lengths.sum()
    assert len(kept_names) == len(kept.lengths) == len(kept.is_cut) == kept.num_pieces.sum()
    assert len(kept.num_pieces) == len(samples)
    examples = objective(kept, kept_names)
    layout = LAYOUTS[shape](examples, BOS)
    sample = np.repeat(np.arange(len(samples)), kept.num_pieces)
    sample = sample if examples.pieces is None else sample[examples.pieces]
    streams = [(layout.lengths, target_row if shape == "encdec" else row)]
    if layout.encoder is not None:
        streams.append((layout.encoder.lengths, row))
    for tokens, room in streams:
        used = np.bincount(sample, tokens, minlength=len(samples))
        assert (used <= room).all()
    # the pieces kept are the first of each sample, the last of them perhaps shortened
    done = np.split(
        kept.tokens,
        np.cumsum(
            np.bincount(np.repeat(np.arange(len(samples)), kept.num_pieces), kept.lengths, len(samples)).astype(int)
        )[:-1],
    )
    for tokens, whole in zip(done, samples, strict=True):
        assert tokens.tolist() == [token for each in whole for token in each][: len(tokens)]


@settings(max_examples=30)
@given(SAMPLES, st.sampled_from(PAIRS), st.integers(10, 90), st.integers(0, 2**32))
def test_one_token_more_of_what_was_left_out_would_not_have_fitted(samples, pair, row, seed):
    name, shape = pair
    objective = made_from(config_of(name, shape), VOCABULARY)
    lengths = SampleLengths(0, row, row if shape == "encdec" else 0)
    for whole in samples:
        batch, names = documents(whole), keys(len(whole), seed)
        kept, _, left_out = fitted(objective, batch, names, shape, lengths, VOCABULARY)
        if not left_out[0]:
            continue
        # the same again with the shortened piece, or the next, one token longer until it holds a target more
        end = int(kept.lengths.sum())
        for extra in range(1, 6):
            more = documents(
                [tokens for tokens in split(batch.tokens[: end + extra].tolist(), batch.lengths) if tokens]
            )
            again, _, out = fitted(objective, more, names[: len(more.lengths)], shape, lengths, VOCABULARY)
            assert again.lengths.sum() <= max(end, end + extra - out[0])
            assert again.lengths.sum() == end or out[0] == 0


def split(tokens, lengths):
    """Tokens as pieces of the given lengths, as far as they go."""
    ends = np.cumsum(lengths)
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def test_a_sample_that_fits_is_left_as_it_is():
    objective = made_from(ObjectiveConfig(name="span_corruption"), VOCABULARY)
    batch, names = documents([piece(30, True, True), piece(40, True)], [1, 1]), keys(2)
    lengths = SampleLengths(0, 100, 100)
    kept, kept_names, left_out = fitted(objective, batch, names, "encdec", lengths, VOCABULARY)
    assert kept is batch and kept_names is names and left_out.tolist() == [0, 0]


def test_only_the_sample_that_overflows_is_shortened_and_its_piece_is_cut():
    objective = made_from(ObjectiveConfig(name="masked_lm"), VOCABULARY)
    batch = documents([piece(20), piece(20, False, True), piece(20), piece(20), piece(5)], [2, 2, 1])
    lengths = SampleLengths(0, 30, 0)
    kept, _, left_out = fitted(objective, batch, keys(5), "encoder", lengths, VOCABULARY)
    assert kept.lengths.tolist() == [20, 10, 20, 10, 5]
    assert kept.is_cut.tolist() == [False, True, False, True, False]
    assert left_out.tolist() == [11, 10, 0]


# ---- lengths


def lengths_of(shape="encdec", row=512, target=None, mean=math.inf, vocabulary=VOCABULARY, **keys_of_config):
    return sample_lengths(ObjectiveConfig(**keys_of_config), shape, row, target, vocabulary, mean)


@pytest.mark.parametrize(
    ("row", "density", "expected"), [(512, None, (568, 114)), (1024, None, (1137, 229)), (512, 0.5, (766, 512))]
)
def test_windows_of_long_documents_are_those_of_t5(row, density, expected):
    found = lengths_of(row=row, name="span_corruption", noise_density=density)
    assert found == (expected[0], row, expected[1])


def test_a_text_that_is_almost_all_hidden_still_fills_the_encoder():
    window, row, _ = lengths_of(row=128, name="span_corruption", noise_density=0.9, mean_span_length=32)
    objective = made_from(ObjectiveConfig(name="span_corruption", noise_density=0.9, mean_span_length=32), VOCABULARY)
    assert row - 1 <= objective.expected(window).mean[0] <= row


def test_next_token_keeps_the_windows_it_had():
    assert lengths_of("causal", 512, name="next_token") == (512, 512, 0)


def test_short_documents_leave_room_for_what_each_of_them_adds():
    long, short = (lengths_of("causal", name="span_corruption", mean=mean).window for mean in (math.inf, 20))
    assert 400 < short < long < 470


def test_masked_tokens_take_the_whole_row():
    assert lengths_of("encoder", 512, name="masked_lm", mean=100) == (512, 512, 0)


def test_a_row_of_targets_that_is_given_limits_the_window():
    assert lengths_of(name="span_corruption", target=60).window == 296
    assert lengths_of(name="span_corruption", target=60).target_row == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "causal", "target": 9, "name": "prefix_lm"}, r"training\.target_length: only shape encdec"),
        ({"row": 2, "name": "span_corruption"}, r"training\.sequence_length: 2 has no room for span_corruption"),
        (
            {"row": 5000, "name": "ul2"},
            r"tokenizer\.num_sentinels: ul2 needs \d+ sentinels for documents of \d+ tokens",
        ),
    ],
)
def test_lengths_that_cannot_work_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        lengths_of(**options)
    assert "\n" not in str(caught.value)
