"""Rows of unequal prompts written together, against each alone in transformers' own generate."""

import pytest
import torch

from common.mistakes import Mistake
from launcher.serving.loaded import load
from launcher.serving.sampling import Chooser, Sampling
from launcher.serving.writing import Row, write

WRITERS = ("causal", "prefix", "t5", "encdec")
PROMPTS = ("import os", "def f(self, value):\n    return value +", "x")


@pytest.fixture(scope="module")
def models(folders):
    made = {}

    def model(shape):
        if shape not in made:
            made[shape] = load(folders(shape))
        return made[shape]

    return model


def rows_of(loaded, prompts=PROMPTS, **sampling):
    settings = Sampling.of(**{"max_new_tokens": 12, "temperature": 0} | sampling)
    return [Row.of(loaded, loaded.encode(prompt), settings) for prompt in prompts]


def written(loaded, rows):
    write(loaded, rows)
    return [[each.token for each in row.taken] for row in rows]


@pytest.mark.parametrize("shape", WRITERS)
def test_greedy_tokens_of_a_batch_are_those_of_each_prompt_alone_in_transformers(models, shape):
    loaded = models(shape)
    rows = rows_of(loaded)
    for row, tokens in zip(rows, written(loaded, rows), strict=True):
        ids = torch.tensor([row.prompt])
        how = {"max_new_tokens": 12, "do_sample": False, "use_cache": False}
        theirs = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **how)[0]
        assert tokens == theirs[1 if loaded.kind == "encdec" else ids.shape[1] :].tolist()
        assert row.ended == ("stop" if tokens[-1] in loaded.end_ids else "length")


@pytest.mark.parametrize("shape", WRITERS)
def test_what_a_row_draws_does_not_depend_on_the_rows_beside_it(models, shape):
    loaded = models(shape)
    how = {"temperature": 1.5, "top_k": 200, "top_p": 0.95, "repetition_penalty": 1.3, "seed": 11}
    together = written(loaded, rows_of(loaded, **how))
    assert together == [written(loaded, rows_of(loaded, [prompt], **how))[0] for prompt in PROMPTS]
    assert together != written(loaded, rows_of(loaded, **how | {"seed": 12}))


@pytest.mark.parametrize("shape", WRITERS)
def test_after_the_prompt_one_token_is_computed_at_a_time(models, shape):
    loaded, lengths = models(shape), []
    decoder = loaded.model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda _, args, keys: lengths.append(
            next(x for x in (*args, keys.get("input_ids"), keys.get("inputs_embeds")) if x is not None).shape[1]
        ),
        with_kwargs=True,
    )
    write(loaded, rows_of(loaded, max_new_tokens=6))
    hook.remove()
    assert len(lengths) > 1 and set(lengths[1:]) == {1}


def test_a_row_ends_at_an_end_token_at_a_stop_string_and_at_the_models_longest_text(models):
    loaded = models("causal")
    (plain,) = rows_of(loaded, ["x"], max_new_tokens=10**6)
    assert len(written(loaded, [plain])[0]) == loaded.longest - len(plain.prompt) and plain.ended == "length"
    stop = plain.text.text[5:8]
    (stopped,) = rows_of(loaded, ["x"], stop=(stop,))
    write(loaded, [stopped])
    assert stopped.text.text == plain.text.text[: plain.text.text.index(stop)] and stopped.ended == "stop"
    third = plain.taken[2].token
    loaded.model.generation_config.eos_token_id = [third]
    (ended,) = rows_of(loaded, ["x"])
    assert written(loaded, [ended])[0][-1] == third and ended.ended == "stop"
    loaded.model.generation_config.eos_token_id = 2


def test_a_row_that_nobody_waits_for_ends_and_others_go_on(models):
    loaded = models("causal")
    left, kept = rows_of(loaded, ["x", "y"])
    left.tell = lambda row: setattr(row, "cancelled", True)
    write(loaded, [left, kept])
    assert (len(left.taken), len(kept.taken)) == (1, 12)


def test_probabilities_are_those_of_the_models_logits(models):
    loaded = models("causal")
    (row,) = rows_of(loaded, ["import os"], logprobs=3, temperature=1.0, max_new_tokens=4)
    write(loaded, [row])
    ids = torch.tensor([row.prompt + [each.token for each in row.taken]])
    expected = loaded.model(ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
    for each, logprobs in zip(row.taken, expected, strict=True):
        assert each.logprob == pytest.approx(logprobs[each.token].item(), abs=1e-4)
        assert [value for _, value in each.top] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "it has no tokens"), ([4] * 128, "it has 128 tokens, and the longest text"), ([-1], "-1 is no token of a")],
)
def test_prompts_that_the_model_cannot_read_are_refused(models, prompt, said):
    with pytest.raises(Mistake, match=f"prompt: {said}"):
        Row.of(models("causal"), prompt, Sampling())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": -1.0}, "temperature: -1.0 was found; input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature: nan was found"),
        ({"top_p": 0.0}, "top_p: 0.0 was found; input should be greater than 0"),
        ({"max_new_tokens": "5"}, "max_new_tokens: '5' was found; input should be a valid integer"),
        ({"stop": ("",)}, "stop: an empty text is in it"),
        ({"beams": 3}, "beams: 3 was found; extra inputs are not permitted"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_their_name(keys, said):
    with pytest.raises(Mistake, match=said):
        Sampling.of(**keys)


def test_settings_that_leave_one_token_take_the_likeliest():
    scores, ids = torch.tensor([0.0, 3.0, 1.0, 2.9]), torch.tensor([1])
    for keys in ({"temperature": 0}, {"top_k": 1}, {"top_p": 0.01}):
        assert Chooser(Sampling(**keys)).choose(ids, scores) == 1
    assert Chooser(Sampling(temperature=0, repetition_penalty=1.1)).choose(ids, scores) == 3
