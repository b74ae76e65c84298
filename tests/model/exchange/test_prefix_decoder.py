"""The modeling file for prefix models whose blocks are not Llama's, against our own network."""

import pytest
import torch
from transformers import DynamicCache

from model.config import ModelConfig
from model.exchange.families.prefix_decoder import PrefixDecoder
from model.exchange.hf.prefix_decoder import PrefixDecoderConfig, PrefixDecoderForCausalLM
from model.exchange.parity import run_ours
from tests.model.exchange.exports import BASE, EXACTLY, VOCAB, greedy, padded, randomised, tokens

WITH_BIASES = {"norm": "layernorm", "bias": True}
BLOCKS = {
    "glm-130b": WITH_BIASES | {"activation": "geglu", "tie_embeddings": True},
    "chatglm-6b": WITH_BIASES | {"activation": "gelu_tanh", "rope_fraction": 0.5},
    "unilm-large": WITH_BIASES
    | {"activation": "gelu", "embedding_norm": True, "norm_placement": "post", "segment_embeddings": 2}
    | {"positions": "learned", "max_positions": 128, "norm_eps": 1e-4, "head_transform": True, "head_bias": True},
    "u-palm-540b": {"norm": "layernorm", "parallel_block": True, "num_kv_heads": 1, "tie_embeddings": True}
    | {"logit_scale": 0.2},
    "as bloom": WITH_BIASES | {"activation": "gelu_tanh", "embedding_norm": True, "positions": "alibi"},
    "others": {"activation": "relu", "qk_norm": True, "qkv_bias": True, "rope_theta": 500.0}
    | {"rope_scaling": {"kind": "linear", "factor": 2.0}, "head_dim": 10},
    "no positions": {"positions": "none"},
}


def config_of(ours: ModelConfig) -> PrefixDecoderConfig:
    """The same model in the modeling file's words."""
    return PrefixDecoderConfig(**PrefixDecoder().keys(ours, 128), vocab_size=VOCAB, pad_token_id=3)


def weights_of(model) -> dict[str, torch.Tensor]:
    """Our weights by the modeling file's names."""
    table, weights = PrefixDecoder().table(model.config, VOCAB), model.state_dict()
    return {part.name: part.there(weights[name]) for name, parts in table.items() for part in parts}


@pytest.fixture(params=BLOCKS)
def both(request):
    """Our model and theirs with the same weights."""
    ours = randomised(ModelConfig(**BASE | {"shape": "prefix"} | BLOCKS[request.param]))
    theirs = PrefixDecoderForCausalLM(config_of(ours.config)).eval()
    missing, unknown = theirs.load_state_dict(weights_of(ours), strict=False)
    assert not unknown and set(missing) <= ({"lm_head.weight"} if ours.config.tie_embeddings else set())
    return ours, theirs


def test_logits_and_greedy_tokens_are_ours_in_batches_padded_on_either_side(both):
    ours, theirs = both
    inputs, outputs = tokens(9, 5, 1), tokens(4, 6, 3, seed=6)
    expected = [run_ours(ours, *document) for document in zip(inputs, outputs, strict=True)]
    texts = [torch.cat(document) for document in zip(inputs, outputs, strict=True)]
    for left in (False, True):
        with torch.no_grad():
            logits = theirs(**padded(texts, left), prefix_lengths=torch.tensor([9, 5, 1])).logits
        for row, mine in zip(logits, expected, strict=True):
            found = row[len(row) - len(mine) :] if left else row[: len(mine)]
            torch.testing.assert_close(found, mine, atol=1e-5, rtol=1e-5)
    generated = theirs.generate(**padded(inputs, left=True), **EXACTLY)[:, -50:]
    for row, prompt in zip(generated, inputs, strict=True):
        assert torch.equal(row, greedy(ours, prompt, 50))


def test_what_is_saved_is_read_back_and_saved_the_same(both, tmp_path):
    _, theirs = both
    theirs.save_pretrained(tmp_path / "once")
    again = PrefixDecoderForCausalLM.from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()
    (text,) = tokens(8)
    assert torch.equal(again(text[None], prefix_lengths=3).logits, theirs(text[None], prefix_lengths=3).logits)


def test_calls_that_do_not_say_what_is_prefix_or_cut_it_are_refused():
    theirs = PrefixDecoderForCausalLM(config_of(ModelConfig(**BASE | {"shape": "prefix"}))).eval()
    (text,) = tokens(8)
    with pytest.raises(ValueError, match="a call with nothing cached must say how many tokens of each row are prefix"):
        theirs(text[None])
    with pytest.raises(ValueError, match="a row has fewer tokens than its prefix"):
        theirs(text[None], prefix_lengths=9)
    cache = DynamicCache()
    theirs(text[None, :4], prefix_lengths=3, past_key_values=cache)
    with pytest.raises(ValueError, match="the prefix must come in one piece, but a part of it is cached"):
        theirs(text[None, 4:], prefix_lengths=6, past_key_values=cache)
    with pytest.raises(ValueError, match="generate with a dynamic cache"):
        theirs.generate(text[None], cache_implementation="static", max_new_tokens=2)
