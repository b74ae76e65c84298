"""What lm-eval asks of a model, against likelihoods and greedy tokens written out by hand for each shape."""

import dataclasses

import pytest
import torch

from tests.training.letters import BOS, EOS, OBJECTIVES, by_hand, model_of
from training.asking import continued, of_continuations, of_texts

REQUESTS = [("the sun", " is hot"), ("", "b"), ("a", "cd"), ("blank ", "moves")]


def letters(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("shape", OBJECTIVES)
def test_a_continuation_is_as_likely_as_by_hand_with_its_context_in_the_form_of_the_shape(shape):
    model = model_of(shape)
    expected = [by_hand(model.network, shape, [BOS, *letters(a)], letters(b)) for a, b in REQUESTS[:3]]
    expected.append(by_hand(model.network, shape, [BOS, *letters("blank")], letters(" moves")))  # a blank moves
    assert [each.value for each in of_continuations(model, REQUESTS)] == pytest.approx(expected, abs=1e-5)


def test_a_prefix_model_is_not_asked_as_a_causal_one():
    prefix = model_of("prefix")
    network = model_of("causal").network
    network.load_state_dict(prefix.network.state_dict())
    causal = dataclasses.replace(prefix, network=network)
    asked = [REQUESTS[0], ("", "text")]
    ours, theirs = ([each.value for each in of_continuations(model, asked)] for model in (prefix, causal))
    assert abs(ours[0] - theirs[0]) > 1e-3
    assert ours[1] == pytest.approx(theirs[1], abs=1e-6), "without a context the two are one"


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec"])
def test_what_it_would_write_is_greedy_and_nothing_else(shape):
    model = model_of(shape)
    (written,) = continued(model, ["the sun"], [[]], 3)
    tokens = letters(written)
    assert 0 < len(tokens) <= 3
    found = of_continuations(model, [("the sun", written), ("the sun", chr((tokens[0] + 1) % 128))])
    assert [each.is_greedy for each in found] == [True, False]


def test_a_text_goes_on_up_to_the_first_stop_and_prompts_do_not_disturb_each_other():
    model = model_of("prefix")
    (whole,) = continued(model, ["the sun"], [[]], 8)
    stop = whole[2:4]
    expected = whole[: whole.find(stop)]
    together = continued(model, ["a", "the sun", ""], [[], ["never", stop], []], 8)
    assert together[1] == expected
    assert together[0] == continued(model, ["a"], [[]], 8)[0]


def test_the_end_of_a_text_ends_what_is_written():
    model = model_of("causal")
    torch.nn.init.zeros_(model.network.head.weight)
    with torch.no_grad():
        model.network.head.weight[EOS] = model.network.head.weight.new_full((32,), 1.0)
        model.network.norm.weight.abs_()
    found = continued(model, ["the sun", "a"], [[], []], 4)
    assert "" in found, "of two states one at least makes the end likelier than all else"


def test_an_encoder_writes_nothing_and_says_so():
    with pytest.raises(ValueError, match="generate_until: shape encoder fills in places"):
        continued(model_of("encoder"), ["a"], [[]], 4)


@pytest.mark.parametrize("shape", OBJECTIVES)
def test_a_context_that_finds_no_room_loses_its_beginning(shape):
    model = model_of(shape, length=16)
    (found,) = of_continuations(model, [("a text that is much too long for it", " is")])
    assert found.is_cut
    # around it: <s>, and </s> for an encoder, and the blank and its end beside an encoder
    kept = {"causal": 13, "prefix": 13, "encoder": 11, "encdec": 13}[shape]
    query = [BOS, *letters("a text that is much too long for it")[-kept:]]
    assert found.value == pytest.approx(by_hand(model.network, shape, query, letters(" is")), abs=1e-5)


def test_a_continuation_that_finds_no_room_is_refused_and_so_is_an_answer():
    with pytest.raises(ValueError, match=r"a continuation of 40 tokens, '.*', does not fit in the 16 tokens"):
        of_continuations(model_of("causal", length=16), [("a", "b" * 40)])
    with pytest.raises(ValueError, match="max_gen_toks: 16 leaves no room for a prompt in the 16 tokens"):
        continued(model_of("causal", length=16), ["a"], [[]], 16)


@pytest.mark.parametrize("shape", ["causal", "prefix"])
def test_a_long_text_is_read_in_windows_of_which_each_token_is_asked_once(shape):
    model, text = model_of(shape, length=8), "the sun is hot and"
    ids = [BOS, *letters(text)]
    windows = [(0, 1, 9), (8, 9, 17), (10, 17, 19)]  # context's begin, first and last asked; the last has all that fits
    expected = sum(by_hand(model.network, shape, ids[a:b], ids[b:c]) for a, b, c in windows)
    assert of_texts(model, [text, ""]) == pytest.approx([expected, 0.0], abs=1e-5)


def test_the_pseudo_likelihood_of_a_text_masks_each_token_once():
    model, text = model_of("encoder", length=6), "the sun"
    windows = [([BOS], "the "), (letters("e "), "sun")]
    expected = sum(by_hand(model.network, "encoder", before, letters(part)) for before, part in windows)
    assert of_texts(model, [text])[0] == pytest.approx(expected, abs=1e-5)


def test_a_model_without_an_opening_reads_the_end_of_a_text_before_a_first_token():
    model = model_of("causal")
    bare = dataclasses.replace(model, manner=dataclasses.replace(model.manner, opening=()))
    (found,) = of_continuations(bare, [("", "abc")])
    assert found.value == pytest.approx(by_hand(model.network, "causal", [EOS], letters("abc")), abs=1e-5)
    assert of_texts(bare, ["abc"]) == pytest.approx([found.value])
