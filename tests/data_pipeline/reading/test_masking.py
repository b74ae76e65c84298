"""Masked tokens are as many and as BERT has them; pairs lose no text and half of them do not belong together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer, DataCollatorForLanguageModeling

from data_pipeline.reading.examples import Pieces
from data_pipeline.reading.masking import MaskedLm, SentencePairs
from tests.data_pipeline.samples import (
    BOS,
    EOS,
    FIRST_TEXT,
    SENTINEL,
    SIZE,
    SPECIAL,
    VOCABULARY,
    documents,
    flags,
    keys,
    piece,
    rows,
    text,
)

MASK, CLS, SEP = SPECIAL["mask"], SPECIAL["cls"], SPECIAL["sep"]
PIECES = st.lists(
    st.builds(piece, st.integers(0, 70), st.booleans(), st.booleans(), st.integers(0, 600)), min_size=1, max_size=12
)
MASKERS = [MaskedLm(VOCABULARY), MaskedLm(VOCABULARY, whole_words=True), MaskedLm(VOCABULARY, 0.4)]
PAIRS = [
    SentencePairs(VOCABULARY),
    SentencePairs(VOCABULARY, whole_words=True, max_pair_length=31),
    SentencePairs(VOCABULARY, max_pair_length=7),
]


@given(PIECES, st.integers(0, 2**32), st.sampled_from(MASKERS))
def test_targets_are_the_text_and_inputs_differ_only_where_it_is_scored(pieces, seed, objective):
    examples = objective(documents(pieces), keys(len(pieces), seed))
    made = zip(pieces, rows(examples.inputs), rows(examples.targets), flags(examples), strict=True)
    for tokens, inputs, targets, scored in made:
        content = [token for token in tokens if token >= FIRST_TEXT]
        if not content:
            assert inputs == targets == []
            continue
        assert targets == tokens
        assert all(flag or a == b for a, b, flag in zip(inputs, targets, scored, strict=True))
        assert all(token >= FIRST_TEXT for token, flag in zip(tokens, scored, strict=True) if flag)
        assert sum(scored) >= 1
        if not objective.whole_words:
            assert sum(scored) == max(round(len(content) * objective.noise_density), 1)


@given(PIECES, st.integers(0, 2**32), st.sampled_from(MASKERS + PAIRS))
def test_sizes_are_known_beforehand_and_grow_with_the_text(pieces, seed, objective):
    batch, names = documents(pieces), keys(len(pieces), seed)
    known = Pieces.of(batch, BOS, EOS)
    sizes, examples = objective.sizes(known, names), objective(batch, names)
    if examples.pieces is None:
        assert sizes.inputs.tolist() == examples.inputs.lengths.tolist()
    else:
        # pairs exchange texts, so that only their sum is known
        assert sizes.inputs.sum() == examples.inputs.lengths.sum()
    shorter = objective.sizes(known.shortened(np.maximum(known.lengths - 1, 0)), names)
    assert (shorter.inputs <= sizes.inputs).all()


@given(PIECES, st.integers(0, 2**32), st.sampled_from(MASKERS), st.integers(0, 11))
def test_a_piece_is_treated_alike_in_any_company(pieces, seed, objective, chosen):
    if chosen >= len(pieces):
        return
    names = keys(len(pieces), seed)
    together = objective(documents(pieces), names)
    alone = objective(documents(pieces[chosen : chosen + 1]), names[chosen : chosen + 1])
    assert rows(together.inputs)[chosen] == rows(alone.inputs)[0]
    assert flags(together)[chosen] == flags(alone)[0]


def shares_of(inputs, targets, scored):
    """Shares of predicted tokens among the text, and of masks, other pieces and the same among them."""
    inputs, targets, scored = np.concatenate(inputs), np.concatenate(targets), np.concatenate(scored)
    there, was = inputs[scored], targets[scored]
    of_text = scored.sum() / (targets >= FIRST_TEXT).sum()
    return np.array([of_text, np.mean(there == MASK), np.mean((there != MASK) & (there != was)), np.mean(there == was)])


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_are_those_of_bert(whole_words):
    batch = documents([piece(n, True, True, n) for n in range(100, 400)])
    examples = MaskedLm(VOCABULARY, whole_words=whole_words)(batch, keys(300))
    shares = shares_of(rows(examples.inputs), rows(examples.targets), flags(examples))
    assert np.abs(shares - [0.15, 0.8, 0.1, 0.1]).max() < 0.012
    changed = examples.inputs.tokens[(examples.inputs.tokens != MASK) & examples.scored]
    assert changed.min() >= FIRST_TEXT and len(np.unique(changed)) > 300


def test_shares_are_those_of_the_collator_of_hugging_face(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"p{number}" for number in range(5, SIZE))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    texts = [text(300, first) for first in range(200)]
    torch.manual_seed(0)
    batch = collator([{"input_ids": tokens} for tokens in texts])
    scored = (batch["labels"] != -100).numpy()
    inputs = np.where(batch["input_ids"] == tokenizer.mask_token_id, MASK, batch["input_ids"])
    theirs = shares_of(inputs, np.array(texts), scored)
    examples = MaskedLm(VOCABULARY)(documents(texts), keys(200))
    ours = shares_of(rows(examples.inputs), rows(examples.targets), flags(examples))
    assert np.abs(ours - theirs).max() < 0.02


def words_of(tokens):
    """Number of the word each token is in, counted by the definition; borders are words of their own."""
    number, numbers = 0, []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else BOS
        number += token < FIRST_TEXT or token % 3 == 0 or before < FIRST_TEXT or before % 5 == 0
        numbers.append(number)
    return numbers


@given(PIECES, st.integers(0, 2**32), st.sampled_from([MASKERS[1], PAIRS[1]]))
def test_whole_words_are_hidden_or_shown(pieces, seed, objective):
    examples = objective(documents(pieces), keys(len(pieces), seed))
    for targets, scored in zip(rows(examples.targets), flags(examples), strict=True):
        kinds = {}
        for word, flag in zip(words_of(targets), scored, strict=True):
            kinds.setdefault(word, set()).add(flag)
        assert all(len(kind) == 1 for kind in kinds.values())


# ---- pairs


def halves(tokens):
    """A and B of [CLS] A [SEP] B [SEP]."""
    middle = tokens.index(SEP)
    assert tokens[0] != SEP and tokens[-1] == SEP and tokens.count(SEP) == 2
    return tokens[1:middle], tokens[middle + 1 : -1]


@given(PIECES, st.integers(0, 2**32), st.sampled_from(PAIRS))
def test_pairs_hold_every_text_once_and_their_labels_are_true(pieces, seed, objective):
    # every token of a sample is a number of its own here, so that "follows" can be seen
    pieces = [piece(len(tokens), True, True, 70 * n) for n, tokens in enumerate(pieces[:9])]
    examples = objective(documents(pieces), keys(len(pieces), seed))
    seen, made_of = [], examples.pieces.tolist()
    assert made_of == sorted(made_of) and set(made_of) == set(range(len(pieces)))
    for inputs, targets, scored in zip(rows(examples.inputs), rows(examples.targets), flags(examples), strict=True):
        if not inputs:
            continue
        assert len(inputs) <= objective.max_pair_length
        assert inputs[0] == CLS and scored[0]
        first, second = halves(targets)
        assert first and second
        assert (targets[0] == SENTINEL) == (second[0] == first[-1] + 1)
        assert targets[0] in (SENTINEL, SENTINEL + 1)
        seen += first + second
    assert sorted(seen) == sorted(token for tokens in pieces if len(tokens) > 3 for token in tokens[1:-1])


def labels_of(examples):
    """The label at [CLS] of each pair: 1 where B does not follow A."""
    return np.array([row[0] - SENTINEL for row in rows(examples.targets) if row])


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_half_of_the_pairs_of_a_sample_do_not_belong_together(count):
    samples = 1500
    batch = documents([text(20, n) for n in range(count)] * samples, [count] * samples)
    labels = labels_of(SentencePairs(VOCABULARY)(batch, keys(count * samples)))
    assert labels.mean() == pytest.approx(0.5, abs=0.04)


def test_a_pair_alone_stays_together():
    batch = documents([text(20)] * 50, [1] * 50)
    assert not labels_of(SentencePairs(VOCABULARY)(batch, keys(50))).any()


def test_a_stranger_comes_from_another_document_of_the_same_sample():
    # two samples of two documents, four pairs each
    pieces = [text(100, 100 * n) for n in range(4)]
    for seed in range(30):
        examples = SentencePairs(VOCABULARY, max_pair_length=28)(documents(pieces, [2, 2]), keys(4, seed))
        for row, number in zip(rows(examples.targets), examples.pieces, strict=True):
            first, second = halves(row)
            home, guest = ((tokens[0] - FIRST_TEXT) // 100 for tokens in (first, second))
            assert home == number
            assert guest == (home ^ 1 if row[0] == SENTINEL + 1 else home)
