"""Prefix models in transformers: the prompt sees itself, with every cache, in batches of unequal prompts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model.config import ModelConfig
from model.exchange import convert, parity
from model.exchange.parity import run_ours
from tests.model.exchange.exports import BASE, EXACTLY, export, greedy, padded, randomised, tokens

PREFIX = BASE | {"shape": "prefix"}
CASES = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "biases": {"bias": True},
    "stretched": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_positions": 16}},
}

pytestmark = pytest.mark.usefixtures("shipped_code")


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer_model, shipped_code):
    """Our model and transformers' of the folder made from it."""
    ours = randomised(ModelConfig(**PREFIX))
    return ours, load(export(ours, tmp_path_factory.mktemp("prefix") / "out", tokenizer_model))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=True)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_ours(case, tmp_path, tokenizer_model):
    ours = randomised(ModelConfig(**PREFIX | CASES[case]))
    theirs = load(export(ours, tmp_path / "out", tokenizer_model))
    assert type(theirs).__name__ == "PrefixLlamaForCausalLM" and theirs.config.model_type == "prefix_llama"
    inputs, outputs = tokens(17, 12)
    with torch.no_grad():
        logits = theirs(torch.cat((inputs, outputs))[None], prefix_lengths=torch.tensor([17])).logits[0]
    torch.testing.assert_close(logits, run_ours(ours, inputs, outputs), atol=1e-5, rtol=0)
    assert torch.equal(theirs.generate(inputs[None], **EXACTLY)[0, 17:], greedy(ours, inputs, 50))


@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=["dynamic", "static", "none"]
)
def test_a_left_padded_batch_of_unequal_prompts_goes_on_as_each_prompt_alone(served, cache):
    ours, theirs = served
    prompts = tokens(3, 21, 1, 14)
    generated = theirs.generate(**padded(prompts, left=True), **EXACTLY, **cache)[:, 21:]
    assert torch.equal(generated, torch.stack([greedy(ours, prompt, 50) for prompt in prompts]))


def test_padding_is_found_where_no_mask_is_given(served):
    _, theirs = served
    batch = padded(tokens(3, 9), left=True)
    with_mask = theirs.generate(**batch, **EXACTLY, pad_token_id=3)
    assert torch.equal(theirs.generate(batch["input_ids"], **EXACTLY, pad_token_id=3), with_mask)


def test_guessing_ahead_and_beams_keep_the_prefix(served):
    ours, theirs = served
    (prompt,) = tokens(15)
    repeated = torch.cat((prompt, prompt))
    guessed = theirs.generate(repeated[None], **EXACTLY, prompt_lookup_num_tokens=3)
    assert torch.equal(guessed[0, 30:], greedy(ours, repeated, 50))
    beams = [theirs.generate(prompt[None], **EXACTLY, num_beams=3, use_cache=cache) for cache in (True, False)]
    assert torch.equal(beams[0], beams[1])


def test_part_of_a_prompt_can_be_the_prefix(served):
    ours, theirs = served
    prompt, begun = tokens(9, 4)
    generated = theirs.generate(torch.cat((prompt, begun))[None], **EXACTLY, prefix_lengths=[9])[0, 13:]
    for index in (0, 20, 49):
        logits = run_ours(ours, prompt, torch.cat((begun, generated[:index])))
        assert logits[-1].argmax() == generated[index]


def test_right_padded_texts_are_scored_with_prefixes_of_their_own(served):
    ours, theirs = served
    pairs = [
        (torch.cat(two)[:p], torch.cat(two)[p:])
        for two, p in ((tokens(9, 12), 9), (tokens(5, 3), 2), (tokens(7, 7), 0))
    ]
    batch = padded([torch.cat(pair) for pair in pairs], left=False)
    with torch.no_grad():
        logits = theirs(**batch, prefix_lengths=torch.tensor([len(inputs) for inputs, _ in pairs])).logits
    for row, (inputs, outputs) in zip(logits, pairs, strict=True):
        mine = run_ours(ours, inputs, outputs)
        torch.testing.assert_close(row[: len(mine)], mine, atol=1e-5, rtol=0)


def test_every_place_of_the_prefix_and_none_after_it_reaches_its_first_logits(served):
    _, theirs = served
    (text,) = tokens(16)
    embeds = theirs.get_input_embeddings()(text[None]).detach().requires_grad_()
    theirs(inputs_embeds=embeds, prefix_lengths=torch.tensor([6])).logits[0, 0].square().sum().backward()
    assert embeds.grad[0].abs().amax(1).gt(0).tolist() == [True] * 6 + [False] * 10


def test_a_call_that_does_not_say_what_is_prefix_is_refused(served):
    _, theirs = served
    (text,) = tokens(8)
    with pytest.raises(ValueError, match="prefix_lengths: a call with nothing cached must say"):
        theirs(text[None])
    with pytest.raises(ValueError, match="in one piece"):
        theirs.generate(text[None], **EXACTLY, prefill_chunk_size=4)


def test_it_cannot_be_loaded_without_its_own_code(served, tmp_path, tokenizer_model):
    folder = export(served[0], tmp_path / "out", tokenizer_model)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["PrefixLlamaForCausalLM"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def causal_after_all(folder):
    file = folder / "prefix_llama.py"
    file.write_text(file.read_text().replace("torch.where(inside, 0, -1)", "torch.full_like(seen, -1)"))


def forget_the_prompt(folder):
    file = folder / "prefix_llama.py"
    file.write_text(file.read_text().replace('prefix_lengths = kwargs["attention_mask"].sum(1)', "prefix_lengths = 1"))


def served_as_llama(folder):
    file = folder / "config.json"
    facts = json.loads(file.read_text())
    del facts["auto_map"]
    file.write_text(json.dumps(facts | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def negate_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].neg_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("spoil", [causal_after_all, forget_the_prompt, served_as_llama, negate_a_weight])
def test_a_spoilt_folder_never_gets_its_name(spoil, served, tmp_path, tokenizer_model, monkeypatch):
    def check_spoilt(folder, *args):
        spoil(folder)
        parity.check_export(folder, *args)

    monkeypatch.setattr(convert, "check_export", check_spoilt)
    with pytest.raises(RuntimeError, match=r"differ from ours|cannot run it|that was exported"):
        export(served[0], tmp_path / "out", tokenizer_model)
    assert list(tmp_path.iterdir()) == []
