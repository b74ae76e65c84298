"""A model in parts against the same model in one piece, in fp64: losses, gradients and first weights of every shape."""

import pytest
import torch

from model.config import ModelConfig
from model.network.layers import divisions
from model.network.loss import chunked_cross_entropy
from model.network.tensor_ranks import Division
from model.network.transformer import EncoderInput, Transformer
from tests.model.network.thread_ranks import ThreadRanks, on_tensor_ranks
from tests.model.packs import crossing_of, pattern_of, positions_of

VOCAB = 52
LENGTHS, PREFIXES = [9, 1, 14], [4, 0, 14]
READ = [5, 12, 7]
SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 8, "num_kv_heads": 4, "d_ff": 24}
BIASED = {"norm": "layernorm", "bias": True, "activation": "gelu", "embedding_norm": True}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "causal, tied": {"tie_embeddings": True},
    "causal, qk norm, qkv bias": {"qk_norm": True, "qkv_bias": True, "rope_fraction": 0.5, "head_dim": 4},
    "causal, recomputed": {"activation_checkpointing": "full", "qk_norm": True},
    "causal, attention recomputed": {"activation_checkpointing": "attention"},
    "prefix, learned, parallel": {
        "shape": "prefix",
        "positions": "learned",
        "max_positions": 20,
        "parallel_block": True,
    }
    | BIASED,
    "encdec, t5 bias, tied": {"shape": "encdec", "positions": "t5_bias", "activation": "geglu", "tie_embeddings": True},
    "encdec, t5 biases of each layer": {"shape": "encdec", "positions": "t5_bias", "t5_bias_per_layer": True}
    | {"multi_token_depths": 1, "activation_checkpointing": "attention"},
    "encdec, biased": {"shape": "encdec", "qk_norm": True, "attention_softcap": 0.1} | BIASED,
    "encoder, alibi": {"shape": "encoder", "positions": "alibi", "activation": "relu"},
    "prefix, windows, gate": {"shape": "prefix", "attention_gate": True, "no_rope_layer_interval": 2, **WINDOWS},
    "encdec, post": {"shape": "encdec", "norm_placement": "post", "positions": "learned", "max_positions": 20}
    | {"position_offset": 2, "segment_embeddings": 2, "embedding_scale": 4.0, "head_transform": True, "head_bias": True}
    | BIASED,
    "prefix, sandwich": {"shape": "prefix", "norm_placement": "sandwich", "multi_token_depths": 1, **WINDOWS}
    | {"norm": "rmsnorm_1p", "sliding_rope_theta": 100.0, "qk_norm": True}
    | {"head_transform": True, "logit_softcap": 0.1, "embedding_scale": 4.0, "tie_embeddings": True}
    | {"attention_softcap": 0.1, "attention_scale": 0.8},
    "causal, output, recomputed": {"norm_placement": "output", "activation_checkpointing": "attention", "bias": True}
    | {"logit_scale": 4.0, "head_bias": True},
    "causal, two norms": {"parallel_block": True, "parallel_norms": 2, "norm": "layernorm", "bias": True},
    "causal, GPT-J's biases": {"parallel_block": True, "qkv_bias": False, "attention_output_bias": False}
    | {"rope_fraction": 0.5, "head_dim": 4, "head_bias": True, "norm": "layernorm", "bias": True, "activation": "gelu"},
    "encoder, ModernBERT's": {"shape": "encoder", "norm": "layernorm", "activation": "geglu_exact"}
    | {"embedding_norm": True, "first_attention_norm": False, "head_transform": True, "head_bias": True}
    | {"sliding_rope_theta": 100.0, "tie_embeddings": True, **WINDOWS},
    "encdec, biases behind attention alone": {"shape": "encdec", "attention_output_bias": True}
    | {"embedding_norm": True, "first_attention_norm": False},
    "prefix, further depths": {"shape": "prefix", "multi_token_depths": 2, "tie_embeddings": True},
    "encdec, further depths": {"shape": "encdec", "multi_token_depths": 1, "activation_checkpointing": "full"},
    "encdec, windows, gate": {
        "shape": "encdec",
        "positions": "t5_bias",
        "attention_gate": True,
        "bias": True,
        **WINDOWS,
    },
}
RANKS = pytest.mark.parametrize(("size", "sequence"), [(2, False), (2, True), (4, True), (4, False)])


def build(name: str, ranks: ThreadRanks | None = None) -> Transformer:
    model = Transformer(ModelConfig(**SIZES | {"shape": "causal"} | MODELS[name]), VOCAB, 3, ranks)
    return model.double()


def loss_of(model: Transformer, z_loss: float = 0.01) -> torch.Tensor:
    """The loss on a pack in which some positions are no targets."""
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCAB, (sum(LENGTHS),), generator=draw)
    labels = torch.randint(VOCAB, tokens.shape, generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.3] = -100
    encoder = None
    if model.encoder is not None:
        read = torch.randint(VOCAB, (sum(READ),), generator=draw)
        encoder = EncoderInput(read, positions_of(READ), pattern_of(READ, READ), crossing_of(LENGTHS, READ))
    pattern = pattern_of(LENGTHS, LENGTHS if model.config.shape == "encoder" else PREFIXES)
    return model(tokens, positions_of(LENGTHS), pattern, labels, z_loss, encoder).loss_sum


def train_once(name: str, ranks: ThreadRanks | None) -> tuple[float, dict, dict, dict[str, Division]]:
    """Loss, gradients, weights, and how they are cut."""
    model = build(name, ranks)
    loss = loss_of(model)
    loss.backward()
    named = dict(model.named_parameters())
    gradients = {key: weight.grad for key, weight in named.items()}
    return loss.item(), gradients, {key: weight.detach() for key, weight in named.items()}, divisions(model)


@RANKS
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_model_compute_what_the_whole_does(name, size, sequence):
    loss, gradients, weights, _ = train_once(name, None)
    for rank, result in enumerate(on_tensor_ranks(size, sequence, lambda ranks: train_once(name, ranks))):
        own_loss, own_gradients, own_weights, cut = result
        assert own_loss == pytest.approx(loss, rel=1e-12)
        assert own_gradients.keys() == gradients.keys()
        for key, whole in gradients.items():
            expected = cut[key].of(whole, rank, size) if key in cut else whole
            torch.testing.assert_close(own_gradients[key], expected, rtol=1e-9, atol=1e-11, msg=lambda m: f"{key}: {m}")
            first = cut[key].of(weights[key], rank, size) if key in cut else weights[key]
            assert torch.equal(own_weights[key], first), key


def test_what_grows_with_the_model_is_cut_and_what_does_not_is_whole():
    (cut, *_) = on_tensor_ranks(2, True, lambda ranks: divisions(build("encdec, biased", ranks)))
    names = dict(build("encdec, biased").named_parameters())
    whole = {key for key in names if key not in cut}
    assert all(key.split(".")[-2].endswith("norm") or key.endswith(("output.bias", "down.bias")) for key in whole)
    assert cut["blocks.0.attention.qkv.weight"] == Division(0, (16, 8, 8))
    assert cut["blocks.0.attention.output.weight"] == Division(1, (16,))


class Forgetful(ThreadRanks):
    """One whose shared weights keep the gradient of its own rows."""

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


class Doubling(ThreadRanks):
    """One that adds what it has read to what it sums, as every other rank does."""

    def summed(self, partial: torch.Tensor) -> torch.Tensor:
        return super().summed(partial + 0.1)


@pytest.mark.parametrize("faulty", [Forgetful, Doubling])
def test_a_fault_of_the_ranks_shows(faulty):
    def run(ranks: ThreadRanks) -> tuple:
        return train_once("causal, tied", faulty(ranks.rank, ranks.size, ranks.sequence, ranks._meeting))

    _, gradients, *_ = train_once("causal, tied", None)
    _, found, _, _ = on_tensor_ranks(2, True, run)[0]
    key = "blocks.0.attention_norm.weight"
    assert not torch.allclose(found[key], gradients[key], rtol=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_the_loss_over_shared_columns_is_exact_for_unlikely_labels(size):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=draw, dtype=torch.float64) * 40
    weight = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    labels = torch.randint(9, (7,), generator=draw)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")

    def run(ranks: ThreadRanks) -> float:
        part = weight.chunk(size)[ranks.rank]
        return chunked_cross_entropy(hidden, part, labels, chunk_size=3, ranks=ranks).loss_sum.item()

    assert on_tensor_ranks(size, False, run) == [pytest.approx(expected.item(), rel=1e-12)] * size
