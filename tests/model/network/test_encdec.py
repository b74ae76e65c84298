"""Encoder and decoder together, against models that nobody here wrote and against themselves."""

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network.blocks import CrossAttention, Surroundings
from model.network.layers import Initializer
from model.network.transformer import Transformer
from tests.model import block_peers, peers
from tests.model.streams import Document, inputs_of, make_document, tiny_model

LENGTHS = [(140, 150), (9, 20), (1, 1), (30, 2)]
PEERS = {
    "T5 v1.1": peers.t5,
    "T5 with SwiGLU": lambda: peers.t5("gated-silu"),
    "T5 with ReLU and a shallower encoder": lambda: peers.t5("relu", 1),
    "mBART": lambda: peers.bart("MBart"),
    "BART: norms after the sums": lambda: peers.bart(scale_embedding=True),
    "T5Gemma: norms on both sides, scores capped, those of cross-attention too": block_peers.t5gemma,
}


def documents_for(vocab_size: int) -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    draw = [[torch.randint(vocab_size, (n,), generator=generator) for n in pair] for pair in LENGTHS]
    return [Document(tokens, encoder_tokens=read) for tokens, read in draw]


@pytest.mark.parametrize("name", PEERS)
def test_pairs_of_documents_in_a_pack_get_the_logits_that_peers_give_them_one_by_one(name):
    hf, config, weights = PEERS[name]()
    model = Transformer(config, peers.VOCAB)
    model.load_state_dict(weights)
    documents = documents_for(peers.VOCAB)
    with torch.no_grad():
        packed = model(**inputs_of(documents))
        assert packed.std() > 0.3
        for document, ours in zip(documents, packed.split([n for n, _ in LENGTHS]), strict=True):
            read, tokens = document.encoder_tokens[None], document.tokens[None]
            # Without a mask some peers take their padding token for padding.
            masks = {"attention_mask": torch.ones_like(read), "decoder_attention_mask": torch.ones_like(tokens)}
            theirs = hf(input_ids=read, decoder_input_ids=tokens, **masks)
            torch.testing.assert_close(ours, theirs.logits[0], atol=1e-5, rtol=0)


def test_cross_attention_is_torchs_multi_head_attention():
    config = ModelConfig(shape="encdec", num_layers=1, d_model=16, num_heads=4, d_ff=8, bias=True, init_std=0.3)
    ours = CrossAttention(config, 0.3, Initializer(0))
    for bias in (ours.q.bias, ours.kv.bias, ours.output.bias):
        nn.init.normal_(bias, generator=torch.Generator().manual_seed(0))
    theirs = nn.MultiheadAttention(16, 4)
    theirs.in_proj_weight.data = torch.cat((ours.q.weight, ours.kv.weight))
    theirs.in_proj_bias.data = torch.cat((ours.q.bias, ours.kv.bias))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, memory = torch.randn(5, 16), torch.randn(11, 16)
    cross = AttentionPattern.cross(torch.tensor([0, 5]), torch.tensor([0, 11]))
    around = Surroundings(AttentionPattern.causal([5]), "sdpa", cross=cross)
    torch.testing.assert_close(ours(x, memory, x, around), x + theirs(x, memory, memory)[0], atol=1e-6, rtol=1e-6)


def test_a_decoder_document_without_anything_to_read_is_as_if_cross_attention_gave_nothing():
    model = tiny_model("encdec", torch.float32)
    generator = torch.Generator().manual_seed(0)
    documents = [make_document("encdec", 6, 0, 0, generator), make_document("encdec", 4, 0, 7, generator)]
    with torch.no_grad():
        silent = model(**inputs_of(documents))[:6]
        for block in model.blocks:
            block.cross_attention.output.weight.zero_()
        without = model(**inputs_of(documents))[:6]
    assert silent.isfinite().all()
    torch.testing.assert_close(silent, without, atol=1e-6, rtol=1e-6)


def test_stacks_have_depths_of_their_own_and_residual_spreads_that_follow():
    config = ModelConfig(
        shape="encdec", num_layers=2, num_encoder_layers=8, d_model=64, num_heads=4, d_ff=256, init_std=0.05
    )
    model = Transformer(config, 300)
    assert (len(model.blocks), len(model.encoder.blocks)) == (2, 8)
    spreads = {
        0.05 / 2: (
            model.blocks[0].attention.output,
            model.blocks[1].feed_forward.down,
            model.blocks[0].cross_attention.output,
        ),
        0.05 / 4: (model.encoder.blocks[0].attention.output, model.encoder.blocks[7].feed_forward.down),
        0.05: (
            model.blocks[0].cross_attention.q,
            model.blocks[0].cross_attention.kv,
            model.encoder.blocks[3].attention.qkv,
        ),
    }
    for expected, layers in spreads.items():
        for layer in layers:
            assert abs(layer.weight.std().item() / expected - 1) < 0.05
    assert all(block.cross_attention is None for block in model.encoder.blocks)
    first, second = model.blocks[0].attention.qkv.weight, model.encoder.blocks[0].attention.qkv.weight
    assert not torch.equal(first, second)


def test_the_two_streams_go_together():
    generator = torch.Generator().manual_seed(0)
    both = inputs_of([make_document("encdec", 6, 0, 5, generator)])
    with pytest.raises(AssertionError, match="reads two streams"):
        tiny_model("encdec")(**both | {"encoder": None})
    with pytest.raises(AssertionError, match="reads two streams"):
        tiny_model("causal")(**both)
