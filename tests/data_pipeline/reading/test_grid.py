"""Every pair of objective and shape either means something or is refused with what would work."""

import dataclasses
from itertools import product

import pytest

from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.grid import MEANINGS, OBJECTIVES, SHAPES, check_pair, markdown_table, objective_for
from tests.data_pipeline.samples import SPECIAL, VOCABULARY

MEANS = {
    "next_token": {"causal"},
    "prefix_lm": {"causal", "prefix", "encdec"},
    "span_corruption": {"causal", "prefix", "encdec"},
    "ul2": {"causal", "prefix", "encdec"},
    "blank_infilling": {"causal", "prefix", "encdec"},
    "masked_lm": {"encoder"},
    "sentence_pairs": {"encoder"},
}


def mixture(*names):
    return ObjectiveConfig(name="mixture", parts=[{"name": name} for name in names])


@pytest.mark.parametrize(("name", "shape"), product(MEANS, SHAPES))
def test_a_pair_means_something_or_is_refused_with_what_would_work(name, shape):
    config = ObjectiveConfig(name=name)
    if shape in MEANS[name]:
        check_pair(config, shape)
        assert objective_for(config, shape, VOCABULARY).name == name
        return
    with pytest.raises(ValueError, match=rf"objective\.name: {name} .*{shape} model") as caught:
        check_pair(config, shape)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for other in MEANS:
        assert (other in sentence.partition(";")[2]) == (shape in MEANS[other])


def test_a_mixture_is_as_good_as_its_parts():
    check_pair(mixture("next_token", "span_corruption"), "causal")
    check_pair(mixture("next_token", "span_corruption"), "prefix")
    check_pair(mixture("masked_lm", "sentence_pairs"), "encoder")
    with pytest.raises(ValueError, match=r"objective\.parts\[1\]\.name: masked_lm means nothing for a causal model"):
        check_pair(mixture("next_token", "masked_lm"), "causal")
    with pytest.raises(ValueError, match=r"objective\.parts\[0\]\.name: next_token means nothing for an encdec model"):
        check_pair(mixture("next_token", "prefix_lm"), "encdec")


@pytest.mark.parametrize("config", [ObjectiveConfig(), mixture("next_token"), mixture("next_token", "next_token")])
def test_a_prefix_model_must_be_given_a_prefix_now_and_then(config):
    with pytest.raises(ValueError, match=r"next_token alone .* mix it with one of prefix_lm, .* model\.shape causal"):
        check_pair(config, "prefix")


def test_the_table_has_a_cell_for_every_pair():
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(OBJECTIVES)
    assert {line.count("|") for line in lines} == {len(SHAPES) + 2}
    for name, line in zip(OBJECTIVES, lines[2:], strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[0] == f"`{name}`"
        assert [not cell.startswith("- (") for cell in cells[1:]] == [(name, shape) in MEANINGS for shape in SHAPES]
        assert all(len(cell) > 10 for cell in cells[1:])


@pytest.mark.parametrize(
    ("keys", "missing", "message"),
    [
        ({"name": "masked_lm"}, "mask", "masked_lm needs <mask>"),
        ({"name": "sentence_pairs"}, "cls", "sentence_pairs needs <cls>"),
        ({"name": "ul2"}, "X", r"ul2 needs \[X\]"),
        ({"name": "span_corruption", "mode": "R"}, "R", r"span_corruption needs \[R\]"),
    ],
)
def test_a_tokenizer_without_a_piece_that_is_needed_is_refused(keys, missing, message):
    special = {name: index for name, index in SPECIAL.items() if name != missing}
    shape = "encoder" if keys["name"] in ("masked_lm", "sentence_pairs") else "causal"
    with pytest.raises(ValueError, match=rf"objective\.name: {message}, which the tokenizer .* does not have; train"):
        objective_for(ObjectiveConfig(**keys), shape, dataclasses.replace(VOCABULARY, special=special))


def test_whole_words_need_a_dataset_that_knows_them():
    old = dataclasses.replace(VOCABULARY, word_starts=None, word_ends=None)
    objective_for(ObjectiveConfig(name="masked_lm"), "encoder", old)
    with pytest.raises(ValueError, match=r"objective\.whole_words: masked_lm must know .* build it anew"):
        objective_for(ObjectiveConfig(name="masked_lm", whole_words=True), "encoder", old)
