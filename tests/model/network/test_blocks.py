"""Our blocks against models that nobody here wrote, with the same weights, in fp32."""

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.kernels.ops import rope_tables
from model.network.blocks import Attention, Surroundings
from model.network.layers import Initializer
from model.network.positions import rope_frequencies
from model.network.transformer import Transformer
from tests.model import block_peers, peers
from tests.model.packs import pattern_of, positions_of

LENGTHS = [17, 40, 1, 93]


def loaded(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Transformer:
    """Our model with these weights, all of them and no others."""
    model = Transformer(config, peers.VOCAB)
    model.load_state_dict(weights)
    return model


def assert_same_logits(peer: peers.Peer, prefixes: list[int], **theirs) -> None:
    """Ours on a pack of documents, theirs on one document at a time."""
    hf, config, weights = peer
    model = loaded(config, weights)
    tokens = torch.randint(peers.VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        packed = model(tokens, positions_of(LENGTHS), pattern_of(LENGTHS, prefixes))
        assert packed.std() > 0.3
        for document, ours in zip(tokens.split(LENGTHS), packed.split(LENGTHS), strict=True):
            torch.testing.assert_close(ours, hf(document[None], **theirs).logits[0], atol=1e-5, rtol=0)


DECODERS = {
    "Llama": peers.llama,
    "Llama with one key head": lambda: peers.llama({"num_kv_heads": 1}, {"num_key_value_heads": 1}),
    "Llama with heads wider than its width": lambda: peers.llama({"head_dim": 12}, {"head_dim": 12}),
    "Llama with biases": lambda: peers.llama({"bias": True}, {"attention_bias": True, "mlp_bias": True}),
    "Llama with GEGLU": lambda: peers.llama({"activation": "geglu"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "Llama 3.1's stretched rope": peers.llama3,
    "linearly stretched rope": peers.linear_rope,
    "Qwen 2: biases on q, k, v alone": lambda: peers.llama({"qkv_bias": True}, kind="Qwen2"),
    "Qwen 3: norms on q and k": lambda: peers.llama({"qk_norm": True}, kind="Qwen3"),
    "Mistral: windows": lambda: peers.llama({"sliding_window": 12}, {"sliding_window": 12}, kind="Mistral"),
    "Qwen 3: windows in some layers": lambda: peers.llama(
        {"qk_norm": True, "sliding_window": 12, "layer_types": peers.KINDS},
        {**peers.WINDOW, "layer_types": peers.KINDS},
        kind="Qwen3",
    ),
    "SmolLM3: some layers without positions": lambda: peers.llama(
        {"no_rope_layer_interval": 2, "bias": True, "rope_theta": 2e6},
        {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True, "pad_token_id": 0},
        kind="SmolLM3",
    ),
    "SmolLM3: the others slide": lambda: peers.llama(
        {"no_rope_layer_interval": 2, "sliding_window": 12, "layer_types": peers.KINDS, "rope_theta": 2e6},
        {"no_rope_layers": [1, 0], **peers.WINDOW, "layer_types": peers.KINDS, "pad_token_id": 0},
        kind="SmolLM3",
    ),
    "GPT-2": peers.gpt2,
    "GPT-J": peers.gptj,
    "Phi": peers.phi,
    "Cohere": peers.cohere,
    "BLOOM": peers.bloom,
    "OPT": peers.opt,
    "EXAONE 4: norms of what parts give": block_peers.exaone4,
    "Gemma 2: norms on both sides": block_peers.gemma2,
    "Gemma 3: another base in layers that slide": block_peers.gemma3,
    "OLMo 2: norms over all heads": block_peers.olmo2,
    "GPT-NeoX: two norms side by side": block_peers.gpt_neox,
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_causal_model_gives_its_peers_logits(name):
    assert_same_logits(DECODERS[name](), [0] * len(LENGTHS))


@pytest.mark.parametrize(
    "make",
    [lambda: peers.llama({"shape": "encoder"}, kind="EuroBert"), peers.modernbert, block_peers.bert],
    ids=["EuroBERT", "ModernBERT", "BERT"],
)
def test_an_encoder_gives_its_peers_logits(make):
    assert_same_logits(make(), LENGTHS)


def test_a_prefix_model_gives_llamas_logits_under_a_mask_that_shows_the_prefix():
    hf, config, weights = peers.llama({"shape": "prefix"})
    model = loaded(config, weights)
    tokens = torch.randint(peers.VOCAB, (30,), generator=torch.Generator().manual_seed(1))
    place = torch.arange(30)
    for prefix in (0, 1, 13, 30):
        seen = (place[None, :] <= place[:, None]) | (place[None, :] < prefix)
        mask = torch.zeros(30, 30).masked_fill(~seen, torch.finfo(torch.float32).min)
        with torch.no_grad():
            theirs = hf(tokens[None], attention_mask=mask[None, None]).logits[0]
            ours = model(tokens, place, pattern_of([30], [prefix]))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [peers.llama, peers.llama3, peers.linear_rope])
def test_rotary_frequencies_are_huggingfaces_to_the_last_bit(make):
    hf, config, _ = make()
    assert torch.equal(rope_frequencies(config, "cpu"), hf.model.rotary_emb.inv_freq)


def small(**keys) -> Transformer:
    return Transformer(ModelConfig(**peers.OURS, init_std=0.3, **keys), peers.VOCAB)


def test_without_positions_an_encoder_gives_shuffled_tokens_shuffled_logits():
    model = small(shape="encoder", positions="none")
    tokens, order = torch.arange(20), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens, torch.arange(20), pattern_of([20], [20]))
        shuffled = model(tokens[order], torch.arange(20), pattern_of([20], [20]))
    torch.testing.assert_close(shuffled, logits[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "sees_order"), [("encoder", True), ("prefix", True), ("causal", False)])
def test_relative_biases_tell_the_future_from_the_past_where_it_is_seen(shape, sees_order):
    """In a prefix the next key and the last key of the same distance have biases of their own."""
    model = small(shape=shape, positions="t5_bias")
    bias = model.attention_bias
    assert bias is not None
    with torch.no_grad():
        bias.weight[16:].zero_()
        bias.weight[:16].fill_(3.0)  # bidirectional: past and present; unidirectional: all but the far past
    tokens, pattern = torch.arange(12), pattern_of([12], [12])
    with torch.no_grad():
        plain = model(tokens, tokens, pattern)
        bias.weight.zero_()
        flat = model(tokens, tokens, pattern)
    assert torch.allclose(plain, flat, atol=1e-4) != sees_order


def test_a_document_longer_than_the_learned_positions_is_refused():
    model = small(positions="learned", max_positions=8)
    tokens = torch.arange(9)
    model(tokens[:8], tokens[:8], AttentionPattern.causal([8]))
    with pytest.raises(ValueError, match="max_positions: a document of 9 tokens is longer than the 8 learned"):
        model(tokens, tokens, AttentionPattern.causal([9]))


@pytest.mark.parametrize("positions", ["rope", "t5_bias", "learned", "alibi", "none"])
def test_a_model_made_on_the_meta_device_needs_nothing_but_its_weights(positions):
    keys = {"positions": positions, "max_positions": 16 if positions == "learned" else None}
    made = small(**keys)
    with torch.device("meta"):
        empty = small(**keys)
    empty.load_state_dict(made.state_dict(), assign=True)
    tokens = torch.arange(10)
    pattern = AttentionPattern.causal([10])
    assert torch.equal(empty(tokens, tokens, pattern), made(tokens, tokens, pattern))


def test_norms_whose_weights_are_kept_less_one_start_at_zero():
    model = small(norm="rmsnorm_1p", qk_norm=True, norm_placement="sandwich")
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    assert len(norms) == 2 * (4 + 2) + 1 and not any(weight.any() for weight in norms)


@pytest.mark.parametrize(("bias", "qkv", "output"), [(True, False, False), (False, None, True), (True, None, None)])
def test_each_attention_has_the_biases_that_its_keys_say(bias, qkv, output):
    keys = {"shape": "encdec", "bias": bias, "qkv_bias": qkv, "attention_output_bias": output}
    names = {name for name, _ in small(**keys).named_parameters() if name.endswith(".bias")}
    for block in ("blocks.0.", "blocks.1.", "encoder.blocks.0.", "encoder.blocks.1."):
        maps = {"attention.qkv": qkv, "attention.output": output}
        if not block.startswith("encoder"):
            maps |= {"cross_attention.q": qkv, "cross_attention.kv": qkv, "cross_attention.output": output}
        for name, own in maps.items():
            assert (f"{block}{name}.bias" in names) == (bias if own is None else own), name
        assert (f"{block}feed_forward.down.bias" in names) == bias


def test_without_its_first_norm_a_stack_differs_from_one_with_it_in_nothing_else():
    keys = {"shape": "encdec", "embedding_norm": True}
    all_norms, without = (dict(small(**keys, first_attention_norm=has).named_parameters()) for has in (True, False))
    left_out = {"blocks.0.attention_norm.weight", "encoder.blocks.0.attention_norm.weight"}
    assert set(all_norms) - set(without) == left_out
    assert all(torch.equal(all_norms[name], weight) for name, weight in without.items())


def test_biases_start_at_zero_and_norms_at_one():
    model = small(norm="layernorm", bias=True, qk_norm=True, embedding_norm=True, activation="gelu")
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.full_like(weight, float("norm" in name and name.endswith("weight"))))
    assert isinstance(model.embedding_norm, nn.Module)


@pytest.mark.parametrize("bias", [False, True])
def test_gated_attention_is_that_of_qwen3_next(bias):
    hf, state = peers.qwen3_next_attention(bias)
    keys = {"num_kv_heads": 2, "qk_norm": True, "attention_gate": True, "bias": bias, "norm_eps": 1e-6}
    config = ModelConfig(**peers.OURS, **keys)
    ours = Attention(config, 0.1, Initializer(0), 0)
    ours.load_state_dict(state)
    x = torch.randn(sum(LENGTHS), peers.WIDTH, generator=torch.Generator().manual_seed(1))
    rope = rope_tables(positions_of(LENGTHS), rope_frequencies(config, "cpu"))
    with torch.no_grad():
        packed = ours(x, torch.zeros_like(x), Surroundings(pattern_of(LENGTHS, [0] * 4), "sdpa", rope))
        for document, mine in zip(x.split(LENGTHS), packed.split(LENGTHS), strict=True):
            torch.testing.assert_close(mine, hf(document), atol=1e-5, rtol=0)
