"""Causal models of transformers in other shapes: the same numbers where nothing is read both ways, copies elsewhere."""

import pytest
import torch
import yaml

from model.config import ModelConfig
from model.exchange.adapting import SHAPES, adapt
from model.exchange.importing import adaptation_of, import_hf, imported_config, load_imported
from model.exchange.parity import run_ours
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput, Transformer
from tests.model import peers

PAIR = torch.arange(3, 11), torch.arange(20, 31)


def model_of(folder):
    config, vocab_size = imported_config(folder)
    model = Transformer(config.run_plainly(attention_backend="sdpa"), vocab_size)
    state = dict(load_imported(folder))
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Llama whose query and key heads differ in number, with random norms."""
    model, _, _ = peers.llama()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("shape", SHAPES)
def test_a_causal_model_becomes_another_shape_that_a_run_can_train(theirs, shape, tmp_path):
    model, folder = theirs
    import_hf(folder, tmp_path / "ours", shape=shape)
    ours = model_of(tmp_path / "ours")
    assert ours.config.shape == shape
    if shape == "prefix":
        nothing, text = torch.arange(0), PAIR[1]
        with torch.no_grad():
            expected = model(text[None]).logits[0]
        assert (run_ours(ours, nothing, text) - expected).abs().max() < 1e-5, "an empty prefix leaves it causal"
        assert (run_ours(ours, *PAIR) - model(torch.cat(PAIR)[None]).logits[0]).abs().max() > 1e-2
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        losses.append(loss_of(ours, *PAIR))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5


def loss_of(model, inputs, outputs):
    """Mean loss of outputs after inputs, of an encoder of each token from the one before it."""
    num, shape, encoder = len(inputs), model.config.shape, None
    if shape == "encdec":
        tokens, labels, prefix = outputs[:-1], outputs[1:], 0
        cross = AttentionPattern.cross(torch.tensor([0, len(tokens)]), torch.tensor([0, num]))
        encoder = EncoderInput(inputs, torch.arange(num), pattern(num, num), cross)
    else:
        text = torch.cat((inputs, outputs))
        tokens, labels = (text, text.roll(1)) if shape == "encoder" else (text[:-1], text[1:])
        prefix = len(tokens) if shape == "encoder" else num
    found = model(tokens, torch.arange(len(tokens)), pattern(len(tokens), prefix), labels, encoder=encoder)
    return found.loss_sum / len(labels)


def pattern(length, prefix):
    return AttentionPattern.packed(torch.tensor([0, length]), torch.tensor([prefix]))


def test_an_encoder_decoder_is_made_of_one_decoder_and_says_of_what(theirs, tmp_path):
    _, folder = theirs
    import_hf(folder, tmp_path / "ours", shape="encdec")
    weights = dict(load_imported(tmp_path / "ours"))
    queries = peers.WIDTH
    for layer in ("blocks.0.", "blocks.1."):
        qkv = weights[layer + "attention.qkv.weight"]
        assert torch.equal(weights[layer + "cross_attention.q.weight"], qkv[:queries])
        assert torch.equal(weights[layer + "cross_attention.kv.weight"], qkv[queries:])
        for there, here in (("cross_attention_norm", "attention_norm"), ("cross_attention.output", "attention.output")):
            assert torch.equal(weights[f"{layer}{there}.weight"], weights[f"{layer}{here}.weight"])
        for name in ("attention.qkv", "attention_norm", "feed_forward.down", "feed_forward_norm"):
            assert torch.equal(weights[f"encoder.{layer}{name}.weight"], weights[f"{layer}{name}.weight"])
    assert torch.equal(weights["encoder.norm.weight"], weights["norm.weight"])
    facts = yaml.safe_load((tmp_path / "ours" / "model.yaml").read_text())
    assert facts["model"]["shape"] == "encdec"
    assert facts["adapted"]["from"] == "causal"
    copied = adaptation_of(tmp_path / "ours")
    assert copied["blocks.*.cross_attention.q.weight"] == f"blocks.*.attention.qkv.weight rows 0:{queries}"
    assert copied["encoder.blocks.*.attention_norm.weight"] == "blocks.*.attention_norm.weight"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shape": "encoder"}, "only a causal model can be adapted, and this is one of shape encoder"),
        ({"multi_token_depths": 1}, "model.multi_token_depths 1 cannot be adapted"),
        ({"positions": "t5_bias"}, "model.positions t5_bias cannot be adapted"),
        ({"attention_gate": True}, "model.attention_gate True cannot be adapted"),
        ({"parallel_block": True}, "parallel_block: a block with cross-attention has no parallel form"),
    ],
)
def test_what_has_no_other_shape_is_refused_by_name(keys, message):
    with pytest.raises(ValueError, match=f"--as encdec: .*{message}"):
        adapt(ModelConfig(**peers.OURS, **keys), peers.VOCAB, "encdec")


@pytest.mark.parametrize("keys", [{"bias": True, "norm": "layernorm", "positions": "learned", "max_positions": 9}, {}])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_of_the_new_shape_comes_from_somewhere_once(keys, shape):
    causal = ModelConfig(**peers.OURS, num_kv_heads=2, tie_embeddings=True, qk_norm=True, **keys)
    found = adapt(causal, peers.VOCAB, shape)
    state = Transformer(causal, peers.VOCAB).state_dict()
    made = {place: rows for name, weight in state.items() for place, rows in found.places(name, weight)}
    expected = Transformer(found.config, peers.VOCAB).state_dict()
    assert made.keys() == expected.keys() - {"head.weight"}
    assert all(made[name].shape == expected[name].shape for name in made)


def test_an_import_of_what_is_not_causal_changes_nothing(tmp_path):
    model, _, _ = peers.llama(kind="EuroBert", theirs={"pad_token_id": 0, "mask_token_id": 2})
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="only a causal model can be adapted"):
        import_hf(tmp_path / "theirs", tmp_path / "ours", shape="prefix")
    assert not (tmp_path / "ours").exists()
