"""A config finds its objective and has no key it does not use; a mixture gives each piece to one of its parts."""

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.config import USED_KEYS, ObjectiveConfig
from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.denoising import BlankInfilling, SpanCorruption, SuffixCorruption
from data_pipeline.reading.examples import Ragged
from data_pipeline.reading.masking import MaskedLm, SentencePairs
from data_pipeline.reading.objectives import NO_EXAMPLES, Mixture, NextToken, PrefixLm, made_from
from tests.data_pipeline.reading.test_draws import is_even
from tests.data_pipeline.samples import SPECIAL, VOCABULARY, documents, flags, keys, piece, rows, text


def test_next_token_gives_nothing_and_asks_for_the_whole_document():
    batch = Documents(np.array([1, 5, 2, 1, 2]), np.array([3, 2]), np.zeros(2, bool), np.array([2]))
    examples = NextToken()(batch, np.zeros(2, np.uint64))
    assert examples.inputs.lengths.tolist() == [0, 0]
    assert len(examples.inputs.tokens) == 0
    assert examples.targets.tokens.tolist() == [1, 5, 2, 1, 2]
    assert examples.targets.lengths.tolist() == [3, 2]


def test_prefix_lm_splits_anywhere_and_loses_nothing():
    pieces = [piece(9, True, True)] * 20_000 + [text(1), text(2)]
    examples = PrefixLm()(documents(pieces), keys(len(pieces)))
    inputs, targets = rows(examples.inputs), rows(examples.targets)
    assert all(a + b == tokens for a, b, tokens in zip(inputs, targets, pieces, strict=True) if len(tokens) > 1)
    counts = np.bincount([len(row) for row in inputs[:-2]], minlength=11)
    assert counts[0] == 0 and is_even(counts[1:])
    assert (inputs[-2:], targets[-2:]) == ([[], text(2)[:1]], [[], text(2)[1:]])


@pytest.mark.parametrize(
    ("config", "objective"),
    [
        ({}, NextToken()),
        ({"name": "prefix_lm"}, PrefixLm()),
        ({"name": "span_corruption"}, SpanCorruption(VOCABULARY, 0.15, 3.0)),
        (
            {"name": "span_corruption", "noise_density": 0.5, "mean_span_length": 8, "mode": "X"},
            SpanCorruption(VOCABULARY, 0.5, 8.0, "X"),
        ),
        ({"name": "blank_infilling", "mean_span_length": 2}, BlankInfilling(VOCABULARY, 0.15, 2.0)),
        ({"name": "masked_lm", "whole_words": True}, MaskedLm(VOCABULARY, 0.15, True)),
        ({"name": "sentence_pairs", "max_pair_length": 64}, SentencePairs(VOCABULARY, 0.15, False, 64)),
    ],
)
def test_a_config_finds_its_objective(config, objective):
    assert made_from(ObjectiveConfig(**config), VOCABULARY) == objective


def test_ul2_mixes_the_seven_denoisers_of_its_paper_equally():
    found = made_from(ObjectiveConfig(name="ul2"), VOCABULARY)
    assert isinstance(found, Mixture)
    spans = [
        (part.mode, part.mean_span_length, part.noise_density)
        for part in found.parts
        if isinstance(part, SpanCorruption)
    ]
    assert spans == [("R", 3, 0.15), ("R", 8, 0.15), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5)]
    assert [part for part in found.parts if isinstance(part, SuffixCorruption)] == [SuffixCorruption(VOCABULARY, 0.25)]
    assert len(set(found.weights)) == 1 and len(found.parts) == 7


def test_denoisers_of_ones_own_replace_the_papers():
    denoisers = [
        {"mode": "S", "noise_density": 0.5},
        {"mode": "R", "noise_density": 0.3, "mean_span_length": 5, "weight": 3},
    ]
    found = made_from(ObjectiveConfig(name="ul2", denoisers=denoisers), VOCABULARY)
    assert found.weights == (1, 3)
    assert found.parts == (SuffixCorruption(VOCABULARY, 0.5), SpanCorruption(VOCABULARY, 0.3, 5, "R", "ul2"))


def test_the_mode_token_comes_first_behind_bos():
    examples = made_from(ObjectiveConfig(name="ul2"), VOCABULARY)(documents([piece(50, True, True)] * 200), keys(200))
    modes = [row[1] for row in rows(examples.inputs)]
    assert {row[0] for row in rows(examples.inputs)} == {1}
    assert set(modes) == {SPECIAL["R"], SPECIAL["S"], SPECIAL["X"]}


MIX = ObjectiveConfig(
    name="mixture",
    parts=[{"name": "next_token"}, {"name": "span_corruption", "weight": 2}, {"name": "blank_infilling", "weight": 5}],
)


def test_parts_come_as_often_as_their_weights_say():
    mixture = made_from(MIX, VOCABULARY)
    counts = np.bincount(mixture.choice(keys(20_000)))
    assert np.abs(counts / 20_000 - np.array([1, 2, 5]) / 8).max() < 0.01


def test_a_mixture_within_a_mixture_draws_for_itself():
    parts = [{"name": "ul2", "weight": 2}, {"name": "next_token"}]
    mixture, names = made_from(ObjectiveConfig(name="mixture", parts=parts), VOCABULARY), keys(20_000)
    ul2 = mixture.parts[0]
    assert isinstance(ul2, Mixture)
    assert is_even(np.bincount(ul2.choice(names[mixture.choice(names) == 0]), minlength=7))


def test_each_piece_of_a_mixture_is_as_its_part_alone_would_have_it():
    mixture, names = made_from(MIX, VOCABULARY), keys(60)
    pieces = [piece(number % 30, number % 2 == 0, number % 3 == 0, number) for number in range(1, 61)]
    examples, choice = mixture(documents(pieces), names), mixture.choice(names)
    for number in range(60):
        alone = mixture.parts[choice[number]](documents(pieces[number : number + 1]), names[number : number + 1])
        assert rows(examples.inputs)[number] == rows(alone.inputs)[0]
        assert rows(examples.targets)[number] == rows(alone.targets)[0]
        assert flags(examples)[number] == flags(alone)[0]


def test_a_mixture_with_several_examples_of_a_piece_keeps_them_in_order():
    parts = [{"name": "masked_lm"}, {"name": "sentence_pairs", "max_pair_length": 20}]
    mixture = made_from(ObjectiveConfig(name="mixture", parts=parts), VOCABULARY)
    pieces = [text(60, 60 * number) for number in range(8)]
    examples = mixture(documents(pieces, [4, 4]), keys(8))
    assert examples.pieces.tolist() == sorted(examples.pieces.tolist())
    assert set(examples.pieces.tolist()) == set(range(8))
    assert (np.bincount(examples.pieces, minlength=8) > 1).tolist() == (mixture.choice(keys(8)) == 1).tolist()


def test_no_documents_make_no_examples():
    assert len(NO_EXAMPLES.inputs.lengths) == len(NO_EXAMPLES.targets.lengths) == len(NO_EXAMPLES.targets.tokens) == 0
    nothing = documents([])
    for name in (*(set(USED_KEYS) - {"mixture"}), "mixture"):
        config = MIX if name == "mixture" else ObjectiveConfig(name=name)
        examples = made_from(config, VOCABULARY)(nothing, keys(0))
        assert isinstance(examples.inputs, Ragged) and len(examples.inputs.tokens) == 0


# ---- configs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "next_token", "noise_density": 0.2},
            "noise_density: objective next_token does not use it; it has no",
        ),
        (
            {"name": "masked_lm", "mean_span_length": 2},
            "mean_span_length: objective masked_lm does not use it; its keys",
        ),
        (
            {"name": "ul2", "parts": [{"name": "prefix_lm"}]},
            "parts: objective ul2 does not use it; its keys are denoise",
        ),
        ({"name": "mixture"}, "parts: a mixture needs them"),
        ({"name": "mixture", "parts": []}, "parts"),
        ({"name": "mixture", "parts": [{"name": "mixture"}]}, r"parts\.0\.name"),
        (
            {"name": "mixture", "parts": [{"name": "prefix_lm", "whole_words": True}]},
            "whole_words: objective prefix_lm",
        ),
        ({"name": "ul2", "denoisers": [{"mode": "R", "noise_density": 0.1}]}, "mean_span_length: mode R needs it"),
        (
            {"name": "ul2", "denoisers": [{"mode": "S", "noise_density": 0.1, "mean_span_length": 3}]},
            "mean_span_length: mode S hides one span",
        ),
        ({"name": "ul2", "denoisers": [{"mode": "S", "noise_density": 0.6}]}, "noise_density: mode S"),
        ({"name": "span_corruption", "noise_density": 1.0}, "noise_density"),
        ({"name": "span_corruption", "mean_span_length": 0.5}, "mean_span_length"),
        ({"weight": 2}, "weight"),
    ],
)
def test_keys_that_an_objective_does_not_use_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig(**config)


def test_a_config_is_written_without_empty_keys_and_read_back():
    assert ObjectiveConfig().model_dump() == {"name": "next_token"}
    for config in (MIX, ObjectiveConfig(name="masked_lm", whole_words=True)):
        assert ObjectiveConfig(**config.model_dump(mode="json")) == config
